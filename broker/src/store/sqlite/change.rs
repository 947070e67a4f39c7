//! Moves of leases: each with its audit row, in one savepoint.

use kdbt_api::Timestamp;
use kdbt_api::lease::LeaseId;
use kdbt_api::name::ServerName;
use rusqlite::params;
use serde_json::{Map, Value, json};

use super::rows::Stored;
use super::writer::Session;
use crate::audit::{Actor, AuditEvent};
use crate::lease::{EndReason, IllegalTransition, Lease, LeaseEvent, LeaseState, Origin};
use crate::store::{Adopted, Change, ClaimToken, Claimed, StoreError};
use crate::warehouse::MarkedUser;

pub(super) fn record(session: &mut Session, change: &Change) -> Result<Lease, StoreError> {
    let mut row = session.get(change.lease)?;
    if change.claim.is_some() && row.claim != change.claim {
        return Err(StoreError::ClaimLost);
    }
    let before = row.clone();
    row.apply(change)?;
    if row != before {
        session.update(&row)?;
    }
    if frees_key(&before.lease.state, &change.event) {
        session
            .db
            .prepare_cached("DELETE FROM idempotency_keys WHERE lease = ?1")?
            .execute([change.lease.to_string()])?;
    }
    if row.lease != before.lease {
        let action = format!("lease-{}", change.event.as_str());
        let details = details(&before.lease, &row.lease, &change.event);
        session.audit(&event(&action, change.by.clone(), &row.lease, session.now(), details))?;
    }
    Ok(row.lease)
}

/// A repeated request after a failed issue is a new one: there is nothing to be handed out again.
fn frees_key(from: &LeaseState, event: &LeaseEvent) -> bool {
    match event {
        LeaseEvent::NameTaken { .. } => *from == LeaseState::Provisioning,
        LeaseEvent::EndDue { reason } => match reason {
            EndReason::IssueFailed | EndReason::IssueAbandoned => *from == LeaseState::Provisioning,
            // Its user was there already when the change was seen, but nobody was told.
            EndReason::PolicyChanged => matches!(from, LeaseState::Provisioning | LeaseState::Active),
            EndReason::Expired | EndReason::Revoked | EndReason::RevokedByAdmin | EndReason::Unknown => false,
        },
        LeaseEvent::Created { .. }
        | LeaseEvent::EndFailed { .. }
        | LeaseEvent::Dropped { .. }
        | LeaseEvent::Blocked { .. }
        | LeaseEvent::Retry
        | LeaseEvent::Extended { .. } => false,
    }
}

impl Stored {
    /// The pure part of a change: the life of the lease, and when to look at it again.
    fn apply(&mut self, change: &Change) -> Result<(), IllegalTransition> {
        let lease = &mut self.lease;
        let next = lease.state.clone().transition(&change.event)?;
        let moved = lease.state != next;
        match &change.event {
            LeaseEvent::Created { engine_id } => lease.engine_id = Some(*engine_id),
            LeaseEvent::NameTaken { .. } if moved => lease.end_reason = Some(EndReason::IssueFailed),
            LeaseEvent::EndDue { reason } if moved => lease.end_reason = Some(*reason),
            LeaseEvent::EndFailed { code } => lease.last_error = Some(code.clone()),
            LeaseEvent::Extended { ends_at } => lease.ends_at = *ends_at,
            LeaseEvent::NameTaken { .. }
            | LeaseEvent::EndDue { .. }
            | LeaseEvent::Dropped { .. }
            | LeaseEvent::Blocked { .. }
            | LeaseEvent::Retry => {}
        }
        lease.state = next;
        self.wake_at = match &lease.state {
            LeaseState::Provisioning | LeaseState::Ended { .. } => None,
            LeaseState::Active => Some(lease.ends_at),
            LeaseState::Ending { .. } | LeaseState::Quarantined { .. } => {
                let stays = self.wake_at.filter(|_| !moved && change.claim.is_none());
                change.not_before.or(stays).or(Some(change.now))
            }
        };
        // An outcome gives the claim back, and no claim outlives the lease.
        if change.claim.is_some() || !lease.state.is_live() {
            self.claim = None;
        }
        self.rest_until = self.rest_until.max(change.rest_until);
        Ok(())
    }
}

