//! What is only read: pages of leases, the next due time, health.

use kdbt_api::Timestamp;
use kdbt_api::lease::LeaseStatus;
use kdbt_api::name::ServerName;
use rusqlite::types::Value;

use super::rows::{remains, status_word, stored, word};
use super::writer::Session;
use crate::store::{LeaseFilter, LeasePage, Page, StoreError, StoreHealth};

/// The longest page.
const LONGEST_PAGE: usize = 500;

pub(super) fn leases(session: &Session, filter: &LeaseFilter, page: Page) -> Result<LeasePage, StoreError> {
    let limit = page.limit.clamp(1, LONGEST_PAGE);
    let (conditions, params) = conditions(filter, page);
    // One more than asked tells whether there is a next page.
    let sql = format!(
        "SELECT * FROM leases WHERE {conditions} ORDER BY id DESC LIMIT {}",
        limit + 1
    );
    let mut query = session.db.prepare_cached(&sql)?;
    let mut rows = query.query(rusqlite::params_from_iter(params))?;
    let (mut leases, mut unreadable) = (Vec::new(), Vec::new());
    let (mut read, mut next) = (0, None);
    while let Some(row) = rows.next()? {
        if read == limit {
            return Ok(LeasePage {
                leases,
                unreadable,
                next,
            });
        }
        read += 1;
        match stored(row) {
            Ok(stored) => {
                next = Some(stored.lease.id);
                leases.push(stored.lease);
            }
            Err(StoreError::Corrupt { row: id, what, .. }) => {
                // Where even the key is damaged, the next page starts behind the last one that is not.
                next = id.parse().ok().or(next);
                unreadable.push(remains(row, id, what));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(LeasePage {
        leases,
        unreadable,
        next: None,
    })
}

fn conditions(filter: &LeaseFilter, page: Page) -> (String, Vec<Value>) {
    let mut conditions = vec!["1".to_owned()];
    let mut params = Vec::new();
    let mut add = |condition: &str, value: String| {
        conditions.push(condition.to_owned());
        params.push(Value::Text(value));
    };
    if let Some((issuer, subject)) = &filter.holder {
        add("issuer = ?", issuer.clone());
        add("subject = ?", subject.clone());
    }
    if let Some(subject) = &filter.subject {
        add("subject = ?", subject.clone());
    }
    if let Some(server) = &filter.server {
        add("server = ?", server.to_string());
    }
    if let Some(target) = &filter.target {
        add("target = ?", target.to_string());
    }
    if let Some(rule) = &filter.rule {
        add("id IN (SELECT lease FROM lease_rules WHERE rule = ?)", rule.to_string());
    }
    if let Some(after) = page.after {
        add("id < ?", after.to_string());
    }
    if let Some(since) = filter.live_since {
        conditions.push("(ended_at IS NULL OR ended_at >= ?)".to_owned());
        params.push(Value::Integer(since.as_unix_millis()));
    }
    if !filter.states.is_empty() {
        let words: Vec<String> = filter.states.iter().map(|s| format!("'{}'", status_word(*s))).collect();
        conditions.push(format!("state IN ({})", words.join(", ")));
        // Said twice, so that an index of live rows is used.
        if !filter.states.contains(&LeaseStatus::Ended) {
            conditions.push("ended_at IS NULL".to_owned());
        }
    }
    (conditions.join(" AND "), params)
}

pub(super) fn next_due(
    session: &Session,
    server: &ServerName,
    provisioning_for: std::time::Duration,
) -> Result<Option<Timestamp>, StoreError> {
    let first = |sql: &str| -> Result<Option<Timestamp>, StoreError> {
        let at = session.value::<Option<i64>>(sql, [server.as_str()])?.flatten();
        Ok(at.map(Timestamp::from_unix_millis))
    };
    let waking = first("SELECT min(wake_at) FROM leases WHERE server = ?1 AND wake_at IS NOT NULL")?;
    let booked = first("SELECT min(issued_at) FROM leases WHERE server = ?1 AND state = 'provisioning'")?;
    Ok(waking
        .into_iter()
        .chain(booked.map(|booked| booked + provisioning_for))
        .min())
}

pub(super) fn health(session: &Session) -> Result<StoreHealth, StoreError> {
    session.in_place()?;
    // Only a write shows that it can write.
    session
        .db
        .prepare_cached("UPDATE installation SET probed_at = ?1")?
        .execute([session.now().as_unix_millis()])?;
    let mut query = session.db.prepare_cached(
        "SELECT server, state, count(*) FROM leases WHERE ended_at IS NULL GROUP BY 1, 2 ORDER BY 1, 2",
    )?;
    let mut rows = query.query([])?;
    let mut live = Vec::new();
    while let Some(row) = rows.next()? {
        let (server, state, count) = (
            row.get::<_, String>(0)?,
            row.get::<_, String>(1)?,
            row.get::<_, i64>(2)?,
        );
        let corrupt = |what: String| StoreError::Corrupt {
            table: "leases",
            row: format!("server {server}, state {state}"),
            what,
        };
        live.push((
            server
                .parse()
                .map_err(|error: kdbt_api::name::NameError| corrupt(error.to_string()))?,
            word(&state).map_err(|error| corrupt(error.to_string()))?,
            u64::try_from(count).unwrap_or_default(),
        ));
    }
    let head = session.chain.head();
    Ok(StoreHealth {
        live,
        audit_head: Some((head.row, head.hash)),
    })
}
