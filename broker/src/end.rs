//! Ending leases: what the reaper does with those that are due. Takes no input but store, catalog and clock, so
//! a restart or a second broker changes nothing.

use std::sync::Arc;
use std::time::Duration;

use crate::audit::Actor;
use crate::failpoint::{self, Point};
use crate::lease::{EndReason, Lease, LeaseEvent, LeaseState, UserRef};
use crate::server::Server;
use crate::store::{Change, Claimed, Due, LeaseStore, StoreError};
use crate::warehouse::{END_WITHIN, EndOutcome, MarkedUser, WarehouseError};

/// How many leases one pass claims at once.
pub const BATCH: usize = 50;

/// For how long a claim keeps other brokers away.
const CLAIM_FOR: Duration = Duration::from_mins(1);
const _: () = assert!(CLAIM_FOR.as_secs() > END_WITHIN.as_secs());

/// A lease that stands in `provisioning` for longer was abandoned: the warehouse lane sends nothing 20 s after booking.
pub const PROVISIONING_FOR: Duration = Duration::from_mins(1);

/// What one pass did, for tests, logs and metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PassReport {
    /// How many were claimed.
    pub claimed: usize,
    /// Users that are gone now.
    pub ended: usize,
    /// Users that are locked out but cannot be dropped yet.
    pub quarantined: usize,
    /// Users that must be tried again.
    pub failed: usize,
}

