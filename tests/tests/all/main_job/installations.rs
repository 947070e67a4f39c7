//! More than one broker, and more than one copy of a cluster: each ends what is its own (S13), and takes the tokens that
//! were made for it (S17).

use std::fs;
use std::time::Duration;

use kdbt_e2e::broker::{Broker, BrokerOptions, test_policies};
use kdbt_e2e::postgres::{PgServer, PgStop, PgVersion, Postgres};
use kdbt_e2e::stack::{DATABASE, Stack};
use serde_json::json;

use super::{Caller, Lease, exists, gone, own_stack, shared, within};

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