/// What an audit row says about a move.
fn details(before: &Lease, after: &Lease, event: &LeaseEvent) -> Map<String, Value> {
    let mut details = Map::new();
    let mut say = |name: &str, value: Value| details.insert(name.to_owned(), value);
    if before.state.status() != after.state.status() {
        say("from", json!(before.state.status_str()));
        say("to", json!(after.state.status_str()));
    }
    match event {
        LeaseEvent::Created { engine_id } => say("engine_id", json!(engine_id)),
        LeaseEvent::EndDue { reason } => say("end_reason", json!(reason)),
        LeaseEvent::EndFailed { code } => say("error", json!(code)),
        LeaseEvent::Blocked { objects } => say("blocked_by", json!(objects)),
        LeaseEvent::Extended { ends_at } => say("ends_at", json!(ends_at)),
        LeaseEvent::Dropped { .. } | LeaseEvent::NameTaken { .. } => say("end_reason", json!(after.end_reason)),
        LeaseEvent::Retry => None,
    };
    details
}

/// An audit event about a lease.
pub(super) fn event(
    action: &str,
    actor: Actor,
    lease: &Lease,
    at: Timestamp,
    details: Map<String, Value>,
) -> AuditEvent {
    AuditEvent {
        at,
        action: action.to_owned(),
        actor,
        lease: Some(lease.id),
        username: Some(lease.username.clone()),
        server: Some(lease.server.clone()),
        target: lease.target.clone(),
        details,
    }
}

/// [`crate::store::Due`], owned.
pub(super) struct Due {
    pub(super) server: ServerName,
    pub(super) now: Timestamp,
    pub(super) limit: usize,
    pub(super) hold: std::time::Duration,
    pub(super) provisioning_for: std::time::Duration,
}

