//! The simulated account keeps the rules that its table of behaviours names, in both directions.

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256, RSA_PKCS1_SHA512};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use kdbt_e2e::snowflake::fault::Fault;
use kdbt_e2e::snowflake::{Simulator, token};
use serde_json::{Value, json};

/// An account with a broker's role and user in it, and a key of that user.
struct World {
    simulator: Simulator,
    key: KeyPair,
    http: reqwest::Client,
}

fn spki(key: &KeyPair) -> String {
    let der: PublicKeyX509Der<'_> = key.public_key().as_der().unwrap();
    STANDARD.encode(der.as_ref())
}

impl World {
    async fn new() -> Self {
        let simulator = Simulator::start("MYORG-MYACCT").await.unwrap();
        let key = KeyPair::generate(KeySize::Rsa2048).unwrap();
        let script = format!(
            "USE ROLE SECURITYADMIN; CREATE ROLE BROKER; GRANT CREATE USER ON ACCOUNT TO ROLE BROKER; \
             CREATE USER SVC TYPE = SERVICE RSA_PUBLIC_KEY = '{}' DEFAULT_ROLE = BROKER DEFAULT_SECONDARY_ROLES = (); \
             GRANT ROLE BROKER TO USER SVC; CREATE ROLE ANALYST; CREATE ROLE WRAP; GRANT ROLE ANALYST TO ROLE WRAP; \
             GRANT OWNERSHIP ON ROLE WRAP TO ROLE BROKER COPY CURRENT GRANTS",
            spki(&key)
        );
        simulator.run_script(&script).unwrap();
        Self {
            simulator,
            key,
            http: reqwest::Client::builder().user_agent("test/1").build().unwrap(),
        }
    }

    fn claims(&self) -> Value {
        let fingerprint = token::fingerprint(&spki(&self.key)).unwrap();
        let now = jiff::Timestamp::now().as_second();
        json!({"iss": format!("MYORG-MYACCT.SVC.{fingerprint}"), "sub": "MYORG-MYACCT.SVC", "iat": now, "exp": now + 60})
    }

    fn sign(&self, claims: &Value) -> String {
        sign(&self.key, "RS256", claims)
    }

    async fn ask(&self, query: &str, body: &Value) -> (u16, Value) {
        let request = self
            .http
            .post(format!("{}/api/v2/statements{query}", self.simulator.url()));
        let request = request
            .bearer_auth(self.sign(&self.claims()))
            .header("accept", "application/json");
        let answer = request.json(body).send().await.unwrap();
        let status = answer.status().as_u16();
        (status, answer.json().await.unwrap_or_default())
    }

    async fn run(&self, statement: &str) -> (u16, Value) {
        self.ask("", &json!({"statement": statement, "role": "BROKER"})).await
    }

    /// The code of an answer.
    async fn code(&self, statement: &str) -> String {
        self.run(statement).await.1["code"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }
}

fn sign(key: &KeyPair, alg: &str, claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(&json!({"typ": "JWT", "alg": alg})), part(claims));
    let padding = if alg == "RS256" {
        &RSA_PKCS1_SHA256
    } else {
        &RSA_PKCS1_SHA512
    };
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign(padding, &SystemRandom::new(), signed.as_bytes(), &mut signature)
        .unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

#[tokio::test]
async fn a_token_that_breaks_one_rule_is_refused_for_that_rule_and_the_public_answer_hides_it() {
    let world = World::new().await;
    let good = world.claims();
    assert_eq!(world.simulator.log_in(&world.sign(&good)), Ok("SVC".to_owned()));
    let with = |name: &str, value: Value| {
        let mut claims = good.clone();
        claims[name] = value;
        claims
    };
    let now = good["iat"].as_i64().unwrap();
    let iss = good["iss"].as_str().unwrap();
    for (claims, cause) in [
        (with("sub", json!("myorg-myacct.SVC")), "394307"),
        (with("sub", json!("OTHER.SVC")), "394307"),
        (with("sub", json!("MYORG-MYACCT.NOBODY")), "394300"),
        (with("iss", json!(iss.replace("SHA256:", "SHA256:A"))), "394304"),
        (with("iat", json!(now + 30)), "394302"),
        (with("iat", json!(now - 90)), "394302"),
        (with("exp", json!(now - 1)), "394303"),
        (with("iat", json!("now")), "394301"),
        (with("exp", Value::Null), "394301"),
    ] {
        assert_eq!(world.simulator.log_in(&world.sign(&claims)), Err(cause), "{claims}");
    }
    assert_eq!(world.simulator.log_in(&sign(&world.key, "RS512", &good)), Err("394305"));
    let other = KeyPair::generate(KeySize::Rsa2048).unwrap();
    assert_eq!(world.simulator.log_in(&sign(&other, "RS256", &good)), Err("394306"));

    let request = world
        .http
        .post(format!("{}/api/v2/statements", world.simulator.url()))
        .bearer_auth("x.y.z");
    let answer = request
        .header("accept", "application/json")
        .json(&json!({"statement": "x"}))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 401);
    let body: Value = answer.json().await.unwrap();
    let id = world.simulator.login_failures().pop().unwrap().id;
    assert_eq!(body["message"], format!("JWT token is invalid. [{id}]"));
    assert!(world.simulator.transcript().is_empty());
}

