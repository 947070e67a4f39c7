//! What happens to files and processes: killed, full, locked, swapped, newer, damaged.

use std::io::BufRead;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use kdbt_api::lease::{LeaseId, LeaseStatus};
use kdbt_broker::audit::Actor;
use kdbt_broker::audit::chain::{AuditKey, Head};
use kdbt_broker::audit::verify::{Expected, Flaw};
use kdbt_broker::clock::ManualClock;
use kdbt_broker::lease::LeaseEvent;
use kdbt_broker::store::sqlite::{OpenError, SqliteStore, verify_store};
use kdbt_broker::store::{BookError, Change, Due, LeaseFilter, LeaseStore, Page, StoreError};
use kdbt_e2e::contract::store::{at, book, booking, created, end_due, server};
use rusqlite::Connection;

use super::{SqliteFile, open, options};

/// Names the store to the child.
const CHILD: &str = "KDBT_TEST_STORE";

/// Not a test: the process that the next one kills.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "the child of `what_was_acknowledged_outlives_kill_9`"]
async fn books_until_it_is_killed() {
    let Some(path) = std::env::var_os(CHILD) else { return };
    let store = std::sync::Arc::new(open(path.as_ref()).unwrap());
    let mut bookers = tokio::task::JoinSet::new();
    for booker in 0..8 {
        let store = store.clone();
        bookers.spawn(async move {
            for n in 0.. {
                let mut order = booking(&format!("b{booker}n{n}"), 0);
                (order.limits.per_rule, order.limits.per_target) = (u32::MAX, u32::MAX);
                let lease = book(&*store, order).await;
                println!("acknowledged {}", lease.id);
            }
        });
    }
    bookers.join_all().await;
}

#[tokio::test]
async fn what_was_acknowledged_outlives_kill_9() {
    let file = SqliteFile::new();
    let mut acknowledged = Vec::new();
    for _run in 0..3 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "store::faults::books_until_it_is_killed",
                "--exact",
                "--ignored",
                "--nocapture",
            ])
            .env(CHILD, file.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
        let mut count = 0;
        for line in lines {
            let line = line.unwrap();
            let Some((_, id)) = line.split_once("acknowledged ") else {
                continue;
            };
            // The kill may cut the last line.
            acknowledged.extend(id.parse::<LeaseId>());
            count += 1;
            if count == 100 {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
    }
    assert!(acknowledged.len() >= 300);
    let store = file.store();
    for id in acknowledged {
        store.lease(id).await.unwrap();
    }
    let head = store.audit_head().await.unwrap();
    let expected = Expected {
        head: Some(head),
        installation: Some("acme".parse().unwrap()),
    };
    let report = verify_store(&file.path(), None, &expected).unwrap();
    assert_eq!(report.findings, []);
    assert_eq!(report.chains, 4, "one per run");
}

#[test]
fn a_second_broker_is_kept_out_until_the_first_has_gone() {
    let file = SqliteFile::new();
    let first = file.store();
    let error = open(&file.path()).unwrap_err();
    assert!(matches!(error, OpenError::Locked(_)));
    assert!(error.to_string().contains("another broker has the store"), "{error}");
    drop(first);
    file.store();
}

#[test]
fn only_the_owner_can_read_the_files() {
    let file = SqliteFile::new();
    std::fs::write(file.path(), "").unwrap();
    std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o644)).unwrap();
    let _store = file.store();
    for entry in std::fs::read_dir(file.folder.path()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{:?}", entry.file_name());
    }
}

