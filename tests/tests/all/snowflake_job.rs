//! The main job on Snowflake, on the real programs and the simulated account: a token becomes a user with a key, and nothing.

use std::time::{Duration, Instant};

use kdbt_api::credential::PrivateKey;
use kdbt_e2e::broker::Broker;
use kdbt_e2e::client::Workstation;
use kdbt_e2e::identity::IdentityProvider;
use kdbt_e2e::process::Finished;
use kdbt_e2e::snowflake::Simulator;
use kdbt_e2e::snowflake::account::Account;
use kdbt_e2e::snowflake::fault::Fault;
use kdbt_e2e::snowflake::stack::{SnowflakeOptions, SnowflakeStack};
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

const POLICY: &str = r#"kdbt: 1
targets:
  lake: { server: sf, engine: snowflake, database: ANALYTICS, tier: dev, warehouses: [BI] }
rules:
  - id: builders
    why: Everybody of the test builds.
    everyone: true
    targets: [lake]
    create_as: { snowflake: { grant_role: KDBT_ENT_OWNER, session_role: OWNER } }
    ttl: { min: 1s, default: 1h, max: 2h }
    session: { query_tag: tests }
    profile: { threads: 4, schema: "dbt_{{username}}", warehouse: BI }
"#;

/// An account, a broker on it, and people.
struct World {
    broker: Broker,
    identity: IdentityProvider,
    simulator: Simulator,
    http: reqwest::Client,
    /// The broker's own key.
    key: String,
}

impl World {
    /// With a broker that was made ready by the bootstrap of its own configuration and runs.
    async fn start() -> Self {
        let policies = tempfile::tempdir().unwrap();
        std::fs::write(policies.path().join("policy.yaml"), POLICY).unwrap();
        let options = SnowflakeOptions {
            policies: policies.path().to_owned(),
            keycloak: false,
            log: "trace".to_owned(),
            gate: false,
        };
        let stack = SnowflakeStack::start(&options).await.unwrap();
        Self {
            broker: stack.broker,
            identity: stack.identity,
            simulator: stack.simulator,
            http: reqwest::Client::new(),
            key: stack.key,
        }
    }

    async fn call(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let url = format!("{}/v1/{path}", self.broker.url());
        let request = self.http.request(method.parse().unwrap(), url);
        let request = request.bearer_auth(self.identity.played().token_for("ada")).json(&body);
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        (status, answer.json().await.unwrap_or_default())
    }

    async fn order(&self) -> (u16, Value) {
        self.call("POST", "leases", json!({"target": "lake"})).await
    }

    /// The users of leases that the account has.
    fn lease_users(&self) -> Vec<String> {
        let names = self.simulator.look(Account::user_names);
        names.into_iter().filter(|name| name.starts_with("KDBT_ADA_")).collect()
    }

