//! The sweep: compares the catalog with the store, in both directions, catalog first (I1, S14).
//!
//! The catalog is read first because the other order would take a lease that was issued in between for a stray.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kdbt_api::Timestamp;
use kdbt_api::lease::{LeaseId, LeaseStatus};

use crate::audit::{Actor, AuditEvent};
use crate::clock::Clock;
use crate::end::PROVISIONING_FOR;
use crate::failpoint::{self, Point};
use crate::lease::{EndReason, Lease, LeaseEvent, LeaseState};
use crate::server::{Server, SweepResult};
use crate::store::{Adopted, Change, LeaseFilter, LeaseStore, Page, StoreError, UnreadableLease};
use crate::warehouse::{MarkedUser, WarehouseError};

/// No adopted lease lives longer than this, whatever its mark says: a mark can be forged where many roles may
/// comment (PostgreSQL 15).
pub const ADOPTED_AT_MOST: Duration = Duration::from_hours(12);

/// How long after its end a user may still be seen before it counts as overdue: some passes of the reaper.
const OVERDUE_AFTER: Duration = Duration::from_secs(30);

/// So many failed attempts take about that long, with their backoff.
const OVERDUE_ATTEMPTS: u32 = 5;

/// What one sweep found and did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SweepReport {
    /// Users with our mark.
    pub users: usize,
    /// Users whose row was lost, taken over.
    pub adopted: usize,
    /// Users that no lease explains, ended.
    pub ended: usize,
    /// Leases whose user is gone from the catalog, made due.
    pub vanished: usize,
    /// Users that are overdue, have rights and can still log in or have sessions.
    pub dangerous: usize,
    /// Leases whose row cannot be read.
    pub unreadable: usize,
    /// Adopted users that were not there when this broker first looked: another one makes users in our name.
    pub intruding: usize,
}

