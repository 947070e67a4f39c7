//! Renewing a lease: the same user and secret, a later end, under today's policy (I9).

use std::sync::PoisonError;
use std::time::Duration;

use kdbt_api::lease::{LeaseId, LeaseView};
use kdbt_api::problem::{Problem, ProblemCode};
use kdbt_api::{Timestamp, Ttl};

use crate::audit::Actor;
use crate::broker::{Broker, denied, holder};
use crate::failpoint::{self, Point};
use crate::identity::Identity;
use crate::lease::{Lease, LeaseEvent, LeaseState};
use crate::policy::Order;
use crate::service::UseCaseError;
use crate::store::Change;
use crate::view;
use crate::warehouse::WarehouseError;

/// One renewal of a lease at a time: two at once could leave server and store with different ends, or move the end
/// back. Who comes second is told so and does not wait, else a holder who locks their own user could fill the lane
/// that ends users with renewals of one lease (S4).
struct Turn<'a> {
    broker: &'a Broker,
    lease: LeaseId,
}

impl<'a> Turn<'a> {
    fn take(broker: &'a Broker, lease: LeaseId) -> Result<Self, UseCaseError> {
        let mut renewing = broker.renewing.lock().unwrap_or_else(PoisonError::into_inner);
        if renewing.insert(lease) {
            Ok(Self { broker, lease })
        } else {
            Err(UseCaseError::from(ProblemCode::RequestInProgress).retry_after(Duration::from_secs(1)))
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut renewing = self.broker.renewing.lock().unwrap_or_else(PoisonError::into_inner);
        renewing.remove(&self.lease);
    }
}

/// Moves the end of a lease that the caller was shown to hold. Never back, never past the first issue's maximum.
pub(crate) async fn renew(
    broker: &Broker,
    who: &Identity,
    lease: Lease,
    ttl: Option<Ttl>,
) -> Result<LeaseView, UseCaseError> {
    let server = broker.server(&lease.server)?;
    let _turn = Turn::take(broker, lease.id)?;
    // It may have been renewed between the caller's look and this turn.
    let lease = broker.store.lease(lease.id).await?;
    let now = server.now();
    let ends_at = new_end(broker, who, &lease, ttl, now)?;
    failpoint::at(Point::RenewDecided).await;

    // The server first: dying here leaves a native expiry past the lease's end, and the reaper keeps to the lease.
    server
        .warehouse
        .extend_user(&lease.user_ref(), ends_at)
        .await
        .map_err(|error| {
            let code = match error {
                WarehouseError::Gone => ProblemCode::LeaseNotActive,
                WarehouseError::Unreachable(_) | WarehouseError::Server { .. } | WarehouseError::Unsafe(_) => {
                    ProblemCode::WarehouseDown
                }
            };
            UseCaseError::from(code).caused_by(error)
        })?;
    failpoint::at(Point::RenewExtended).await;
    let by = Actor::Identity(holder(who));
    // Whoever changed the policy meanwhile wins (I10).
    let _unchanged = broker.policy_gate.read().await;
    let ends_at = ends_at.min(new_end(broker, who, &lease, ttl, now)?);
    let lease = broker
        .store
        .record(Change::new(&lease, LeaseEvent::Extended { ends_at }, by, now))
        .await?;
    failpoint::at(Point::RenewRecorded).await;
    tracing::info!(lease = %lease.id, user = %lease.username, ends_at = %lease.ends_at, "lease renewed");
    Ok(view::lease(&lease))
}

/// The end that today's policy gives to a renewal: for the target and the rules that are stored with the lease.
fn new_end(
    broker: &Broker,
    who: &Identity,
    lease: &Lease,
    ttl: Option<Ttl>,
    now: Timestamp,
) -> Result<Timestamp, UseCaseError> {
    let (Some(issue), Some(target), LeaseState::Active) = (lease.issue(), lease.target.clone(), &lease.state) else {
        return Err(ProblemCode::LeaseNotActive.into());
    };
    // The end may have passed a moment ago, with the reaper on its way.
    if lease.ends_at <= now {
        return Err(ProblemCode::LeaseNotActive.into());
    }
    let order = Order {
        target,
        rules: issue.grant.rules.clone(),
        ttl: None,
        reason: issue.reason.clone(),
        at: broker.clock.now(),
    };
    let today = broker
        .policy()?
        .decide(&who.claims, &order)
        .map_err(|refusal| denied(&refusal))?;
    let rendered = today.render(lease.username.slug());
    if !rendered.is_ok_and(|rendered| rendered.covers(&issue.grant)) {
        return Err(Problem::new(ProblemCode::GrantChanged)
            .detail("the policy no longer gives what this lease was given")
            .hint("ask for a new lease")
            .into());
    }
    let asked = ttl.unwrap_or(today.ttl).min(today.ttl_range.max);
    let limit = today
        .not_after
        .map_or(lease.max_ends_at, |limit| limit.min(lease.max_ends_at));
    Ok((now + asked.as_duration()).min(limit).whole_second().max(lease.ends_at))
}
