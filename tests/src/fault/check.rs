//! What holds after every death: users and leases explain each other, the audit is whole, and no secret lies about.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kdbt_broker::audit::chain::Head;
use kdbt_broker::audit::verify::Expected;
use kdbt_broker::mark::Mark;
use kdbt_broker::store::sqlite::verify_store;
use rusqlite::{Connection, OpenFlags};

use crate::leaks::Secrets;
use crate::stack::Stack;

/// A sweep begins every ten seconds, and takes a moment.
pub const ONE_SWEEP: Duration = Duration::from_secs(15);

/// A live lease as its row has it.
pub(super) struct Row {
    pub(super) state: String,
    user: String,
    engine_id: Option<String>,
}

/// What the store and the catalog do not explain of each other, a line each; a broker may be at work meanwhile.
pub async fn differences(stack: &Stack) -> Result<Vec<String>> {
    let (users, leases) = (users(stack).await?, leases(stack)?);
    let (users_later, leases_later) = (self::users(stack).await?, self::leases(stack)?);
    let mut found = Vec::new();
    for ((oid, name), mark) in &users {
        // A user that is gone by now was being ended.
        if !users_later.contains_key(&(*oid, name.clone())) {
            continue;
        }
        let lease = mark.as_ref().and_then(|mark| leases.get(&mark.lease.to_string()));
        let explained = lease.is_some_and(|lease| {
            let same = format!(r#"{{"oid":{oid}}}"#);
            lease.user == *name && lease.engine_id.as_ref().is_none_or(|id| *id == same)
        });
        if !explained {
            found.push(format!(
                "user {name} ({oid}) without a live lease, its mark is {mark:?}"
            ));
        }
    }
    for (id, lease) in &leases {
        // Active before and after the catalog was read, so its user must have been there.
        let active = |row: &Row| row.state == "active";
        let stays = active(lease) && leases_later.get(id).is_some_and(active);
        if stays && !users_later.keys().any(|(_, name)| *name == lease.user) {
            found.push(format!("lease {id} is active and its user {} is not there", lease.user));
        }
    }
    Ok(found)
}

/// Waits until nothing differs, for one sweep at most, and says how long that took.
pub async fn settled(stack: &Stack) -> Result<Duration> {
    let start = Instant::now();
    loop {
        let found = differences(stack).await?;
        if found.is_empty() {
            return Ok(start.elapsed());
        }
        if start.elapsed() > ONE_SWEEP {
            bail!(
                "after one sweep:\n{}\nThe broker's log:\n{}",
                found.join("\n"),
                stack.broker.log_tail(40)
            );
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until no lease user is left.
pub async fn empty(stack: &Stack, limit: Duration) -> Result<()> {
    let start = Instant::now();
    loop {
        let left = stack.lease_users().await?;
        if left.is_empty() {
            return Ok(());
        }
        ensure!(
            start.elapsed() < limit,
            "after {limit:?} {left:?} are still there. The broker's log:\n{}",
            stack.broker.log_tail(40)
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The chain holds, and nothing behind this head was lost. The new head.
pub fn audit(stack: &Stack, before: Option<Head>) -> Result<Head> {
    let expected = Expected {
        head: before,
        installation: Some("demo".parse()?),
    };
    let report = verify_store(&stack.broker.store_file(), None, &expected)?;
    ensure!(report.is_sound(), "the audit is not sound: {:?}", report.findings);
    report.head.context("the audit is empty")
}

/// None of these stands in the store, the log, the audit or the metrics.
pub async fn no_secret(stack: &Stack, secrets: &Secrets) -> Result<()> {
    let mut places = Vec::new();
    let folder = stack
        .broker
        .store_file()
        .parent()
        .context("the store has no folder")?
        .to_owned();
    for entry in fs::read_dir(folder)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("kdbt.db") || name == "broker.log" {
            places.push((name, fs::read(entry.path())?));
        }
    }
    let metrics = reqwest::get(format!("{}/metrics", stack.broker.management_url())).await?;
    places.push(("the metrics".to_owned(), metrics.bytes().await?.to_vec()));
    for (place, bytes) in &places {
        if let Some(found) = secrets.found_in(bytes) {
            bail!("{place} holds a secret: {found}");
        }
    }
    Ok(())
}

/// Users with our mark, by OID and name.
async fn users(stack: &Stack) -> Result<BTreeMap<(u32, String), Option<Mark>>> {
    let sql = "SELECT oid, rolname, shobj_description(oid, 'pg_authid') FROM pg_roles \
               WHERE shobj_description(oid, 'pg_authid') LIKE 'kdbt/1 demo lse%'";
    let rows = stack.rows(sql).await?;
    let user = |row: Vec<String>| {
        let [oid, name, comment] = <[String; 3]>::try_from(row).ok()?;
        Some(((oid.parse().ok()?, name), comment.parse().ok()))
    };
    Ok(rows.into_iter().filter_map(user).collect())
}

/// Live leases by id, read beside the broker.
pub(super) fn leases(stack: &Stack) -> Result<BTreeMap<String, Row>> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(stack.broker.store_file(), flags)?;
    db.busy_timeout(Duration::from_secs(5))?;
    let mut query = db.prepare("SELECT id, state, username, engine_id FROM leases WHERE ended_at IS NULL")?;
    let rows = query.query_map([], |row| {
        Ok((
            row.get(0)?,
            Row {
                state: row.get(1)?,
                user: row.get(2)?,
                engine_id: row.get(3)?,
            },
        ))
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}
