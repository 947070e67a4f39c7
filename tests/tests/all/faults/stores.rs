//! The store is full, cannot be written, is removed or replaced: nothing is issued that is not written down, and users
//! end all the same.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use kdbt_broker::audit::verify::Expected;
use kdbt_broker::failpoint::Point;
use kdbt_broker::store::sqlite::verify_store;
use kdbt_e2e::fault::caller::Caller;
use kdbt_e2e::fault::{Act, caller, check, stack, steps};
use kdbt_e2e::postgres::PgVersion;
use kdbt_e2e::stack::Stack;
use rusqlite::Connection;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::json;

/// More than the broker logs in a test, less than its store holds.
const FULL: u64 = 128 * 1024;

/// No file of the broker grows past this; what stands in the store stays readable.
fn limit_files(stack: &Stack, bytes: Option<u64>) {
    let pid = stack
        .broker
        .pid()
        .and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    let limit = Rlimit {
        current: bytes,
        maximum: None,
    };
    prlimit(pid, Resource::Fsize, limit).unwrap();
}

/// Issues until the journal alone is past the limit.
async fn fill(stack: &Stack, caller: &Caller) {
    let journal = format!("{}-wal", stack.broker.store_file().display());
    while fs::metadata(&journal).unwrap().len() < 2 * FULL {
        let lease = caller.take("team", "10m").await.unwrap();
        caller.revoke(&lease.id).await.unwrap();
    }
    let log = fs::metadata(stack.broker.log_file()).unwrap().len();
    assert!(log < FULL / 2, "the log is too long for this test: {log}");
}

async fn store_is_well(stack: &Stack) -> (bool, String) {
    let answer = reqwest::get(format!("{}/readyz", stack.broker.management_url()))
        .await
        .unwrap();
    let well = answer.status().is_success();
    let checks: serde_json::Value = answer.json().await.unwrap();
    let checks = checks["checks"].as_array().unwrap();
    let store = checks.iter().find(|check| check["name"] == "store").unwrap();
    (well, store["detail"].as_str().unwrap().to_owned())
}