/// Why a sweep did not finish.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// The catalog could not be read.
    #[error("the catalog could not be read")]
    Warehouse(#[from] WarehouseError),
    /// The store could not be read or written.
    #[error("the store failed")]
    Store(#[from] StoreError),
}

/// One full comparison. Only a sweep that reaches its end counts for the server's health.
pub async fn sweep(store: &dyn LeaseStore, server: &Server, clock: &dyn Clock) -> Result<SweepReport, SweepError> {
    let catalog = server.warehouse.marked_users().await?;
    failpoint::at(Point::SweepCatalogRead).await;
    // The answer was made about half a round trip ago.
    let read_at = clock.elapsed();
    let asked = clock.now() - catalog.round_trip / 2;
    let offset_millis = catalog
        .server_time
        .as_unix_millis()
        .saturating_sub(asked.as_unix_millis());
    let now = catalog.server_time;

    let live = Live::on(store, server).await?;
    failpoint::at(Point::SweepStoreRead).await;
    let mut report = SweepReport {
        users: catalog.users.len(),
        unreadable: live.unreadable.len(),
        ..SweepReport::default()
    };
    for user in &catalog.users {
        let overdue = match (live.lease_of(user), live.unreadable_of(user)) {
            (Some(lease), _) if belongs(lease, server, user) => is_overdue(lease, now),
            (_, Some(row)) if !is_due_without_row(user, row, now) => false,
            (_, row) => {
                let fate = match row {
                    Some(_) => end_stray(store, server, user, now, &mut report).await?,
                    None => resolve(store, server, user, now, &mut report).await?,
                };
                match fate {
                    Fate::Explained(lease) => is_overdue(&lease, now),
                    Fate::Ended => false,
                    Fate::Stays => true,
                }
            }
        };
        // One whose end has taken all its rights and waits for a backend that does not listen, as PostgreSQL 15's while it
        // hashes, endangers nobody: one holder must not stop issuing for all (S3).
        if overdue && !user.powerless && (user.can_login || user.sessions > 0) {
            report.dangerous += 1;
        }
    }
    let seen = leases_of(&catalog.users);
    report.vanished = end_vanished(store, &live.leases, &seen, now).await?;
    report.dangerous += hidden(&live.leases, &seen);
    failpoint::at(Point::SweepRecorded).await;
    server.swept(SweepResult {
        server_time: now + catalog.round_trip / 2 + clock.elapsed().saturating_sub(read_at),
        offset_millis,
        dangerous: report.dangerous,
        login_within: catalog.login_within,
    });
    if report.adopted + report.ended + report.vanished > 0 {
        server.ring();
        tracing::warn!(server = %server.name, ?report, "the sweep found differences");
    }
    Ok(report)
}

/// The lease of the mark is the lease of this very user: a mark copied to another role, or to a clone of the
/// cluster, explains nothing.
fn belongs(lease: &Lease, server: &Server, user: &MarkedUser) -> bool {
    let same_user = match lease.engine_id {
        Some(id) => id == user.engine_id,
        None => user.username.as_ref() == Some(&lease.username),
    };
    same_user && lease.server == server.name
}

fn is_overdue(lease: &Lease, now: Timestamp) -> bool {
    let due = match &lease.state {
        LeaseState::Ended { .. } => return true,
        LeaseState::Provisioning => lease.issued_at + PROVISIONING_FOR,
        // Ended early, and that fails: it is overdue now, not at its own end.
        LeaseState::Ending { attempts } if *attempts >= OVERDUE_ATTEMPTS => return true,
        LeaseState::Active | LeaseState::Ending { .. } | LeaseState::Quarantined { .. } => lease.ends_at,
    };
    due + OVERDUE_AFTER < now
}

/// What the store has of a server's leases that have not ended.
#[derive(Default)]
struct Live {
    leases: BTreeMap<LeaseId, Lease>,
    unreadable: Vec<UnreadableLease>,
}

impl Live {
    async fn on(store: &dyn LeaseStore, server: &Server) -> Result<Self, StoreError> {
        use LeaseStatus as S;
        let filter = LeaseFilter {
            server: Some(server.name.clone()),
            states: vec![S::Provisioning, S::Active, S::Ending, S::Quarantined],
            ..LeaseFilter::default()
        };
        let mut live = Self::default();
        let mut page = Page {
            after: None,
            limit: 500,
        };
        loop {
            let found = store.leases(&filter, page).await?;
            live.leases
                .extend(found.leases.into_iter().map(|lease| (lease.id, lease)));
            for row in found.unreadable {
                live.add_unreadable(row, server);
            }
            match found.next {
                Some(after) => page.after = Some(after),
                None => return Ok(live),
            }
        }
    }

    fn add_unreadable(&mut self, row: UnreadableLease, server: &Server) {
        // A page may begin with the damaged keys that the one before ended with.
        if self.unreadable.contains(&row) {
            return;
        }
        tracing::error!(
            server = %server.name,
            lease = row.row,
            error = row.what,
            "a lease cannot be read, so nobody can renew or revoke it and its user is left to its own end: mend the \
             row while the broker is stopped, or take the user's LOGIN away by hand"
        );
        self.unreadable.push(row);
    }

    /// The live lease that a user's mark names.
    fn lease_of(&self, user: &MarkedUser) -> Option<&Lease> {
        self.leases.get(&user.mark.as_ref().ok()?.lease)
    }

    /// The row that cannot be read and is this user's as far as it can.
    fn unreadable_of(&self, user: &MarkedUser) -> Option<&UnreadableLease> {
        let lease = user.mark.as_ref().ok().map(|mark| mark.lease.to_string());
        self.unreadable.iter().find(|row| {
            lease.as_ref() == Some(&row.row)
                || row.engine_id == Some(user.engine_id)
                || (row.username.is_some() && row.username == user.username)
        })
    }
}

/// Whether a user whose lease cannot be read has had its time by all that is known without it: its mark and its
/// native expiry, or that somebody wanted its end before.
fn is_due_without_row(user: &MarkedUser, row: &UnreadableLease, now: Timestamp) -> bool {
    let ending = matches!(row.status, Some(LeaseStatus::Ending | LeaseStatus::Quarantined));
    ending || own_end(user, now) <= now
}

/// When a user ends by what the catalog alone says of it.
fn own_end(user: &MarkedUser, now: Timestamp) -> Timestamp {
    let native = user.native_end.unwrap_or(now);
    match &user.mark {
        Ok(mark) => native.min(mark.max_ends_at),
        Err(_) => native,
    }
}

/// What became of a user that no live lease explained.
enum Fate {
    /// This lease explains it from now on.
    Explained(Box<Lease>),
    /// It cannot log in any more and has no sessions.
    Ended,
    /// It could be neither adopted nor ended.
    Stays,
}

/// A user that no live lease explains: adopted if its mark says that it has time left, else ended here and now.
async fn resolve(
    store: &dyn LeaseStore,
    server: &Server,
    user: &MarkedUser,
    now: Timestamp,
    report: &mut SweepReport,
) -> Result<Fate, StoreError> {
    if user.mark.is_ok() && user.username.is_some() {
        let ends_at = own_end(user, now).min(now + ADOPTED_AT_MOST);
        if ends_at > now && user.can_login {
            match store.adopt(&server.name, user, ends_at, now).await {
                Ok(Adopted::New(lease)) => {
                    failpoint::at(Point::SweepAdopted).await;
                    report.adopted += 1;
                    if server.has_swept() {
                        report.intruding += 1;
                        tracing::error!(
                            server = %server.name,
                            role = %user.rolname,
                            lease = %lease.id,
                            "a user with our mark appeared that this broker did not make: another broker of this \
                             installation works on this server, or somebody wrote the mark. Two brokers need two \
                             installation names, else each ends the other's leases at the ends that it first saw"
                        );
                    }
                    return Ok(Fate::Explained(Box::new(lease)));
                }
                // Booked since the catalog was read, or a mark that points at another user's lease.
                Ok(Adopted::Known(lease)) if lease.state.is_live() && belongs(&lease, server, user) => {
                    return Ok(Fate::Explained(Box::new(lease)));
                }
                Ok(Adopted::Known(_)) => {}
                // Another live lease has this user's name: that one has to end first. Unexplained until then.
                Err(error @ StoreError::Corrupt { .. }) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::error!(server = %server.name, role = %user.rolname, error, "a user cannot be adopted yet");
                    return Ok(Fate::Stays);
                }
                Err(error) => return Err(error),
            }
        }
    }
    end_stray(store, server, user, now, report).await
}