#[tokio::test]
async fn a_full_disk_refuses_bookings_and_the_store_lives_on() {
    let file = SqliteFile::new();
    let mut options = options();
    options.max_pages = Some(64);
    let store = SqliteStore::open(&file.path(), options, ManualClock::at(at(0))).unwrap();
    let mut leases = Vec::new();
    let error = loop {
        match store.book(booking(&format!("p{}", leases.len()), 0)).await {
            Ok(_) => leases.push(format!("kdbt_p{}_0", leases.len())),
            Err(error) => break error,
        }
    };
    assert!(
        matches!(&error, BookError::Store(StoreError::Unavailable(why)) if why.contains("full")),
        "{error:?}"
    );
    assert!(!leases.is_empty());
    let page = Page {
        after: None,
        limit: 500,
    };
    let mut found: Vec<_> = store.leases(&LeaseFilter::default(), page).await.unwrap().leases;
    found.reverse();
    let names: Vec<_> = found.iter().map(|lease| lease.username.to_string()).collect();
    assert_eq!(names, leases, "all that was acknowledged, and nothing else");
    drop(store);
    // There is room again.
    let store = file.store();
    book(&store, booking("late", 0)).await;
    assert!(
        verify_store(&file.path(), None, &Expected::default())
            .unwrap()
            .is_sound()
    );
}

#[tokio::test]
async fn while_another_process_holds_the_file_nothing_is_written_and_then_it_goes_on() {
    let file = SqliteFile::new();
    let store = file.store();
    let other = Connection::open(file.path()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let error = store.book(booking("ada", 0)).await.unwrap_err();
    assert!(
        matches!(&error, BookError::Store(StoreError::Unavailable(why)) if why.contains("locked")),
        "{error:?}"
    );
    assert!(store.health().await.is_err(), "it says so");
    other.execute_batch("ROLLBACK").unwrap();
    assert_eq!(book(&store, booking("ada", 0)).await.username.as_str(), "kdbt_ada_0");
    store.health().await.unwrap();
    assert!(
        verify_store(&file.path(), None, &Expected::default())
            .unwrap()
            .is_sound()
    );
}

#[tokio::test]
async fn a_store_of_the_first_schema_becomes_one_of_the_newest() {
    let file = SqliteFile::new();
    let db = Connection::open(file.path()).unwrap();
    let first = include_str!("../../../../broker/src/store/sqlite/schema/1.sql");
    db.execute_batch(first).unwrap();
    db.pragma_update(None, "application_id", 0x6b64_6274).unwrap();
    db.pragma_update(None, "user_version", 1).unwrap();
    drop(db);
    let store = open(&file.path()).unwrap();
    let database = "analytics".parse().unwrap();
    assert_eq!(store.last_scan(&server(), &database).await.unwrap(), None);
    book(&store, booking("ada", 0)).await;
}

#[test]
fn a_file_that_is_not_this_installations_store_is_refused_with_the_reason() {
    let file = SqliteFile::new();
    drop(file.store());
    let other = kdbt_broker::store::sqlite::SqliteOptions::new("other".parse().unwrap());
    let error = SqliteStore::open(&file.path(), other, ManualClock::at(at(0))).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("belongs to the installation `acme`, not to `other`"),
        "{error}"
    );

    let db = Connection::open(file.path()).unwrap();
    db.pragma_update(None, "user_version", 99).unwrap();
    drop(db);
    let error = open(&file.path()).unwrap_err();
    assert!(matches!(
        error,
        OpenError::Newer {
            found: 99,
            known: 2,
            ..
        }
    ));
    assert!(error.to_string().contains("use a newer broker"), "{error}");

    let foreign = SqliteFile::new();
    let db = Connection::open(foreign.path()).unwrap();
    db.execute_batch("CREATE TABLE t (x)").unwrap();
    assert!(matches!(open(&foreign.path()), Err(OpenError::Foreign(_))));

    let text = SqliteFile::new();
    std::fs::write(text.path(), "this is a text and no database".repeat(99)).unwrap();
    let error = open(&text.path()).unwrap_err();
    assert!(error.to_string().contains("not a database"), "{error}");

    let nowhere = text.folder.path().join("none/kdbt.db");
    let error = open(&nowhere).unwrap_err();
    assert!(error.to_string().contains("its folder must exist"), "{error}");
}

