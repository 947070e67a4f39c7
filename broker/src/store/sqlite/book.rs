//! Booking: the idempotency key, the limits, the slug and the slot, in one savepoint.

use std::collections::BTreeSet;
use std::time::Duration;

use aws_lc_rs::digest;
use kdbt_api::Timestamp;
use kdbt_api::name::{DbUsername, ServerName, Slug};
use rusqlite::params;
use serde_json::json;

use super::rows::Stored;
use super::writer::Session;
use crate::audit::{Actor, AuditEvent};
use crate::lease::{Holder, Issue, Lease, LeaseState, Origin};
use crate::store::{BookError, Booked, Booking, Idempotency, StoreError};

/// How long an idempotency key outlives its lease.
pub(super) const KEY_KEPT: Duration = Duration::from_hours(24);

pub(super) fn book(session: &mut Session, booking: Booking) -> Result<Booked, BookError> {
    if let Some(key) = &booking.idempotency
        && let Some(lease) = replayed(session, &booking, key)?
    {
        return Ok(Booked::Replay(lease));
    }
    within_limits(session, &booking)?;
    let server = booking.grant.target.server.clone();
    let slug = bind_slug(session, &booking.holder, &booking.grant.slug)?;
    let slot = free_slot(session, &server, &slug, booking.now)?.ok_or(BookError::PersonLimit(u16::MAX))?;
    let lease = Lease {
        id: booking.id,
        target: Some(booking.grant.target.name.clone()),
        server,
        username: DbUsername::new(&slug, slot),
        engine_id: None,
        origin: Origin::Issued(Box::new(Issue {
            grant: booking.grant.render(&slug)?,
            holder: booking.holder,
            reason: booking.reason,
            owner_proof: booking.owner_proof,
        })),
        issued_at: booking.now,
        ends_at: booking.ends_at,
        max_ends_at: booking.max_ends_at,
        state: LeaseState::Provisioning,
        end_reason: None,
        last_error: None,
    };
    let row = Stored {
        lease,
        wake_at: None,
        claim: None,
        rest_until: None,
    };
    session.insert(&row)?;
    if let Some(key) = &booking.idempotency {
        remember(session, &row.lease, key)?;
    }
    session.audit(&booked(&row.lease, session.now()))?;
    Ok(Booked::New(row.lease))
}

/// The audit row of a booking: all that the decision gave.
fn booked(lease: &Lease, at: Timestamp) -> AuditEvent {
    let issue = lease.issue();
    let mut details = serde_json::Map::new();
    let mut say = |name: &str, value: serde_json::Value| {
        if !value.is_null() {
            details.insert(name.to_owned(), value);
        }
    };
    say("rules", json!(issue.map(|issue| &issue.grant.rules)));
    say("policy", json!(issue.map(|issue| &issue.grant.policy)));
    say("access", json!(issue.map(|issue| &issue.grant.access)));
    say("reason", json!(issue.and_then(|issue| issue.reason.as_ref())));
    say("ends_at", json!(lease.ends_at));
    say("max_ends_at", json!(lease.max_ends_at));
    let actor = issue.map_or(Actor::Broker, |issue| Actor::Identity(issue.holder.clone()));
    super::change::event("lease-booked", actor, lease, at, details)
}

/// The lease that this key stands for, if it still does.
fn replayed(session: &Session, booking: &Booking, key: &Idempotency) -> Result<Option<Lease>, BookError> {
    let Holder {
        issuer, subject, azp, ..
    } = &booking.holder;
    let mut query = session
        .db
        .prepare_cached(
            "SELECT k.lease, k.body, l.ended_at FROM idempotency_keys k JOIN leases l ON l.id = k.lease \
             WHERE k.issuer = ?1 AND k.subject = ?2 AND k.azp = ?3 AND k.key = ?4",
        )
        .map_err(StoreError::from)?;
    let mut rows = query
        .query(params![issuer, subject, azp, key.key])
        .map_err(StoreError::from)?;
    let Some(row) = rows.next().map_err(StoreError::from)? else {
        return Ok(None);
    };
    let read = || -> rusqlite::Result<(String, Vec<u8>, Option<i64>)> { Ok((row.get(0)?, row.get(1)?, row.get(2)?)) };
    let (lease, body, ended_at) = read().map_err(StoreError::from)?;
    if ended_at.is_some_and(|ended| Timestamp::from_unix_millis(ended) + KEY_KEPT <= booking.now) {
        return Ok(None);
    }
    if body != key.body {
        return Err(BookError::KeyReused);
    }
    let id = lease.parse().map_err(|error| StoreError::Corrupt {
        table: "idempotency_keys",
        row: lease,
        what: format!("`lease`: {error}"),
    })?;
    Ok(Some(session.get(id)?.lease))
}

fn remember(session: &Session, lease: &Lease, key: &Idempotency) -> Result<(), StoreError> {
    let Some(holder) = lease.issue().map(|issue| &issue.holder) else {
        return Ok(());
    };
    // What may stand there has outlived its time, else it would have been replayed.
    session
        .db
        .prepare_cached(
            "INSERT OR REPLACE INTO idempotency_keys (issuer, subject, azp, key, body, lease) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            holder.issuer,
            holder.subject,
            holder.azp,
            key.key,
            key.body,
            lease.id.to_string()
        ])?;
    Ok(())
}

