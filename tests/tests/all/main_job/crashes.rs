//! The broker dies, its store is lost, its server is away: what is left behind is found and ended.

use std::time::Duration;

use kdbt_e2e::postgres::PgStop;
use kdbt_e2e::stack::Stack;
use rustix::process::Signal;
use serde_json::json;

use super::{Answer, Caller, Lease, exists, gone, own_stack, within};

/// Holds all statements that make or change roles, until it is dropped.
struct RolesHeld(tokio_postgres::Client);

impl RolesHeld {
    async fn by_superuser(stack: &Stack) -> Self {
        let client = stack.postgres.connect("postgres").await.unwrap();
        client
            .batch_execute("BEGIN; LOCK TABLE pg_catalog.pg_authid IN SHARE ROW EXCLUSIVE MODE")
            .await
            .unwrap();
        Self(client)
    }

    async fn release(self) {
        self.0.batch_execute("ROLLBACK").await.unwrap();
    }
}

/// Sends an order that hangs in the server, and comes back when it does.
async fn order_that_hangs(stack: &Stack) -> tokio::task::JoinHandle<reqwest::Result<Answer>> {
    let ada = Caller::person(stack, "ada");
    let order = tokio::spawn(async move { ada.send(ada.order(&json!({ "target": "team" }))).await });
    let waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND usename = 'kdbt__login_1'";
    within(Duration::from_secs(5), "the order waits for a lock", async || {
        !stack.rows(waiting).await.unwrap().is_empty()
    })
    .await;
    order
}

#[tokio::test]
async fn a_user_whose_broker_was_killed_before_it_knew_of_it_is_found_and_ended() {
    let mut stack = own_stack().await;
    let held = RolesHeld::by_superuser(&stack).await;
    let order = order_that_hangs(&stack).await;
    stack.broker.kill().await.unwrap();
    assert!(order.await.unwrap().is_err(), "nobody was there to answer");
    held.release().await;
    // The server finishes what it was told, whether anybody listens or not.
    within(Duration::from_secs(5), "the user is there", async || {
        !stack.lease_users().await.unwrap().is_empty()
    })
    .await;
    stack.broker.start().await.unwrap();
    within(Duration::from_secs(90), "no user without a live lease", async || {
        stack.lease_users().await.unwrap().is_empty()
    })
    .await;
}

#[tokio::test]
async fn an_end_that_a_kill_has_cut_is_done_at_once_by_the_next_broker() {
    let mut stack = own_stack().await;
    let ada = Caller::person(&stack, "ada");
    let lease = Lease::take(&ada, "team", "10m").await;
    let held = RolesHeld::by_superuser(&stack).await;
    ada.revoke(&lease.id).await.expect(202);
    stack.broker.kill().await.unwrap();
    held.release().await;
    stack.broker.start().await.unwrap();
    gone(&stack, &lease.user, Duration::from_secs(15)).await;
}

#[tokio::test]
async fn a_lease_outlives_its_broker_but_not_its_end() {
    let mut stack = own_stack().await;
    let ada = Caller::person(&stack, "ada");
    let (long, short) = (
        Lease::take(&ada, "team", "10m").await,
        Lease::take(&ada, "team", "2s").await,
    );
    stack.broker.kill().await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(exists(&stack, &short.user).await, "nobody was there to end it");
    assert!(
        short.connect(&stack).await.is_err(),
        "its native expiry holds all the same"
    );
    stack.broker.start().await.unwrap();
    gone(&stack, &short.user, Duration::from_secs(10)).await;
    long.connect(&stack).await.unwrap();
    ada.revoke(&long.id).await.expect(200);
    assert!(!exists(&stack, &long.user).await);
}

#[tokio::test]
async fn after_the_loss_of_the_store_users_live_on_to_their_end_and_no_longer() {
    let mut stack = own_stack().await;
    let ada = Caller::person(&stack, "ada");
    let lease = Lease::take(&ada, "team", "8s").await;
    stack.broker.kill().await.unwrap();
    for end in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{end}", stack.broker.store_file().display()));
    }
    stack.broker.start().await.unwrap();
    lease.connect(&stack).await.unwrap();
    gone(&stack, &lease.user, Duration::from_secs(20)).await;
    let late = jiff::Timestamp::now().duration_since(lease.ends_at).as_secs_f32();
    assert!((-0.1..6.0).contains(&late), "gone {late} s after its end");
}

#[tokio::test]
async fn a_term_lets_the_order_in_flight_be_delivered() {
    let mut stack = own_stack().await;
    let held = RolesHeld::by_superuser(&stack).await;
    let order = order_that_hangs(&stack).await;
    stack.broker.signal(Signal::TERM).unwrap();
    held.release().await;
    let lease = Lease::of(&order.await.unwrap().unwrap().expect(201).json());
    assert_eq!(
        stack.broker.wait(Duration::from_secs(25)).await.unwrap().code(),
        Some(0)
    );
    lease.connect(&stack).await.unwrap();
    stack.broker.start().await.unwrap();
    Caller::person(&stack, "ada").revoke(&lease.id).await.expect(200);
}

#[tokio::test]
async fn a_second_term_ends_it_at_once_with_an_error() {
    let mut stack = own_stack().await;
    let held = RolesHeld::by_superuser(&stack).await;
    let _order = order_that_hangs(&stack).await;
    stack.broker.signal(Signal::TERM).unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    stack.broker.signal(Signal::TERM).unwrap();
    assert_eq!(stack.broker.wait(Duration::from_secs(2)).await.unwrap().code(), Some(1));
    held.release().await;
}

#[tokio::test]
async fn nothing_is_issued_while_the_warehouse_is_away_and_all_is_well_when_it_is_back() {
    let mut stack = own_stack().await;
    let ada = Caller::person(&stack, "ada");
    let before = Lease::take(&ada, "team", "6s").await;
    stack.postgres.stop(PgStop::Fast).unwrap();
    let refused = ada.lease(&json!({ "target": "team" })).await.expect(503);
    assert!(refused.headers.contains_key("retry-after"), "{refused:?}");
    // Its own health is as good as ever: another server could still be served.
    ada.get("/readyz").await.expect(200);
    tokio::time::sleep(Duration::from_secs(7)).await;
    stack.postgres.restart().unwrap();
    within(Duration::from_secs(30), "leases are issued again", async || {
        let answer = ada.lease(&json!({ "target": "team", "ttl": "1m" })).await;
        answer.status.as_u16() == 201
    })
    .await;
    gone(&stack, &before.user, Duration::from_secs(15)).await;
}