#[tokio::test]
async fn five_wrong_keys_lock_a_user_and_a_quarter_of_an_hour_opens_it() {
    let world = World::new().await;
    let other = KeyPair::generate(KeySize::Rsa2048).unwrap();
    for _ in 0..5 {
        assert_eq!(
            world.simulator.log_in(&sign(&other, "RS256", &world.claims())),
            Err("394306")
        );
    }
    assert_eq!(world.simulator.log_in(&world.sign(&world.claims())), Err("390102"));
    let locked = 15 * 60_000 + 1000;
    world.simulator.set_ahead(locked);
    let mut claims = world.claims();
    claims["iat"] = json!(claims["iat"].as_i64().unwrap() + locked / 1000);
    claims["exp"] = json!(claims["exp"].as_i64().unwrap() + locked / 1000);
    assert_eq!(world.simulator.log_in(&world.sign(&claims)), Ok("SVC".to_owned()));
}

#[tokio::test]
async fn what_it_does_not_know_is_a_syntax_error_and_one_request_is_one_statement() {
    let world = World::new().await;
    for (text, code) in [
        ("DELETE FROM x", "001003"),
        ("USE ROLE ACCOUNTADMIN", "001003"),
        ("CREATE USER \"A TYPE = SERVICE", "001003"),
        ("CREATE USER A COMMENT = 'it's'", "001003"),
        ("CREATE USER A PASSWORD = 'x'", "001003"),
        ("CREATE USER A TYPE = ROBOT", "001003"),
        ("DROP USER A B", "001003"),
        ("SHOW USERS LIMIT 10001", "001003"),
        ("DROP USER A; DROP USER B", "000008"),
        ("CREATE USER A RSA_PUBLIC_KEY = 'AAAA'", "003555"),
    ] {
        assert_eq!(world.code(text).await, code, "{text}");
    }
    assert_eq!(world.code("DROP USER IF EXISTS A;").await, "090001");
    let (status, body) = world
        .ask("", &json!({"statement": "SELECT CURRENT_ROLE()", "rolle": "x"}))
        .await;
    assert_eq!((status, &body["code"]), (400, &json!("390142")));
}

#[tokio::test]
async fn only_owners_change_users_and_grant_roles() {
    let world = World::new().await;
    assert_eq!(
        world
            .code("CREATE USER \"L\" TYPE = SERVICE COMMENT = 'it''s \\\\ mine'")
            .await,
        "090001"
    );
    assert_eq!(world.code("CREATE USER L").await, "002002");
    assert_eq!(
        world
            .simulator
            .look(|account| account.user("L").unwrap().comment.clone())
            .unwrap(),
        r"it's \ mine"
    );
    assert_eq!(world.code("GRANT ROLE ANALYST TO USER L").await, "003001");
    assert_eq!(world.code("GRANT ROLE MISSING TO USER L").await, "002003");
    assert_eq!(world.code("GRANT ROLE WRAP TO USER L").await, "090001");
    assert!(
        world
            .simulator
            .look(|account| account.may_use("L", "ANALYST") && !account.may_use("L", "BROKER"))
    );
    assert_eq!(world.code("ALTER USER L RENAME TO SVC").await, "002002");
    assert_eq!(world.code("ALTER USER ADMIN RENAME TO M").await, "003001");
    assert_eq!(world.code("ALTER USER L RENAME TO M").await, "090001");
    assert!(
        world
            .simulator
            .look(|account| account.may_use("M", "ANALYST") && !account.may_use("L", "ANALYST"))
    );
    assert_eq!(world.code("ALTER USER M RENAME TO L").await, "090001");
    assert_eq!(world.code("ALTER USER ADMIN SET DISABLED = TRUE").await, "003001");
    assert_eq!(world.code("DROP USER IF EXISTS ADMIN").await, "003001");
    assert_eq!(world.code("DROP USER GONE").await, "002003");
    let (_, listed) = world.run("SHOW USERS").await;
    let names: Vec<&Value> = listed["data"].as_array().unwrap().iter().map(|row| &row[0]).collect();
    assert_eq!(names, ["ADMIN", "L", "SVC"]);
    assert_eq!(
        listed["data"][0][4],
        Value::Null,
        "a comment of a user that is not ours"
    );
    assert_eq!(listed["data"][1][4], r"it's \ mine");
    let (status, body) = world
        .ask("", &json!({"statement": "SELECT CURRENT_ROLE()", "role": "ANALYST"}))
        .await;
    assert_eq!((status, &body["code"]), (422, &json!("390186")));
}