fn within_limits(session: &Session, booking: &Booking) -> Result<(), BookError> {
    let count = |sql: &str, params: &[&str]| -> Result<i64, StoreError> {
        Ok(session
            .value(sql, rusqlite::params_from_iter(params))?
            .unwrap_or_default())
    };
    let (limits, grant) = (booking.limits, &booking.grant);
    let (person, server) = (booking.holder.subject_hash(), grant.target.server.as_str());
    let live = count(
        "SELECT count(*) FROM leases WHERE subject_hash = ?1 AND server = ?2 AND ended_at IS NULL",
        &[person.as_str(), server],
    )?;
    if live >= i64::from(limits.per_person) {
        return Err(BookError::PersonLimit(limits.per_person));
    }
    for rule in &grant.rules {
        let live = count(
            "SELECT count(*) FROM lease_rules WHERE rule = ?1 AND live = 1",
            &[rule.as_str()],
        )?;
        if live >= i64::from(limits.per_rule) {
            return Err(BookError::RuleLimit(rule.clone()));
        }
    }
    let live = count(
        "SELECT count(*) FROM leases WHERE target = ?1 AND ended_at IS NULL",
        &[grant.target.name.as_str()],
    )?;
    if live >= i64::from(limits.per_target) {
        return Err(BookError::TargetLimit);
    }
    Ok(())
}

/// The slug of this person, bound now if it was not. Names of lost stores' leases come back to their person, whom
/// the mark names by hash.
fn bind_slug(session: &mut Session, holder: &Holder, wanted: &Slug) -> Result<Slug, StoreError> {
    let Holder { issuer, subject, .. } = holder;
    let hash = holder.subject_hash();
    let bound = session.value::<String>(
        "SELECT slug FROM slugs WHERE issuer = ?1 AND subject = ?2",
        [issuer, subject],
    )?;
    if let Some(slug) = bound {
        return read_slug(&slug);
    }
    let adopted = session.value::<String>(
        "UPDATE slugs SET issuer = ?1, subject = ?2 WHERE slug = (SELECT min(slug) FROM slugs \
         WHERE subject_hash = ?3 AND issuer IS NULL) RETURNING slug",
        [issuer, subject, hash.as_str()],
    )?;
    let slug = match adopted {
        Some(slug) => read_slug(&slug)?,
        None => new_slug(session, holder, wanted)?,
    };
    let mut details = serde_json::Map::new();
    details.insert("slug".to_owned(), json!(slug));
    session.audit(&AuditEvent {
        at: session.now(),
        action: "slug-registered".to_owned(),
        actor: Actor::Identity(holder.clone()),
        lease: None,
        username: None,
        server: None,
        target: None,
        details,
    })?;
    Ok(slug)
}

/// The slug that is wanted, or the first with a suffix from the person's hash that nobody has.
fn new_slug(session: &Session, holder: &Holder, wanted: &Slug) -> Result<Slug, StoreError> {
    let Holder { issuer, subject, .. } = holder;
    let hash = holder.subject_hash();
    // The digest that the subject hash is the head of: three bytes at a time make 30 suffixes.
    let digest = digest::digest(&digest::SHA256, format!("{issuer}\0{subject}").as_bytes());
    let suffixes = digest.as_ref().windows(3).filter_map(|bytes| bytes.try_into().ok());
    let candidates = std::iter::once(wanted.clone()).chain(suffixes.map(|hex| wanted.with_suffix(hex)));
    let mut insert = session.db.prepare_cached(
        "INSERT INTO slugs (slug, subject_hash, issuer, subject) VALUES (?1, ?2, ?3, ?4) ON CONFLICT (slug) DO NOTHING",
    )?;
    for slug in candidates {
        if insert.execute([slug.as_str(), hash.as_str(), issuer, subject])? == 1 {
            return Ok(slug);
        }
    }
    Err(StoreError::Unavailable(format!(
        "the slug `{wanted}` and all its forms with a suffix belong to others"
    )))
}

fn read_slug(slug: &str) -> Result<Slug, StoreError> {
    slug.parse().map_err(|error| StoreError::Corrupt {
        table: "slugs",
        row: slug.to_owned(),
        what: format!("`slug`: {error}"),
    })
}

/// The lowest slot whose name is neither live nor resting. Rests never count as use: a person who is under the
/// limit gets a slot, if need be one past the limit.
fn free_slot(session: &Session, server: &ServerName, slug: &Slug, now: Timestamp) -> Result<Option<u16>, StoreError> {
    let mut query = session.db.prepare_cached(
        "SELECT slot FROM leases WHERE server = ?1 AND slug = ?2 AND ended_at IS NULL UNION \
         SELECT slot FROM leases WHERE server = ?1 AND slug = ?2 AND rest_until IS NOT NULL AND rest_until > ?3",
    )?;
    let taken = query
        .query_map(params![server.as_str(), slug.as_str(), now.as_unix_millis()], |row| {
            row.get(0)
        })?
        .collect::<Result<BTreeSet<u16>, _>>()?;
    Ok((0..=u16::MAX).find(|slot| !taken.contains(slot)))
}
