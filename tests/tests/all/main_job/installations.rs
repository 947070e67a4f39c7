//! More than one broker, and more than one copy of a cluster: each ends what is its own (S13), and takes the tokens that
//! were made for it (S17).

use std::fs;
use std::time::Duration;

use kdbt_e2e::broker::{Broker, BrokerOptions, test_policies};
use kdbt_e2e::postgres::{PgServer, PgStop, PgVersion, Postgres};
use kdbt_e2e::stack::{DATABASE, Stack};
use serde_json::json;

use super::{Caller, Lease, exists, gone, options, own_stack, shared, within};

/// Another broker with the same login, on this server, whose tokens name this audience.
fn another(stack: &Stack, postgres: &Postgres, installation: &str, audience: &str) -> Broker {
    let options = BrokerOptions {
        installation: installation.to_owned(),
        ..BrokerOptions::new(test_policies())
    };
    let broker = Broker::prepare(&options, postgres, &stack.identity.issuer()).unwrap();
    let config = broker.config_file();
    fs::write(config.with_file_name("dwh.password"), stack.broker.password()).unwrap();
    let text = fs::read_to_string(&config).unwrap();
    let text = text.replace("audiences: [kdbt-broker]", &format!("audiences: [{audience}]"));
    fs::write(config, text).unwrap();
    broker
}

/// Who calls the other broker.
fn at(broker: &Broker, caller: Caller) -> Caller {
    Caller {
        url: broker.url(),
        ..caller
    }
}

async fn lease_users(postgres: &Postgres) -> Vec<String> {
    let sql = "SELECT rolname FROM pg_roles WHERE shobj_description(oid, 'pg_authid') LIKE 'kdbt/1 % lse%' ORDER BY 1";
    let rows = postgres.execute("postgres", sql).await.unwrap();
    rows.into_iter().flatten().flatten().collect()
}

/// The cluster of a stack with a lease of ada's on it, and a copy of it. Both run, and the stack's broker as well.
async fn cloned() -> (Stack, Lease, PgServer) {
    let mut stack = own_stack().await;
    let lease = Lease::take(&Caller::person(&stack, "ada"), "team", "10m").await;
    stack.broker.stop().await.unwrap();
    stack.postgres.stop(PgStop::Fast).unwrap();
    let clone = stack.postgres.copy().unwrap();
    stack.postgres.restart().unwrap();
    stack.broker.start().await.unwrap();
    let identifier = "SELECT system_identifier FROM pg_control_system()";
    assert_eq!(
        stack.postgres.execute("postgres", identifier).await.unwrap(),
        clone.execute("postgres", identifier).await.unwrap(),
        "nothing in the catalog tells them apart"
    );
    (stack, lease, clone)
}

/// S17
#[tokio::test]
async fn a_token_for_dev_opens_nothing_at_prod_and_the_other_way_round() {
    let prod = shared(PgVersion::Pg18).await;
    let mut dev = another(prod, &prod.postgres, "dev", "kdbt-dev");
    dev.start().await.unwrap();
    let token = |audience: &serde_json::Value| {
        let forge = prod.identity.played().forge("ada").claim("aud", audience.clone());
        Caller::new(prod, forge.token())
    };
    for (audience, at_prod, at_dev) in [
        (json!("kdbt-broker"), true, false),
        (json!("kdbt-dev"), false, true),
        (json!(["account", "kdbt-dev"]), false, true),
    ] {
        let caller = token(&audience);
        for (welcome, caller) in [(at_prod, caller.clone()), (at_dev, at(&dev, caller))] {
            let order = json!({ "target": "team", "ttl": "1m" });
            let answer = caller.lease(&order).await;
            if welcome {
                let lease = Lease::of(&answer.expect(201).json());
                caller.revoke(&lease.id).await;
            } else {
                let refused = answer.expect(401).json();
                assert_eq!(refused["reason"], "wrong-audience", "{refused}");
                caller.get("/v1/leases").await.expect(401);
            }
        }
    }
}