async fn gone(stack: &Stack, user: &str) {
    let start = Instant::now();
    while stack.lease_users().await.unwrap().iter().any(|one| one == user) {
        let log = stack.broker.log_tail(20);
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "{user} is still there:\n{log}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn copy_store(from: &Path, to: &Path) {
    for end in ["", "-wal", "-shm"] {
        let name = |path: &Path| format!("{}{end}", path.display());
        let _ = fs::remove_file(name(to));
        let _ = fs::copy(name(from), name(to));
    }
}

#[tokio::test]
async fn while_the_store_is_full_nothing_is_issued_and_users_end_at_their_time() {
    let stack = stack(PgVersion::Pg18).await.unwrap();
    let ada = Caller::person(&stack, "ada").unwrap();
    fill(&stack, &ada).await;
    let long = ada.take("team", "10m").await.unwrap();
    let short = ada.take("team", "3s").await.unwrap();
    let session = short.connect(&stack).await.unwrap();
    let head = check::audit(&stack, None).unwrap();
    limit_files(&stack, Some(FULL));

    let refused = ada.order(&json!({ "target": "team" })).await.unwrap();
    assert_eq!((refused.status, &refused.body["code"]), (503, &json!("store-down")));
    let (well, detail) = store_is_well(&stack).await;
    assert!(!well && !detail.contains("live leases"), "{detail}");
    assert!(stack.broker.log().unwrap().contains("the store could not commit"));
    let not_written = ada.revoke(&long.id).await.unwrap();
    assert_eq!(
        not_written.status, 503,
        "what cannot be written down is not promised: {not_written:?}"
    );
    gone(&stack, &short.user).await;
    assert!(session.simple_query("SELECT 1").await.is_err());
    long.connect(&stack).await.unwrap();

    limit_files(&stack, None);
    let after = ada.take("team", "10m").await.unwrap();
    after.connect(&stack).await.unwrap();
    check::settled(&stack).await.unwrap();
    for lease in [long, after] {
        ada.revoke(&lease.id).await.unwrap();
    }
    check::empty(&stack, check::ONE_SWEEP).await.unwrap();
    check::audit(&stack, Some(head)).unwrap();
}

#[tokio::test]
async fn a_broker_that_cannot_write_its_store_does_not_start_and_says_why() {
    let mut stack = stack(PgVersion::Pg18).await.unwrap();
    let ada = Caller::person(&stack, "ada").unwrap();
    fill(&stack, &ada).await;
    let lease = ada.take("team", "10m").await.unwrap();
    stack.broker.kill().await.unwrap();
    let logged = stack.broker.log().unwrap().len();
    stack.broker.script(Point::StartConfigured, Act::Pause).unwrap();
    stack.broker.spawn().unwrap();
    stack.broker.wait_at(Point::StartConfigured, logged).await.unwrap();
    limit_files(&stack, Some(FULL));
    stack.broker.clear_script().unwrap();
    let ended = stack.broker.wait(Duration::from_secs(20)).await.unwrap();
    assert_eq!(ended.code(), Some(1));
    let said = stack.broker.log().unwrap().split_off(logged);
    assert!(said.contains("the store cannot be opened"), "{said}");
    stack.broker.start().await.unwrap();
    check::settled(&stack).await.unwrap();
    lease.connect(&stack).await.unwrap();
}

#[tokio::test]
async fn a_store_that_was_removed_under_a_running_broker_stops_issuing_until_the_restart() {
    let mut stack = stack(PgVersion::Pg18).await.unwrap();
    let ada = Caller::person(&stack, "ada").unwrap();
    let long = ada.take("team", "10m").await.unwrap();
    let short = ada.take("team", "2s").await.unwrap();
    steps::remove_store(&stack);
    let refused = ada.order(&json!({ "target": "team" })).await.unwrap();
    assert_eq!((refused.status, &refused.body["code"]), (503, &json!("store-down")));
    let (well, detail) = store_is_well(&stack).await;
    assert!(!well && detail.contains("removed or replaced"), "{detail}");
    gone(&stack, &short.user).await;

    stack.broker.kill().await.unwrap();
    stack.broker.start().await.unwrap();
    check::settled(&stack).await.unwrap();
    long.connect(&stack).await.unwrap();
    ada.take("team", "10m").await.unwrap();
    caller::revoke_all(&stack).await.unwrap();
    check::empty(&stack, check::ONE_SWEEP).await.unwrap();
    check::audit(&stack, None).unwrap();
}

#[tokio::test]
async fn an_older_copy_of_the_store_takes_over_what_it_does_not_know_and_its_audit_shows_the_gap() {
    let mut stack = stack(PgVersion::Pg18).await.unwrap();
    let ada = Caller::person(&stack, "ada").unwrap();
    let (kept, given_back) = (
        ada.take("team", "10m").await.unwrap(),
        ada.take("team", "10m").await.unwrap(),
    );
    let backup = tempfile::tempdir().unwrap();
    let copy = backup.path().join("kdbt.db");
    stack.broker.stop().await.unwrap();
    copy_store(&stack.broker.store_file(), &copy);
    stack.broker.start().await.unwrap();
    let unknown = ada.take("team", "10m").await.unwrap();
    ada.revoke(&given_back.id).await.unwrap();
    let head = check::audit(&stack, None).unwrap();

    stack.broker.kill().await.unwrap();
    // The copy is some minutes old: a young lease without a user may still be on its way.
    let db = Connection::open(&copy).unwrap();
    db.execute("UPDATE leases SET issued_at = issued_at - 120000", [])
        .unwrap();
    drop(db);
    copy_store(&copy, &stack.broker.store_file());
    stack.broker.start().await.unwrap();
    check::settled(&stack).await.unwrap();
    kept.connect(&stack).await.unwrap();
    unknown.connect(&stack).await.unwrap();
    let expected = Expected {
        head: Some(head),
        installation: None,
    };
    let report = verify_store(&stack.broker.store_file(), None, &expected).unwrap();
    assert!(!report.is_sound(), "a cut tail must show");
    caller::revoke_all(&stack).await.unwrap();
    check::empty(&stack, check::ONE_SWEEP).await.unwrap();
}
