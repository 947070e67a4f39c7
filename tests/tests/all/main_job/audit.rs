//! The audit of a running broker: every way in leaves a row, and what is done to the store afterwards is found (S21).

use std::fs;
use std::path::Path;
use std::time::Duration;

use kdbt_broker::audit::chain::AuditRow;
use kdbt_broker::clock::system_clock;
use kdbt_broker::store::sqlite::{SqliteOptions, SqliteStore};
use kdbt_e2e::stack::Stack;
use rusqlite::Connection;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::operating::tool;
use super::{Caller, Lease, own_stack, within};

/// So many rows are cut off.
const CUT: i64 = 10;

/// All events, oldest first.
async fn shown(stack: &Stack) -> Vec<Value> {
    let shown = tool(stack, &["audit", "show"]).await.expect(0).unwrap().stdout;
    shown.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The events of an action, about this user if one is named: who did each.
fn by(events: &[Value], action: &str, user: Option<&str>) -> Vec<String> {
    let events = events
        .iter()
        .filter(|event| event["action"] == action && user.is_none_or(|user| event["username"] == user));
    let name = |event: &Value| match &event["actor"]["identity"]["display_name"] {
        Value::String(name) => name.clone(),
        _ => event["actor"].as_str().unwrap().to_owned(),
    };
    events.map(name).collect()
}

/// CVE-2026-46358: some ways in were not audited.
#[tokio::test]
async fn every_way_in_has_one_audit_row_that_says_who_came() {
    let mut stack = own_stack().await;
    let (ada, grace, adm) = (
        Caller::person(&stack, "ada"),
        Caller::person(&stack, "grace"),
        Caller::person(&stack, "adm"),
    );
    let mut leases = Vec::new();
    for _ in 0..4 {
        leases.push(Lease::take(&ada, "team", "10m").await);
    }
    let [kept, own, one, many] = &leases[..] else { panic!() };
    let path = |act: &str| format!("/v1/leases/{}/{act}", kept.id);
    let session = kept.connect(&stack).await.unwrap();
    ada.post(&path("renew"), &json!({ "ttl": "30m" })).await.expect(200);
    ada.post(&path("cancel"), &json!({})).await.expect(200);
    assert!(session.simple_query("SELECT 1").await.is_err());
    ada.revoke(&own.id).await.expect(200);
    adm.revoke(&one.id).await.expect(200);
    grace.lease(&json!({ "target": "team" })).await.expect(403);
    stack.broker.signal(Signal::HUP).unwrap();
    within(Duration::from_secs(10), "the policy is loaded again", async || {
        by(&shown(&stack).await, "policy-activated", None).len() == 2
    })
    .await;
    let dry = json!({ "target": "team", "dry_run": true });
    adm.post("/v1/revocations", &dry).await.expect(200);
    let before = shown(&stack).await;
    adm.post("/v1/revocations", &json!({ "target": "team" }))
        .await
        .expect(200);
    let events = shown(&stack).await;

    for lease in &leases {
        assert_eq!(by(&events, "lease-booked", Some(&lease.user)), ["ada"], "{lease:?}");
        assert_eq!(by(&events, "lease-created", Some(&lease.user)), ["broker"], "{lease:?}");
    }
    assert_eq!(by(&events, "lease-extended", None), ["ada"]);
    assert_eq!(by(&events, "sessions-cancelled", None), ["ada"]);
    let cancel = events
        .iter()
        .find(|event| event["action"] == "sessions-cancelled")
        .unwrap();
    assert_eq!(
        (&cancel["lease"], &cancel["username"]),
        (&json!(kept.id), &json!(kept.user))
    );
    for (lease, name) in [(own, "ada"), (one, "adm"), (many, "adm"), (kept, "adm")] {
        assert_eq!(by(&events, "lease-end-due", Some(&lease.user)), [name], "{lease:?}");
    }
    assert_eq!(by(&before, "lease-end-due", None).len(), 2, "a dry run ends nothing");
    assert_eq!(by(&events, "denied", None), ["grace"]);
    assert_eq!(by(&events, "policy-activated", None), ["operator", "operator"]);

    let lost = Lease::take(&ada, "team", "10m").await;
    stack.broker.kill().await.unwrap();
    for end in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(format!("{}{end}", stack.broker.store_file().display()));
    }
    stack.broker.start().await.unwrap();
    assert_eq!(by(&shown(&stack).await, "lease-adopted", Some(&lost.user)), ["broker"]);
    tool(&stack, &["audit", "verify"]).await.expect(0).unwrap();
}

/// The head that the broker has logged last.
fn head(stack: &Stack) -> Option<String> {
    let log = stack.broker.log().unwrap();
    let (_, behind) = log.rsplit_once("audit head ")?;
    Some(behind.split_whitespace().next()?.to_owned())
}

