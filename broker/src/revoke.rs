//! Revoking: the holder gives a lease back, or an admin takes many away. Asking twice is success.

use std::time::Duration;

use kdbt_api::credential::OwnerProof;
use kdbt_api::lease::{LeaseId, LeaseView, RevocationRequest, RevocationView};
use kdbt_api::problem::{Problem, ProblemCode};

use crate::audit::Actor;
use crate::broker::{Broker, holder, live_states};
use crate::end::{request_end, wait_ended};
use crate::failpoint::{self, Point};
use crate::identity::Identity;
use crate::lease::{EndReason, Lease, LeaseEvent};
use crate::service::UseCaseError;
use crate::store::{Change, LeaseFilter, Page, StoreError};
use crate::view;

/// How long a caller waits for the user to be gone.
const WAIT: Duration = Duration::from_secs(2);

/// How many leases one revocation reads at a time.
const PAGE: usize = 500;

/// Ends one lease, of the caller's or (admins) of anybody's.
pub(crate) async fn revoke(
    broker: &Broker,
    who: &Identity,
    id: LeaseId,
    proof: Option<&OwnerProof>,
) -> Result<LeaseView, UseCaseError> {
    let (lease, reason) = match broker.held_lease(who, id, proof).await {
        Ok(lease) => (lease, EndReason::Revoked),
        Err(_) if broker.is_admin(who) => (broker.store.lease(id).await?, EndReason::RevokedByAdmin),
        Err(error) => return Err(error),
    };
    failpoint::at(Point::RevokeFound).await;
    let mut lease = end_one(broker, who, &lease, reason).await?;
    failpoint::at(Point::RevokeRecorded).await;
    if let Some(server) = broker.servers.get(&lease.server) {
        lease = wait_ended(broker.store.as_ref(), server, lease, WAIT).await?;
    }
    Ok(view::lease(&lease))
}

/// Ends all leases that a request selects, or says which they are.
pub(crate) async fn revoke_many(
    broker: &Broker,
    who: &Identity,
    request: RevocationRequest,
) -> Result<RevocationView, UseCaseError> {
    let dry_run = request.dry_run;
    let (filter, reason) = selection(broker, who, request)?;
    let mut leases = Vec::new();
    // An order that was decided before this moment is booked behind this line, and selected with the others.
    drop(broker.bookings.write().await);
    let (selected, mut failed) = all(broker, &filter).await?;
    for lease in selected {
        if dry_run {
            leases.push(view::lease(&lease));
            continue;
        }
        // One that cannot be ended must not save the others.
        match end_one(broker, who, &lease, reason).await {
            Ok(lease) => leases.push(view::lease(&lease)),
            Err(error) => failed = Some(error),
        }
    }
    match failed {
        Some(error) => Err(error),
        None => Ok(RevocationView { dry_run, leases }),
    }
}

/// Makes a lease due. Also on a server that is configured no more: should it come back, the user ends.
async fn end_one(broker: &Broker, who: &Identity, lease: &Lease, reason: EndReason) -> Result<Lease, UseCaseError> {
    let (store, by) = (broker.store.as_ref(), Actor::Identity(holder(who)));
    let Some(server) = broker.servers.get(&lease.server) else {
        let due = Change::new(lease, LeaseEvent::EndDue { reason }, by, broker.clock.now());
        return Ok(store.record(due).await?);
    };
    Ok(request_end(store, server, lease, reason, by).await?)
}

fn selection(
    broker: &Broker,
    who: &Identity,
    request: RevocationRequest,
) -> Result<(LeaseFilter, EndReason), UseCaseError> {
    let others = request.subject.is_some() || request.rule.is_some() || request.target.is_some();
    let states = live_states();
    match (request.mine, others) {
        (true, false) if request.issuer.is_none() => {
            // Two jobs of one service account cannot touch each other's leases (I8): each revokes its own by proof.
            if who.session.is_none() {
                return Err(malformed(
                    "`mine` is for people; a job revokes each lease with its owner proof",
                ));
            }
            let mine = Some((who.issuer.to_string(), who.subject.to_string()));
            Ok((
                LeaseFilter {
                    holder: mine,
                    states,
                    ..LeaseFilter::default()
                },
                EndReason::Revoked,
            ))
        }
        (false, true) if !broker.is_admin(who) => Err(ProblemCode::AdminRequired.into()),
        (false, true) => {
            let RevocationRequest {
                subject,
                issuer,
                rule,
                target,
                ..
            } = request;
            let (holder, subject) = match (issuer, subject) {
                (Some(issuer), Some(subject)) => (Some((issuer, subject)), None),
                (None, subject) => (None, subject),
                (Some(_), None) => return Err(malformed("`issuer` goes with `subject`")),
            };
            let filter = LeaseFilter {
                holder,
                subject,
                target,
                rule,
                states,
                ..LeaseFilter::default()
            };
            Ok((filter, EndReason::RevokedByAdmin))
        }
        (true, _) | (false, false) => Err(malformed(
            "select either `mine`, or at least one of `subject`, `rule` and `target`",
        )),
    }
}

fn malformed(detail: &str) -> UseCaseError {
    Problem::new(ProblemCode::MalformedRequest).detail(detail).into()
}

/// All that a filter selects; and an error for what cannot be read of it, so that no answer is taken for complete.
async fn all(broker: &Broker, filter: &LeaseFilter) -> Result<(Vec<Lease>, Option<UseCaseError>), UseCaseError> {
    let (mut leases, mut failed) = (Vec::new(), None);
    let mut page = Page {
        after: None,
        limit: PAGE,
    };
    loop {
        let found = broker.store.leases(filter, page).await?;
        leases.extend(found.leases);
        if let Some(row) = found.unreadable.first() {
            failed = Some(StoreError::from(row).into());
        }
        match found.next {
            Some(after) => page.after = Some(after),
            None => return Ok((leases, failed)),
        }
    }
}