/// Ends a user by its mark.
async fn end_stray(
    store: &dyn LeaseStore,
    server: &Server,
    user: &MarkedUser,
    now: Timestamp,
    report: &mut SweepReport,
) -> Result<Fate, StoreError> {
    match server.warehouse.end_marked(user).await {
        Ok(outcome) => {
            report.ended += 1;
            tracing::warn!(server = %server.name, role = %user.rolname, ?outcome, "a user without a lease was ended");
            failpoint::at(Point::SweepStrayEnded).await;
            store.audit(stray_ended(server, user, now)).await?;
            Ok(Fate::Ended)
        }
        Err(error) => {
            let error: &dyn std::error::Error = &error;
            tracing::error!(server = %server.name, role = %user.rolname, error, "a user without a lease stays");
            Ok(Fate::Stays)
        }
    }
}

fn stray_ended(server: &Server, user: &MarkedUser, now: Timestamp) -> AuditEvent {
    let mut details = vec![("role", user.rolname.clone().into())];
    if let Some(oid) = user.engine_id.oid() {
        details.push(("oid", oid.into()));
    }
    AuditEvent {
        at: now,
        action: "stray-ended".into(),
        actor: Actor::Broker,
        lease: user.mark.as_ref().ok().map(|mark| mark.lease),
        username: user.username.clone(),
        server: Some(server.name.clone()),
        target: None,
        details: details
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect(),
    }
}

/// The leases that the marks in the catalog name.
fn leases_of(users: &[MarkedUser]) -> BTreeSet<LeaseId> {
    let marks = users.iter().filter_map(|user| user.mark.as_ref().ok());
    marks.map(|mark| mark.lease).collect()
}

/// How many leases cannot be ended while the catalog does not show their user, as where it was handed to another owner:
/// nobody knows that these cannot log in any more.
fn hidden(live: &BTreeMap<LeaseId, Lease>, seen: &BTreeSet<LeaseId>) -> usize {
    let fails = |lease: &&Lease| matches!(lease.state, LeaseState::Ending { attempts } if attempts >= OVERDUE_ATTEMPTS);
    live.values()
        .filter(fails)
        .filter(|lease| !seen.contains(&lease.id))
        .count()
}

/// Active leases whose user the catalog does not show any more: somebody dropped it by hand. Ending them checks for
/// what is left of it. Young ones may have been made after the catalog was read.
async fn end_vanished(
    store: &dyn LeaseStore,
    live: &BTreeMap<LeaseId, Lease>,
    seen: &BTreeSet<LeaseId>,
    now: Timestamp,
) -> Result<usize, StoreError> {
    let mut vanished = 0;
    for lease in live.values() {
        let settled = lease.issued_at + PROVISIONING_FOR < now;
        if lease.state == LeaseState::Active && settled && !seen.contains(&lease.id) {
            let event = LeaseEvent::EndDue {
                reason: EndReason::Unknown,
            };
            store.record(Change::new(lease, event, Actor::Broker, now)).await?;
            vanished += 1;
        }
    }
    Ok(vanished)
}