#[tokio::test]
async fn the_head_of_the_audit_goes_to_log_and_metric_hourly_and_at_the_stop() {
    let mut stack = own_stack().await;
    let ada = Caller::person(&stack, "ada");
    Lease::take(&ada, "team", "1h").await;
    assert_eq!(head(&stack), None, "an hour has not passed");
    stack.broker.set_clock_ahead(61 * 60_000).unwrap();
    let metric = async || {
        let url = format!("{}/metrics", stack.broker.management_url());
        let metrics = reqwest::get(url).await.unwrap().text().await.unwrap();
        let line = metrics
            .lines()
            .find_map(|line| line.strip_prefix("kdbt_audit_head{hash=\""));
        let (hash, row) = line?.split_once("\"} ")?;
        Some(format!("{row}:{hash}"))
    };
    within(Duration::from_secs(20), "log and metric tell one head", async || {
        let logged = head(&stack);
        logged.is_some() && logged == metric().await
    })
    .await;
    let hourly = head(&stack).unwrap();
    assert!(stack.broker.stop().await.unwrap().success());
    let last = head(&stack).unwrap();
    let verified = tool(&stack, &["audit", "verify", "--head", &hourly])
        .await
        .expect(0)
        .unwrap();
    assert!(
        verified.stdout.contains(&format!("head {last}: sound")),
        "{verified:?}, {last}"
    );
}

/// Rows from number 5 on are written anew, as somebody does who knows how but has no key.
fn forge(store: &Path) {
    let db = Connection::open(store).unwrap();
    let mut query = db
        .prepare("SELECT row, chain, n, prev, hash, body FROM audit ORDER BY row")
        .unwrap();
    let rows = query.query_map([], |row| {
        Ok(AuditRow {
            row: row.get(0)?,
            chain: row.get(1)?,
            n: row.get(2)?,
            prev: row.get(3)?,
            hash: row.get(4)?,
            body: row.get(5)?,
        })
    });
    let mut rows: Vec<AuditRow> = rows.unwrap().map(Result::unwrap).collect();
    for i in 4..rows.len() {
        rows[i].body = rows[i]
            .body
            .replace("\"display_name\":\"ada\"", "\"display_name\":\"eve\"");
        if rows[i].n > 1 {
            let before = rows[i - 1].hash.clone();
            rows[i].prev = before;
        }
        rows[i].hash = rows[i].seal(None);
        let AuditRow {
            row, prev, hash, body, ..
        } = &rows[i];
        let sql = "UPDATE audit SET prev = ?2, hash = ?3, body = ?4 WHERE row = ?1";
        assert_eq!(db.execute(sql, (row, prev, hash, body)).unwrap(), 1);
    }
}

fn cut(store: &Path) {
    let db = Connection::open(store).unwrap();
    let sql = "DELETE FROM audit WHERE row > (SELECT max(row) FROM audit) - ?1";
    assert_eq!(db.execute(sql, [CUT]).unwrap(), 10);
}

/// What is done to a store, and whether it alone tells.
type Damage = (&'static str, fn(&Path), bool);

/// Another store takes its place: one that never saw these leases.
fn swap(store: &Path, installation: &str) {
    for end in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(format!("{}{end}", store.display()));
    }
    drop(SqliteStore::open(store, SqliteOptions::new(installation.parse().unwrap()), system_clock()).unwrap());
}

#[tokio::test]
async fn verify_finds_a_tail_that_was_cut_or_computed_anew_and_a_store_that_was_swapped() {
    let mut stack = own_stack().await;
    let ada = Caller::person(&stack, "ada");
    for _ in 0..3 {
        let lease = Lease::take(&ada, "team", "10m").await;
        ada.revoke(&lease.id).await.expect(200);
    }
    assert!(stack.broker.stop().await.unwrap().success());
    let head = head(&stack).unwrap();
    let store = stack.broker.store_file();
    let whole = fs::read(&store).unwrap();
    let damages: [Damage; 4] = [
        ("the last rows are cut off", cut, false),
        ("the tail is computed anew", forge, false),
        (
            "a store of the same installation takes its place",
            |store| swap(store, "demo"),
            false,
        ),
        (
            "a store of another installation does",
            |store| swap(store, "other"),
            true,
        ),
    ];
    let verify = async || tool(&stack, &["audit", "verify", "--head", &head]).await;
    verify().await.expect(0).unwrap();
    for (damage, act, alone) in damages {
        act(&store);
        let found = verify().await;
        assert_eq!(found.code, 1, "{damage}: {found:?}");
        assert!(found.stdout.contains("NOT sound"), "{damage}: {found:?}");
        let without = tool(&stack, &["audit", "verify"]).await;
        assert_eq!(without.code, i32::from(alone), "{damage}: {without:?}");
        for end in ["-wal", "-shm"] {
            let _ = fs::remove_file(format!("{}{end}", store.display()));
        }
        fs::write(&store, &whole).unwrap();
    }
    verify().await.expect(0).unwrap();
}