    async fn until_no_user_is_left(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.lease_users().is_empty() {
            assert!(
                Instant::now() < deadline,
                "{:?}\n{}",
                self.lease_users(),
                self.broker.log_tail(30)
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn statements(&self) -> Vec<String> {
        self.simulator.transcript().into_iter().map(|said| said.text).collect()
    }

    /// The broker dies now, and another starts when a minute has passed on the account.
    async fn crash(&mut self) {
        self.broker.kill().await.unwrap();
        self.simulator.set_ahead(70_000);
        self.broker.spawn().unwrap();
    }
}

/// Signs in as a user with a key, as a connector does.
pub(crate) fn token(key: &str, user: &str) -> String {
    use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
    use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256};
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
    let pair = aws_lc_rs::rsa::KeyPair::from_pkcs8(&STANDARD.decode(key).unwrap()).unwrap();
    let spki: PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
    let fingerprint = kdbt_e2e::snowflake::token::fingerprint(&STANDARD.encode(spki.as_ref())).unwrap();
    let now = jiff::Timestamp::now().as_second();
    let claims = json!({"iss": format!("MYORG-MYACCT.{user}.{fingerprint}"), "sub": format!("MYORG-MYACCT.{user}"), "iat": now, "exp": now + 60});
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(&json!({"alg": "RS256", "typ": "JWT"})), part(&claims));
    let mut signature = vec![0; pair.public_modulus_len()];
    let random = aws_lc_rs::rand::SystemRandom::new();
    pair.sign(&RSA_PKCS1_SHA256, &random, signed.as_bytes(), &mut signature)
        .unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_two_statements_and_its_end_is_disable_then_drop() {
    let world = World::start().await;
    let before = world.statements().len();
    let (status, issued) = world.order().await;
    assert_eq!(status, 201, "{issued}\n{}", world.broker.log_tail(30));
    let made: Vec<String> = world.statements().split_off(before);
    assert_eq!(made.len(), 2, "{made:?}");
    assert!(
        made[0].starts_with("CREATE USER \"KDBT_ADA_0\" TYPE = SERVICE"),
        "{made:?}"
    );
    assert_eq!(made[1], "GRANT ROLE \"KDBT_ENT_OWNER\" TO USER \"KDBT_ADA_0\"");

    let connection = &issued["connection"];
    assert_eq!(connection["user"], "KDBT_ADA_0");
    assert_eq!(
        (&connection["role"], &connection["schema"]),
        (&json!("OWNER"), &json!("DBT_ADA"))
    );
    let key = issued["secret"]["private_key"].as_str().unwrap();
    assert!(issued["profiles_yml"].as_str().unwrap().contains(key));
    assert_eq!(
        world.simulator.log_in(&token(key, "KDBT_ADA_0")),
        Ok("KDBT_ADA_0".to_owned())
    );
    world.simulator.look(|account| {
        let user = account.user("KDBT_ADA_0").unwrap();
        assert!(account.may_use("KDBT_ADA_0", "OWNER") && !account.may_use("KDBT_ADA_0", "KDBT_BROKER"));
        assert!(!user.secondary_roles && user.kind == "SERVICE");
        assert!(user.parameters["QUERY_TAG"].starts_with("kdbt:lse_"));
        assert!(user.parameters["QUERY_TAG"].ends_with(" tests"));
    });

    let id = issued["lease"]["id"].as_str().unwrap();
    let comment = || {
        world
            .simulator
            .look(|account| account.user("KDBT_ADA_0").unwrap().comment.clone().unwrap())
    };
    let first = comment();
    let (status, renewed) = world
        .call("POST", &format!("leases/{id}/renew"), json!({"ttl": "90m"}))
        .await;
    assert_eq!(status, 200, "{renewed}");
    assert_ne!(comment(), first, "the end in the mark moves");

    let before = world.statements().len();
    let (status, _) = world.call("DELETE", &format!("leases/{id}"), Value::Null).await;
    assert_eq!(status, 200);
    let ended: Vec<String> = world.statements().split_off(before);
    let position = |text: &str| ended.iter().position(|said| said.starts_with(text)).unwrap();
    assert!(
        position("ALTER USER IF EXISTS \"KDBT_ADA_0\" SET DISABLED = TRUE")
            < position("DROP USER IF EXISTS \"KDBT_ADA_0\"")
    );
    assert!(world.lease_users().is_empty());
    assert_eq!(world.simulator.log_in(&token(key, "KDBT_ADA_0")), Err("394300"));

    let log = world.broker.log().unwrap();
    for secret in [key, &world.key] {
        assert!(!log.contains(&secret[40..80]), "a private key in the log");
        assert!(!world.statements().iter().any(|text| text.contains(&secret[40..80])));
    }
    assert!(!log.contains("eyJ"), "a token in the log");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_makes_the_key_and_dbt_gets_it_by_a_variable_for_as_long_as_the_command_runs() {
    let world = World::start().await;
    let machine = Workstation::new(&world.broker.url()).unwrap();
    let machine = machine.with("KDBT_TOKEN", &world.identity.played().token_for("ada"));
    let script = "cat $DBT_PROFILES_DIR/profiles.yml; echo; echo KEY=$DBT_ENV_SECRET_KDBT_PRIVATE_KEY";
    let run = machine.command(&["exec", "--target", "lake", "--", "sh", "-c", script]);
    let finished = Finished::of(run).await.unwrap();
    let text = finished.expect(0).unwrap().stdout;
    let (profile, key) = text.split_once("KEY=").unwrap();
    assert!(
        profile.contains("account: \"myorg-myacct\"") && profile.contains("protocol: http"),
        "{profile}"
    );
    assert!(!profile.contains(key.trim()));
    assert!(world.lease_users().is_empty(), "given back");
    assert_eq!(world.simulator.log_in(&token(key.trim(), "KDBT_ADA_0")), Err("394300"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_killed_between_any_two_statements_of_an_issue_leaves_no_user_behind() {
    let hang = Duration::from_mins(10);
    for (statement, fault) in [
        ("CREATE USER", Fault::Slow(hang)),
        ("CREATE USER", Fault::Held(hang)),
        ("GRANT ROLE", Fault::Slow(hang)),
        ("GRANT ROLE", Fault::Held(hang)),
    ] {
        let mut world = World::start().await;
        world.simulator.fault(statement, fault.clone(), 1);
        let order = {
            let request = world.http.post(format!("{}/v1/leases", world.broker.url()));
            request
                .bearer_auth(world.identity.played().token_for("ada"))
                .json(&json!({"target": "lake"}))
        };
        let order = tokio::spawn(order.send());
        tokio::time::sleep(Duration::from_millis(400)).await;
        world.crash().await;
        assert!(order.await.unwrap().is_err(), "nobody was there to answer");
        let had_one = !world.lease_users().is_empty();
        assert_eq!(
            had_one,
            statement == "GRANT ROLE" || fault == Fault::Held(hang),
            "{statement} {fault:?}"
        );
        world.until_no_user_is_left().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_killed_between_any_two_statements_of_an_end_ends_it_when_it_is_back() {
    let hang = Duration::from_mins(10);
    for (statement, fault) in [
        ("ALTER USER", Fault::Slow(hang)),
        ("ALTER USER", Fault::Held(hang)),
        ("DROP USER", Fault::Slow(hang)),
        ("DROP USER", Fault::Held(hang)),
    ] {
        let mut world = World::start().await;
        let (_, issued) = world.order().await;
        world.simulator.fault(statement, fault.clone(), 1);
        let id = issued["lease"]["id"].as_str().unwrap();
        let (status, _) = world.call("DELETE", &format!("leases/{id}"), Value::Null).await;
        assert_eq!(status, 202, "it is being ended");
        world.crash().await;
        world.until_no_user_is_left().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_that_is_down_and_busy_and_loses_answers_gets_every_statement_once() {
    let world = World::start().await;
    world.simulator.fault("CREATE USER", Fault::too_many(), 1);
    world.simulator.fault("CREATE USER", Fault::Status(503, None), 1);
    world.simulator.fault("CREATE USER", Fault::LostAfter, 1);
    world.simulator.fault("GRANT ROLE", Fault::NotReady(2), 1);
    let (status, issued) = world.order().await;
    assert_eq!(status, 201, "{issued}\n{}", world.broker.log_tail(30));
    let transcript = world.simulator.transcript();
    let created: Vec<_> = transcript
        .iter()
        .filter(|said| said.text.starts_with("CREATE USER \"KDBT_ADA_0\""))
        .collect();
    assert_eq!(
        created.iter().filter(|said| said.outcome == Some(Ok(()))).count(),
        1,
        "{created:?}"
    );
    assert!(created.iter().skip(1).all(|said| said.retry), "who asks again says so");
    assert!(
        !created[0].retry || created.len() == 2,
        "who asks first does not: {created:?}"
    );

    world.simulator.is_down(true);
    let id = issued["lease"]["id"].as_str().unwrap();
    let (status, _) = world.call("DELETE", &format!("leases/{id}"), Value::Null).await;
    assert_eq!(status, 202);
    tokio::time::sleep(Duration::from_secs(2)).await;
    world.simulator.is_down(false);
    world.until_no_user_is_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_store_loses_no_user_and_a_mark_that_is_over_ends_it() {
    let mut world = World::start().await;
    let (_, kept) = world.order().await;
    assert_eq!(kept["lease"]["user"], "kdbt_ada_0");
    let (status, short) = world
        .call("POST", "leases", json!({"target": "lake", "ttl": "60s"}))
        .await;
    assert_eq!(status, 201, "{short}");
    world.broker.kill().await.unwrap();
    for ending in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{ending}", world.broker.store_file().display()));
    }
    world.simulator.set_ahead(90_000);
    world.broker.spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while world.lease_users() != ["KDBT_ADA_0"] {
        assert!(
            Instant::now() < deadline,
            "{:?}\n{}",
            world.lease_users(),
            world.broker.log_tail(30)
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// S23: a user is known by its mark and by no key, so what a holder adds to it goes with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_the_holder_adds_neither_saves_the_user_nor_opens_the_next_one() {
    let world = World::start().await;
    let (added, public) = PrivateKey::generate().unwrap();
    let added = added.secret().expose_secret();
    let opens = || world.simulator.log_in(&token(added, "KDBT_ADA_0")).is_ok();
    for _ in 0..2 {
        let (status, answer) = world.order().await;
        assert_eq!(status, 201, "{answer}");
        assert_eq!(world.lease_users(), ["KDBT_ADA_0"], "the name is used again");
        assert!(!opens(), "the key of the user before");
        let add = format!(
            "ALTER USER KDBT_ADA_0 SET RSA_PUBLIC_KEY_2 = '{}'",
            public.to_snowflake()
        );
        // Whoever may: the account's settings say whether that is the user itself.
        world.simulator.ask("KDBT_BROKER", &add).unwrap();
        assert!(opens(), "the added key is one");
        let id = answer["lease"]["id"].as_str().unwrap();
        let (status, renewed) = world
            .call("POST", &format!("leases/{id}/renew"), json!({"ttl": "90m"}))
            .await;
        assert_eq!(status, 200, "{renewed}");
        assert!(opens(), "a renewal takes no key away");
        let (status, _) = world.call("DELETE", &format!("leases/{id}"), Value::Null).await;
        assert_eq!(status, 200);
        assert!(world.lease_users().is_empty() && !opens());
    }
}