/// Claims one batch of due leases and ends their users.
pub async fn end_due(store: &dyn LeaseStore, server: &Server) -> Result<PassReport, StoreError> {
    let due = Due {
        server: &server.name,
        now: server.now(),
        limit: BATCH,
        hold: CLAIM_FOR,
        provisioning_for: PROVISIONING_FOR,
    };
    let claimed = match store.claim_due(due).await {
        Ok(claimed) => claimed,
        Err(error) => {
            end_expired(server).await;
            return Err(error);
        }
    };
    let mut report = PassReport {
        claimed: claimed.len(),
        ..PassReport::default()
    };
    if claimed.is_empty() {
        return Ok(report);
    }
    failpoint::at(Point::EndClaimed).await;
    let users: Vec<UserRef> = claimed.iter().map(|claimed| claimed.lease.user_ref()).collect();
    let outcomes = server.warehouse.end_users(&users).await;
    failpoint::at(Point::EndReported).await;
    let mut changes = Vec::with_capacity(claimed.len());
    for (claimed, outcome) in claimed.iter().zip(outcomes) {
        changes.push(outcome_of(
            claimed,
            report.count(&claimed.lease, outcome, server),
            server,
        ));
    }
    // All at once: the store commits together what waits together.
    let recorded = futures_util::future::join_all(changes.into_iter().map(|change| store.record(change))).await;
    failpoint::at(Point::EndRecorded).await;
    let mut failed = None;
    for (claimed, result) in claimed.iter().zip(recorded) {
        match result {
            Ok(_) => {}
            // Another broker has taken over meanwhile, and does the same.
            Err(StoreError::ClaimLost) => tracing::warn!(lease = %claimed.lease.id, "the claim was lost"),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    failed.map_or(Ok(report), Err)
}

/// Nothing can be written down, so nothing is claimed; yet users end at their time. The catalog alone says which: by
/// their marks they are ours, and their own expiry has passed. Their rows follow when the store is well again.
async fn end_expired(server: &Server) {
    let catalog = match server.warehouse.marked_users().await {
        Ok(catalog) => catalog,
        Err(error) => {
            let error: &dyn std::error::Error = &error;
            tracing::error!(server = %server.name, error, "neither store nor catalog can be used");
            return;
        }
    };
    let now = catalog.server_time;
    let expired = |user: &MarkedUser| user.native_end.is_some_and(|end| end <= now);
    let acts = |user: &MarkedUser| user.can_login || user.sessions > 0;
    for user in catalog.users.iter().filter(|user| expired(user) && acts(user)) {
        let outcome = server.warehouse.end_marked(user).await;
        tracing::warn!(server = %server.name, role = %user.rolname, ?outcome, "ended, and not written down yet");
    }
}

impl PassReport {
    /// Counts and logs an outcome, and says what it is to the lease.
    fn count(&mut self, lease: &Lease, outcome: Result<EndOutcome, WarehouseError>, server: &Server) -> LeaseEvent {
        match outcome {
            Ok(EndOutcome::Dropped) => {
                self.ended += 1;
                let reason = lease.end_reason.map(EndReason::as_str);
                tracing::info!(lease = %lease.id, user = %lease.username, reason, "lease ended");
                LeaseEvent::Dropped { at: server.now() }
            }
            Ok(EndOutcome::Blocked(objects)) => {
                self.quarantined += 1;
                tracing::error!(lease = %lease.id, user = %lease.username, ?objects, "user is quarantined");
                LeaseEvent::Blocked { objects }
            }
            Err(error) => {
                self.failed += 1;
                tracing::warn!(
                    lease = %lease.id,
                    user = %lease.username,
                    error = &error as &dyn std::error::Error,
                    "user could not be ended yet"
                );
                LeaseEvent::EndFailed {
                    code: error.code().to_owned(),
                }
            }
        }
    }
}

fn outcome_of(claimed: &Claimed, event: LeaseEvent, server: &Server) -> Change {
    let lease = &claimed.lease;
    let now = server.now();
    let mut change = Change::new(lease, event, Actor::Broker, now);
    change.claim = Some(claimed.claim);
    if matches!(change.event, LeaseEvent::Blocked { .. }) {
        change.not_before = Some(now + backoff(lease, Duration::from_secs(30), Duration::from_mins(15)));
    }
    if matches!(change.event, LeaseEvent::EndFailed { .. }) {
        change.not_before = Some(now + backoff(lease, Duration::from_secs(1), Duration::from_secs(30)));
    }
    if matches!(change.event, LeaseEvent::Dropped { .. }) && rests(lease) {
        change.rest_until = Some(now + server.name_rests());
    }
    change
}

/// Doubles with every attempt, up to a limit. Nothing ever gives up.
fn backoff(lease: &Lease, first: Duration, most: Duration) -> Duration {
    let attempts = match &lease.state {
        LeaseState::Ending { attempts } | LeaseState::Quarantined { attempts, .. } => *attempts,
        LeaseState::Provisioning | LeaseState::Active | LeaseState::Ended { .. } => 0,
    };
    first.saturating_mul(1 << attempts.min(16)).min(most)
}

/// After an end for cause, or one that needed several tries, the name rests (S26).
fn rests(lease: &Lease) -> bool {
    let tried = matches!(lease.state, LeaseState::Ending { attempts } if attempts > 0);
    tried || lease.end_reason.is_some_and(EndReason::is_for_cause)
}

/// Marks a lease as due and wakes the reaper. Asking twice is success.
pub async fn request_end(
    store: &dyn LeaseStore,
    server: &Arc<Server>,
    lease: &Lease,
    reason: EndReason,
    by: Actor,
) -> Result<Lease, StoreError> {
    let lease = store
        .record(Change::new(lease, LeaseEvent::EndDue { reason }, by, server.now()))
        .await?;
    server.ring();
    Ok(lease)
}

/// Waits until the reaper has ended a lease, at most so long, and says how it stands then.
pub async fn wait_ended(
    store: &dyn LeaseStore,
    server: &Server,
    lease: Lease,
    at_most: Duration,
) -> Result<Lease, StoreError> {
    let mut passes = server.passes();
    let id = lease.id;
    let ended = async {
        loop {
            let lease = store.lease(id).await?;
            let done = matches!(lease.state, LeaseState::Ended { .. } | LeaseState::Quarantined { .. });
            if done || passes.changed().await.is_err() {
                return Ok(lease);
            }
        }
    };
    match tokio::time::timeout(at_most, ended).await {
        Ok(result) => result,
        Err(_elapsed) => store.lease(id).await,
    }
}