pub(super) fn claim_due(session: &mut Session, due: &Due) -> Result<Vec<Claimed>, StoreError> {
    let ids = due_ids(session, due)?;
    let mut claimed = Vec::with_capacity(ids.len());
    for id in ids {
        match claim(session, id, due) {
            Ok(claim) => claimed.push(claim),
            // One row that cannot be read must not keep the others from ending.
            Err(error @ StoreError::Corrupt { .. }) => {
                tracing::error!(%error, "a due lease cannot be read, so nothing ends its user but the sweep");
                session
                    .db
                    .prepare_cached("UPDATE leases SET wake_at = ?2 WHERE id = ?1 AND wake_at IS NOT NULL")?
                    .execute(params![id.to_string(), (due.now + due.hold).as_unix_millis()])?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(claimed)
}

/// Moves one lease to `ending` and claims it.
fn claim(session: &mut Session, id: LeaseId, due: &Due) -> Result<Claimed, StoreError> {
    let event = match session.get(id)?.lease.state {
        LeaseState::Provisioning => Some(LeaseEvent::EndDue {
            reason: EndReason::IssueAbandoned,
        }),
        LeaseState::Active => Some(LeaseEvent::EndDue {
            reason: EndReason::Expired,
        }),
        LeaseState::Quarantined { .. } => Some(LeaseEvent::Retry),
        LeaseState::Ending { .. } | LeaseState::Ended { .. } => None,
    };
    if let Some(event) = event {
        let change = Change {
            lease: id,
            event,
            by: Actor::Broker,
            now: due.now,
            claim: None,
            not_before: None,
            rest_until: None,
        };
        record(session, &change)?;
    }
    let mut row = session.get(id)?;
    let claim = ClaimToken(uuid::Uuid::now_v7());
    row.claim = Some(claim);
    row.wake_at = Some(due.now + due.hold);
    session.update(&row)?;
    Ok(Claimed {
        lease: row.lease,
        claim,
    })
}

/// Soonest first. Each half reads its own index from the front, so neither sees more rows than are asked for.
fn due_ids(session: &Session, due: &Due) -> Result<Vec<LeaseId>, StoreError> {
    let limit = i64::try_from(due.limit).unwrap_or(i64::MAX);
    let provisioning_for = i64::try_from(due.provisioning_for.as_millis()).unwrap_or(i64::MAX);
    let mut query = session.db.prepare_cached(
        "SELECT id FROM ( \
           SELECT * FROM (SELECT id, wake_at AS due_at FROM leases \
             WHERE server = ?1 AND wake_at IS NOT NULL AND wake_at <= ?2 ORDER BY wake_at LIMIT ?4) \
           UNION ALL \
           SELECT * FROM (SELECT id, issued_at + ?3 AS due_at FROM leases \
             WHERE server = ?1 AND state = 'provisioning' AND issued_at <= ?2 - ?3 ORDER BY issued_at LIMIT ?4) \
         ) ORDER BY due_at, id LIMIT ?4",
    )?;
    let ids = query
        .query_map(
            params![due.server.as_str(), due.now.as_unix_millis(), provisioning_for, limit],
            |row| row.get::<_, String>(0),
        )?
        .collect::<Result<Vec<_>, _>>()?;
    ids.iter()
        .map(|id| {
            id.parse().map_err(|error| StoreError::Corrupt {
                table: "leases",
                row: id.clone(),
                what: format!("`id`: {error}"),
            })
        })
        .collect()
}

pub(super) fn adopt(
    session: &mut Session,
    server: &ServerName,
    found: &MarkedUser,
    ends_at: Timestamp,
    now: Timestamp,
) -> Result<Adopted, StoreError> {
    let (Ok(mark), Some(username)) = (&found.mark, &found.username) else {
        return Err(StoreError::Corrupt {
            table: "catalog",
            row: found.rolname.clone(),
            what: "only a user with a readable mark and a lease's name can be adopted".to_owned(),
        });
    };
    if let Some(known) = session.find(mark.lease)? {
        return Ok(Adopted::Known(known.lease));
    }
    let holder = session.value::<String>(
        "SELECT id FROM leases WHERE server = ?1 AND username = ?2 AND ended_at IS NULL",
        [server.as_str(), username.as_str()],
    )?;
    if let Some(row) = holder {
        return Err(StoreError::Corrupt {
            table: "leases",
            row,
            what: format!(
                "holds the name `{username}`, which the catalog gives to `{}`",
                mark.lease
            ),
        });
    }
    let row = Stored {
        lease: Lease {
            id: mark.lease,
            server: server.clone(),
            target: None,
            username: username.clone(),
            engine_id: Some(found.engine_id),
            origin: Origin::Adopted {
                subject: mark.subject.clone(),
                owner: mark.owner.clone(),
            },
            issued_at: now,
            ends_at,
            max_ends_at: ends_at,
            state: LeaseState::Active,
            end_reason: None,
            last_error: None,
        },
        wake_at: Some(ends_at),
        claim: None,
        rest_until: None,
    };
    session.insert(&row)?;
    // The slug goes back to the same person when they come again, and to nobody else.
    session
        .db
        .prepare_cached("INSERT INTO slugs (slug, subject_hash) VALUES (?1, ?2) ON CONFLICT (slug) DO NOTHING")?
        .execute([username.slug().as_str(), mark.subject.as_str()])?;
    let mut details = Map::new();
    details.insert("ends_at".to_owned(), json!(ends_at));
    details.insert("subject_hash".to_owned(), json!(mark.subject));
    details.insert("engine_id".to_owned(), json!(found.engine_id));
    session.audit(&event(
        "lease-adopted",
        Actor::Broker,
        &row.lease,
        session.now(),
        details,
    ))?;
    Ok(Adopted::New(row.lease))
}