/// S13
#[tokio::test]
async fn a_clone_of_the_cluster_is_another_server_and_nothing_done_there_reaches_the_original() {
    let (stack, lease, clone) = cloned().await;
    // A broker of the same installation that finds the clone without a store, as after a disaster.
    let mut again = another(&stack, &clone, "demo", "kdbt-broker");
    again.start().await.unwrap();
    let log = again.log().unwrap();
    assert!(
        log.contains("the sweep found differences") && log.contains("adopted: 1"),
        "{log}"
    );
    // The clone keeps its user to its own end, with the password that it was made with.
    let there = async || clone.connect_as(DATABASE, &lease.user, &lease.password).await;
    there().await.unwrap();
    Caller::person(&stack, "ada").revoke(&lease.id).await.expect(200);
    assert!(!exists(&stack, &lease.user).await);
    there().await.unwrap();
    assert_eq!(lease_users(&clone).await, [lease.user.as_str()]);
    // Its admin ends it there, and only there.
    let later = Lease::take(&Caller::person(&stack, "ada"), "team", "10m").await;
    assert_eq!(later.user, lease.user, "the same name, and on the original only");
    let admin = at(&again, Caller::person(&stack, "adm"));
    let ended = admin.revoke(&lease.id).await;
    assert!(matches!(ended.status.as_u16(), 200 | 202), "{ended:?}");
    within(Duration::from_secs(10), "the clone's user is gone", async || {
        lease_users(&clone).await.is_empty()
    })
    .await;
    later.connect(&stack).await.unwrap();
    // Two sweeps on, neither broker has touched the other's cluster.
    let of_clone = Lease::of(
        &at(&again, Caller::person(&stack, "ben"))
            .lease(&json!({ "target": "team", "ttl": "10m" }))
            .await
            .expect(201)
            .json(),
    );
    tokio::time::sleep(Duration::from_secs(11)).await;
    later.connect(&stack).await.unwrap();
    assert_eq!(lease_users(&stack.postgres).await, [later.user.as_str()]);
    assert_eq!(lease_users(&clone).await, [of_clone.user.as_str()]);
}

/// S13
#[tokio::test]
async fn one_broker_ends_on_a_clone_what_it_leased_on_the_original_and_another_installation_leaves_it_alone() {
    let (mut stack, lease, clone) = cloned().await;
    // Of another installation: foreign marks, and names that are taken.
    let mut foreign = another(&stack, &clone, "staging", "kdbt-broker");
    foreign.start().await.unwrap();
    let ada = at(&foreign, Caller::person(&stack, "ada"));
    let theirs = Lease::of(
        &ada.lease(&json!({ "target": "team", "ttl": "10m" }))
            .await
            .expect(201)
            .json(),
    );
    assert_ne!(theirs.user, lease.user);
    assert_eq!(lease_users(&clone).await, [lease.user.as_str(), theirs.user.as_str()]);
    clone.connect_as(DATABASE, &lease.user, &lease.password).await.unwrap();

    // The clone as a second server of the broker that has the original: its leases say where they were made.
    let config = stack.broker.config_file();
    let text = fs::read_to_string(&config).unwrap();
    let (_, server) = text.split_once("  dwh:\n").unwrap();
    let (server, _) = server.split_once("policies:").unwrap();
    let copy = server.replace(
        &format!("port: {}", stack.postgres.port()),
        &format!("port: {}", clone.port()),
    );
    assert_ne!(server, copy);
    fs::write(
        &config,
        text.replace("policies: policies", &format!("  copy:\n{copy}policies: policies")),
    )
    .unwrap();
    stack.broker.stop().await.unwrap();
    stack.broker.start().await.unwrap();
    within(
        Duration::from_secs(15),
        "the clone's copy of the user is gone",
        async || lease_users(&clone).await == [theirs.user.as_str()],
    )
    .await;
    assert!(exists(&stack, &lease.user).await);
    lease.connect(&stack).await.unwrap();
    Caller::person(&stack, "ada").revoke(&lease.id).await.expect(200);
    gone(&stack, &lease.user, Duration::from_secs(5)).await;
    assert_eq!(lease_users(&clone).await, [theirs.user.as_str()]);
}