#[tokio::test]
async fn a_user_is_renamed_and_handed_over_by_its_owner_and_keeps_what_it_has() {
    let world = World::new().await;
    let made = format!(
        "CREATE USER L TYPE = SERVICE RSA_PUBLIC_KEY = '{}' COMMENT = 'mine'",
        spki(&world.key)
    );
    for text in [made.as_str(), "GRANT ROLE WRAP TO USER L", "ALTER USER L RENAME TO M"] {
        assert_eq!(world.code(text).await, "090001", "{text}");
    }
    world.simulator.look(|account| {
        assert!(account.user("L").is_none() && account.may_use("M", "WRAP") && !account.may_use("L", "WRAP"));
        assert_eq!(account.user("M").unwrap().comment.as_deref(), Some("mine"));
    });
    assert_eq!(world.code("ALTER USER M RENAME TO SVC").await, "002002");
    assert_eq!(world.code("ALTER USER ADMIN RENAME TO X").await, "003001");
    assert_eq!(
        world
            .code("GRANT OWNERSHIP ON USER ADMIN TO ROLE BROKER COPY CURRENT GRANTS")
            .await,
        "003001"
    );
    assert_eq!(world.code("GRANT OWNERSHIP ON USER M TO ROLE SYSADMIN").await, "001003");
    assert_eq!(
        world
            .code("GRANT OWNERSHIP ON USER M TO ROLE SYSADMIN COPY CURRENT GRANTS")
            .await,
        "090001"
    );
    let (_, listed) = world.run("SHOW USERS STARTS WITH 'M'").await;
    let row = &listed["data"][0];
    assert!(
        row[0] == "M" && row.as_array().unwrap()[1..].iter().all(Value::is_null),
        "{row}"
    );
    assert_eq!(world.code("DESCRIBE USER M").await, "003001");
    assert_eq!(world.code("ALTER USER IF EXISTS M SET DISABLED = TRUE").await, "003001");
}

#[tokio::test]
async fn policies_must_exist_and_the_privilege_to_set_them_be_held() {
    let world = World::new().await;
    assert_eq!(world.code("CREATE USER L").await, "090001");
    let set = "ALTER USER L SET SESSION POLICY DB.S.P";
    assert_eq!(world.code(set).await, "002003");
    assert_eq!(world.code("CREATE SESSION POLICY DB.S.P").await, "003001");
    world.simulator.run_script("CREATE SESSION POLICY DB.S.P").unwrap();
    assert_eq!(world.code(set).await, "003001");
    let give = "USE ROLE SECURITYADMIN; GRANT APPLY SESSION POLICY ON ACCOUNT TO ROLE BROKER";
    world.simulator.run_script(give).unwrap();
    assert_eq!(world.code(set).await, "090001");

    let policy = |name: &str, address: &str| {
        let script = format!(
            "USE ROLE SECURITYADMIN; CREATE NETWORK POLICY {name} ALLOWED_IP_LIST = ('{address}'); \
             ALTER USER SVC SET NETWORK_POLICY = {name}"
        );
        world.simulator.run_script(&script).unwrap();
    };
    policy("HERE", "127.0.0.1");
    assert_eq!(world.code("SELECT CURRENT_ROLE()").await, "090001");
    policy("ELSEWHERE", "203.0.113.7");
    let (status, body) = world.run("SELECT CURRENT_ROLE()").await;
    assert_eq!((status, &body["code"]), (403, &json!("390422")));
}