#[tokio::test]
async fn a_damaged_row_is_named_and_keeps_no_other_lease_from_ending() {
    let file = SqliteFile::new();
    let store = file.store();
    let mut ids = Vec::new();
    for name in ["ada", "grace"] {
        let lease = book(&store, booking(name, 0)).await;
        store
            .record(Change::new(&lease, created(1), Actor::Broker, at(1)))
            .await
            .unwrap();
        ids.push(lease.id);
    }
    let db = Connection::open(file.path()).unwrap();
    for (column, damage) in [
        ("username", "'x y'"),
        ("access", "'{}'"),
        ("engine_id", "'?'"),
        ("owner_proof", "x'00'"),
    ] {
        let id = ids[0].to_string();
        let old: rusqlite::types::Value = db
            .query_row(&format!("SELECT {column} FROM leases WHERE id = ?1"), [&id], |row| {
                row.get(0)
            })
            .unwrap();
        db.execute(&format!("UPDATE leases SET {column} = {damage} WHERE id = ?1"), [&id])
            .unwrap();
        let error = store.lease(ids[0]).await.unwrap_err();
        assert!(
            matches!(&error, StoreError::Corrupt { table: "leases", row, what } if *row == id && what.contains(column)),
            "{error:?}"
        );
        db.execute(&format!("UPDATE leases SET {column} = ?2 WHERE id = ?1"), (&id, old))
            .unwrap();
    }
    store.lease(ids[0]).await.unwrap();
    db.execute("UPDATE leases SET access = '{}' WHERE id = ?1", [ids[0].to_string()])
        .unwrap();
    let due = Due {
        server: &server(),
        now: at(3600),
        limit: 9,
        hold: Duration::from_mins(1),
        provisioning_for: Duration::from_mins(1),
    };
    let claimed = store.claim_due(due).await.unwrap();
    assert_eq!(
        claimed.iter().map(|claimed| claimed.lease.id).collect::<Vec<_>>(),
        [ids[1]]
    );
}

#[tokio::test]
async fn claims_of_a_broker_that_died_are_void_for_the_next_one() {
    let file = SqliteFile::new();
    let store = file.store();
    let lease = book(&store, booking("ada", 0)).await;
    store
        .record(Change::new(&lease, created(1), Actor::Broker, at(1)))
        .await
        .unwrap();
    let server = server();
    let due = Due {
        server: &server,
        now: at(3600),
        limit: 9,
        hold: Duration::from_mins(1),
        provisioning_for: Duration::from_mins(1),
    };
    let before = store.claim_due(due).await.unwrap().pop().unwrap();
    assert!(store.claim_due(due).await.unwrap().is_empty(), "the claim holds");
    drop(store);
    let store = file.store();
    let again = store.claim_due(due).await.unwrap();
    assert_eq!(again.first().map(|claimed| claimed.lease.id), Some(lease.id));
    let mut late = Change::new(&lease, LeaseEvent::Dropped { at: at(3601) }, Actor::Broker, at(3601));
    late.claim = Some(before.claim);
    assert!(matches!(store.record(late).await, Err(StoreError::ClaimLost)));
}

#[tokio::test]
async fn the_audit_of_a_store_shows_edits_cuts_and_a_missing_key() {
    let file = SqliteFile::new();
    let key = || AuditKey::new(&vec![7; 32].into()).unwrap();
    let mut options = options();
    options.audit_key = Some(key());
    let store = SqliteStore::open(&file.path(), options, ManualClock::at(at(0))).unwrap();
    for name in ["ada", "grace", "alan", "emmy", "kurt", "mary"] {
        book(&store, booking(name, 0)).await;
    }
    let head = store.audit_head().await.unwrap();
    drop(store);
    let flaws = |key: Option<&AuditKey>, head: Option<&Head>| {
        let expected = Expected {
            head: head.cloned(),
            installation: None,
        };
        let report = verify_store(&file.path(), key, &expected).unwrap();
        report
            .findings
            .iter()
            .map(|found| (found.row, found.flaw))
            .collect::<Vec<_>>()
    };
    assert_eq!(flaws(Some(&key()), Some(&head)), []);
    assert_eq!(flaws(None, None), [(1, Flaw::KeyNeeded)]);
    let db = Connection::open(file.path()).unwrap();
    db.execute("UPDATE audit SET body = replace(body, 'ada', 'eve') WHERE row = 3", [])
        .unwrap();
    assert_eq!(flaws(Some(&key()), Some(&head)), [(3, Flaw::Edited)]);
    db.execute("DELETE FROM audit WHERE row > ?1", [head.row - 10]).unwrap();
    let cut = (head.row - 10, Flaw::HeadMissing);
    assert_eq!(flaws(Some(&key()), Some(&head)), [(3, Flaw::Edited), cut]);
}