/// S13: somebody else with CREATEROLE puts our mark on a role of theirs, with an end far ahead, a person's name and an
/// owner whose rights they want.
#[tokio::test]
async fn a_forged_mark_lives_no_longer_than_its_cap_and_is_lent_nobody_s_rights() {
    for version in PgVersion::ALL {
        let stack = Stack::start(&options(version), |_| {}).await.unwrap();
        let ada = Lease::take(&Caller::person(&stack, "ada"), "team", "10m").await;
        let mark = format!("SELECT shobj_description('{}'::regrole, 'pg_authid')", ada.user);
        let mark = stack.postgres.execute("postgres", &mark).await.unwrap();
        let mark = mark[0][0].clone().unwrap();
        let id = "lse_0192aaaabbbb7ccc8dddeeeeffff0000";
        let max = mark.split_once("max=").unwrap().1.split_once(' ').unwrap().0;
        let forged = mark.replace(&ada.id, id).replace(max, "99999999999");
        assert!(forged.contains("owner=dbt_analytics"), "{forged}");
        let from_16 = version.major() >= 16;
        let sql = format!(
            "CREATE ROLE other_app LOGIN CREATEROLE PASSWORD 'x'; GRANT CONNECT, CREATE ON DATABASE {DATABASE} TO other_app; \
             SET ROLE other_app; \
             CREATE ROLE kdbt_ada_77 LOGIN PASSWORD 'x' VALID UNTIL '2999-01-01'; {} \
             COMMENT ON ROLE kdbt_ada_77 IS '{forged}'",
            if from_16 {
                "GRANT kdbt_ada_77 TO kdbt__broker WITH ADMIN TRUE; GRANT kdbt_ada_77 TO other_app;"
            } else {
                ""
            }
        );
        stack.postgres.execute("postgres", &sql).await.unwrap();
        let plant = "CREATE SCHEMA trap; CREATE VIEW trap.secrets AS SELECT * FROM analytics.secrets; \
                     GRANT USAGE ON SCHEMA trap TO other_app; GRANT SELECT ON trap.secrets TO other_app; \
                     ALTER VIEW trap.secrets OWNER TO kdbt_ada_77; ALTER SCHEMA trap OWNER TO kdbt_ada_77";
        let secret = "CREATE TABLE analytics.secrets AS SELECT 'rows of the owner' AS text; ALTER TABLE analytics.secrets OWNER TO dbt_analytics";
        for sql in [secret, plant] {
            stack.postgres.execute(DATABASE, sql).await.unwrap();
        }

        let admin = Caller::person(&stack, "adm");
        let path = format!("/v1/leases/{id}");
        within(Duration::from_secs(15), "it is taken over", async || {
            admin.get(&path).await.status == 200
        })
        .await;
        let lease = admin.get(&path).await.json();
        let ends_at: jiff::Timestamp = lease["ends_at"].as_str().unwrap().parse().unwrap();
        let hours = ends_at.duration_since(jiff::Timestamp::now()).as_secs_f32() / 3600.0;
        assert!((11.9..12.01).contains(&hours), "it ends in {hours} h: {lease}");
        for caller in [&admin, &Caller::person(&stack, "ada")] {
            caller
                .post(&format!("{path}/renew"), &json!({ "ttl": "1h" }))
                .await
                .expect(404);
        }
        Caller::person(&stack, "ada").get(&path).await.expect(404);

        let ended = admin.revoke(id).await;
        assert!(matches!(ended.status.as_u16(), 200 | 202), "{ended:?}");
        within(Duration::from_secs(15), "it is dealt with", async || {
            let state = admin.get(&path).await.json()["state"].clone();
            state == "ended" || state == "quarantined"
        })
        .await;
        let lease = admin.get(&path).await.json();
        if from_16 {
            assert!(
                lease.to_string().contains("the broker did not make this role"),
                "{lease}"
            );
            let thief = stack.postgres.connect_as(DATABASE, "other_app", "x").await.unwrap();
            let read = thief.simple_query("SELECT * FROM trap.secrets").await;
            assert!(read.is_err(), "the view reads with the owner's rights: {read:?}");
        } else {
            assert_eq!(lease["state"], "ended", "{lease}");
        }
        assert!(stack.postgres.connect_as(DATABASE, "kdbt_ada_77", "x").await.is_err());
        Lease::take(&Caller::person(&stack, "ada"), "team", "1m").await;
    }
}