#[tokio::test]
async fn what_a_role_owns_is_listed_with_the_time_it_was_made() {
    let world = World::new().await;
    let now = world.simulator.change(|account| {
        account.plant("TASK", "DB.S.T", "ANALYST");
        account.now()
    });
    let (_, listed) = world.run("SHOW GRANTS TO ROLE ANALYST").await;
    let row = listed["data"]
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row[2] == "TASK")
        .unwrap();
    assert_eq!((&row[1], &row[3]), (&json!("OWNERSHIP"), &json!("DB.S.T")));
    assert_eq!(row[0], format!("{}.{:03}000000", now / 1000, now % 1000));
    assert_eq!(
        world.code("CREATE TASK DB.S.T").await,
        "001003",
        "nobody of ours makes one"
    );
}

#[tokio::test]
async fn a_repeated_request_is_executed_once_only_if_it_says_so_and_had_succeeded() {
    let world = World::new().await;
    let create = json!({"statement": "CREATE USER L", "role": "BROKER"});
    let id = "0190a1b2-0000-7000-8000-000000000001";
    assert_eq!(world.ask(&format!("?requestId={id}"), &create).await.0, 200);
    assert_eq!(
        world.ask(&format!("?requestId={id}"), &create).await.1["code"],
        "002002"
    );
    assert_eq!(world.ask(&format!("?requestId={id}&retry=true"), &create).await.0, 200);
    let never = "0190a1b2-0000-7000-8000-000000000002";
    assert_eq!(
        world.ask(&format!("?requestId={never}&retry=true"), &create).await.1["code"],
        "002002"
    );
    let said = world.simulator.transcript();
    assert_eq!(said.iter().filter(|said| said.outcome == Some(Ok(()))).count(), 1);
    assert_eq!(said.iter().filter(|said| said.outcome.is_none()).count(), 1);
}

#[tokio::test]
async fn faults_meet_the_statement_that_they_are_for_and_no_other() {
    let world = World::new().await;
    world.simulator.fault("CREATE USER", Fault::too_many(), 1);
    world.simulator.fault("CREATE USER", Fault::Status(503, None), 1);
    world.simulator.fault("CREATE USER", Fault::NotReady(2), 1);
    assert_eq!(world.run("SELECT CURRENT_ROLE()").await.0, 200);
    assert_eq!(world.run("CREATE USER L").await.0, 429);
    assert_eq!(world.run("CREATE USER L").await.0, 503);
    let (status, body) = world.run("CREATE USER L").await;
    assert_eq!((status, &body["code"]), (202, &json!("333334")));
    let url = format!(
        "{}{}",
        world.simulator.url(),
        body["statementStatusUrl"].as_str().unwrap()
    );
    let look = || async {
        let request = world
            .http
            .get(&url)
            .bearer_auth(world.sign(&world.claims()))
            .header("accept", "application/json");
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!((look().await, look().await), (202, 200));
    world.simulator.fault("DROP USER", Fault::LostAfter, 1);
    let request = world
        .http
        .post(format!("{}/api/v2/statements", world.simulator.url()))
        .bearer_auth(world.sign(&world.claims()));
    let request = request
        .header("accept", "application/json")
        .json(&json!({"statement": "DROP USER L", "role": "BROKER"}));
    let lost = match request.send().await {
        Ok(answer) => answer.bytes().await.is_err(),
        Err(_) => true,
    };
    assert!(lost);
    assert!(world.simulator.look(|account| account.user("L").is_none()));
}

#[tokio::test]
async fn a_long_answer_comes_in_partitions_and_pages() {
    let world = World::new().await;
    for name in ["A", "B", "C", "D", "E"] {
        assert_eq!(world.code(&format!("CREATE USER X_{name}")).await, "090001");
    }
    world.simulator.partitions_of(2);
    let (_, body) = world.run("SHOW USERS STARTS WITH 'X_'").await;
    assert_eq!(body["resultSetMetaData"]["partitionInfo"].as_array().unwrap().len(), 3);
    assert_eq!(body["data"].as_array().unwrap().len(), 2);
    let (_, page) = world.run("SHOW USERS STARTS WITH 'X_' LIMIT 2 FROM 'X_D'").await;
    assert_eq!(page["data"].as_array().unwrap().len(), 1);
}

#[test]
fn every_assumption_stands_in_the_document_that_operators_read() {
    use kdbt_e2e::snowflake::behaviour::{BEHAVIOURS, Source};
    let document = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/snowflake.md")).unwrap();
    let mut assumed = 0;
    for behaviour in BEHAVIOURS {
        if let Source::Assumption(number) = behaviour.source {
            assumed += 1;
            assert!(
                document.contains(&format!("| {number} | {} |", behaviour.what)),
                "{behaviour:?}"
            );
        }
    }
    assert!(assumed > 5);
}