#[tokio::test]
async fn purged_leases_are_gone_with_their_rows_and_live_resting_and_recent_ones_stay() {
    let file = SqliteFile::new();
    let store = file.store();
    let ended = async |name: &str, rest_until| {
        let lease = book(&store, booking(name, 0)).await;
        let mut change = Change::new(&lease, LeaseEvent::NameTaken { at: at(0) }, Actor::Broker, at(0));
        change.rest_until = rest_until;
        store.record(change).await.unwrap()
    };
    let day = 24 * 3600;
    let old = ended("ada", None).await;
    let resting = ended("grace", Some(at(3 * day))).await;
    let live = book(&store, booking("alan", 0)).await;
    store
        .record(Change::new(
            &live,
            end_due(kdbt_broker::lease::EndReason::Revoked),
            Actor::Broker,
            at(1),
        ))
        .await
        .unwrap();
    assert_eq!(store.purge(at(day), at(60)).await.unwrap(), 0, "less than 24 h ago");
    assert_eq!(store.purge(at(day), at(2 * day)).await.unwrap(), 1);
    assert!(matches!(store.lease(old.id).await, Err(StoreError::NotFound(_))));
    store.lease(resting.id).await.unwrap();
    assert_eq!(store.lease(live.id).await.unwrap().state.status(), LeaseStatus::Ending);
    let orphans: i64 = Connection::open(file.path())
        .unwrap()
        .query_row(
            "SELECT count(*) FROM lease_rules WHERE lease = ?1",
            [old.id.to_string()],
            |row| row.get(0),
        )
        .unwrap();
    assert_eq!(orphans, 0);
    assert_eq!(store.purge(at(day), at(2 * day)).await.unwrap(), 0);
}

#[tokio::test]
async fn everything_old_is_purged_in_one_go_however_much_it_is() {
    let file = SqliteFile::new();
    let store = file.store();
    let ended = (0..501).map(|n| {
        let store = &store;
        async move {
            let mut order = booking(&format!("p{n}"), 0);
            (order.limits.per_rule, order.limits.per_target) = (u32::MAX, u32::MAX);
            let lease = book(store, order).await;
            let event = LeaseEvent::NameTaken { at: at(0) };
            store
                .record(Change::new(&lease, event, Actor::Broker, at(0)))
                .await
                .unwrap();
        }
    });
    futures_util::future::join_all(ended).await;
    let day = 24 * 3600;
    assert_eq!(store.purge_all(at(day), at(2 * day)).await.unwrap(), 501);
}

#[test]
fn what_runs_on_every_request_reads_an_index_of_live_leases() {
    let file = SqliteFile::new();
    let store = file.store();
    drop(store);
    let db = Connection::open(file.path()).unwrap();
    for sql in [
        "SELECT min(wake_at) FROM leases WHERE server = 'dwh' AND wake_at IS NOT NULL",
        "SELECT min(issued_at) FROM leases WHERE server = 'dwh' AND state = 'provisioning'",
        "SELECT count(*) FROM leases WHERE subject_hash = 'x' AND server = 'dwh' AND ended_at IS NULL",
        "SELECT count(*) FROM lease_rules WHERE rule = 'x' AND live = 1",
        "SELECT count(*) FROM leases WHERE target = 'x' AND ended_at IS NULL",
        "SELECT * FROM leases WHERE 1 AND server = 'dwh' AND state IN ('active') AND ended_at IS NULL ORDER BY id DESC",
    ] {
        let plan: String = db
            .query_row(&format!("EXPLAIN QUERY PLAN {sql}"), [], |row| row.get(3))
            .unwrap();
        assert!(plan.starts_with("SEARCH") && plan.contains("INDEX"), "{sql}: {plan}");
        assert!(!plan.contains("autoindex"), "{sql}: {plan}");
    }
}
