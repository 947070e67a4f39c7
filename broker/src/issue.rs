//! Issuing a lease: decide, write down, make the user, hand over. Dying between any two lines leaves a row or a
//! mark that the reaper finds.

use std::sync::Arc;
use std::time::Duration;

use kdbt_api::Timestamp;
use kdbt_api::credential::{Password, PrivateKey};
use kdbt_api::lease::{Engine, IssuedView, LeaseId, OrderRequest, SecretView};
use kdbt_api::name::ProfileName;
use kdbt_api::problem::{Problem, ProblemCode};
use kdbt_api::profile::{self, SecretForm};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::RwLockReadGuard;

use crate::audit::Actor;
use crate::broker::{Broker, denied, holder};
use crate::end::{self, request_end};
use crate::failpoint::{self, Point};
use crate::grant::Grant;
use crate::identity::Identity;
use crate::lease::{EndReason, EngineId, Lease, LeaseEvent, LeaseState};
use crate::policy::Order;
use crate::server::Server;
use crate::service::{IssueOrder, Issued, UseCaseError};
use crate::store::{BookError, Booked, Booking, Change, Idempotency, StoreError};
use crate::view;
use crate::warehouse::{CreateError, Credential, NewUser};

/// After booking, the warehouse lane sends nothing any more once this has passed.
const DEADLINE: Duration = Duration::from_secs(20);

/// How many names are tried when the server has roles of the names that we would take.
const NAME_TRIES: usize = 8;

/// For how long a name that a foreign role holds is not tried again.
const FOREIGN_NAME_RESTS: Duration = Duration::from_hours(1);

/// The longest reason, in characters.
const REASON_LIMIT: usize = 500;

/// Fills an order.
pub(crate) async fn issue(broker: &Broker, who: &Identity, order: IssueOrder) -> Result<Issued, UseCaseError> {
    check_order(broker, who, &order.request)?;
    let under_way = broker.bookings.read().await;
    let policy = broker.policy()?;
    let asked = policy_order(&order.request, broker.clock.now());
    let grant = match policy.decide(&who.claims, &asked) {
        Ok(grant) => grant,
        Err(refusal) => {
            broker.audit_denial(who, &asked.target, refusal.code()).await;
            return Err(denied(&refusal));
        }
    };
    let server = Arc::clone(broker.server(&grant.target.server)?);
    if let Err(stop) = server.may_issue() {
        return Err(UseCaseError::from(ProblemCode::IssuingStopped)
            .caused_by(stop)
            .retry_after(Duration::from_secs(10)));
    }

    failpoint::at(Point::IssueDecided).await;
    let (credential, secret) = credential(broker, grant.target.engine, &order.request).await?;
    let booking = booking(broker, who, &order, grant, &server);
    let profile = order.request.profile.clone();
    let lease = match provision(broker, &server, (who, &asked), (booking, under_way), &credential).await? {
        Provisioned::New(lease) => lease,
        Provisioned::Replay(lease) if secret.is_some() => return Err(already_delivered(&lease)),
        Provisioned::Replay(lease) => {
            return Ok(Issued {
                view: fragment(&server, &lease, profile, None)?,
                replay: true,
            });
        }
    };
    Ok(Issued {
        view: fragment(&server, &lease, profile, secret)?,
        replay: false,
    })
}

fn check_order(broker: &Broker, who: &Identity, request: &OrderRequest) -> Result<(), UseCaseError> {
    let invalid =
        |detail: &str, hint: &str| Err(Problem::new(ProblemCode::InvalidOrder).detail(detail).hint(hint).into());
    check_reason(request.reason.as_deref())?;
    if request.verifier.is_some() && request.public_key.is_some() {
        return invalid(
            "`verifier` and `public_key` exclude each other",
            "send the one that the target's engine takes",
        );
    }
    let brings_none = request.verifier.is_none() && request.public_key.is_none();
    if brings_none && !broker.rules.broker_made_secrets {
        return invalid(
            "this broker makes no secrets",
            "send a `verifier` (PostgreSQL) or a `public_key` (Snowflake), as kdbt-client does",
        );
    }
    if who.session.is_some() && request.owner_proof.is_some() {
        return invalid(
            "an owner proof is for callers without a session",
            "leave `owner_proof` out",
        );
    }
    Ok(())
}

/// What is refused in an order is not explained as if it were filled.
pub(crate) fn check_reason(reason: Option<&str>) -> Result<(), UseCaseError> {
    if reason.is_some_and(|reason| reason.chars().count() > REASON_LIMIT) {
        let problem = Problem::new(ProblemCode::InvalidOrder).detail("the reason has more than 500 characters");
        return Err(problem.hint("shorten it").into());
    }
    Ok(())
}

fn policy_order(request: &OrderRequest, at: Timestamp) -> Order {
    Order {
        target: request.target.clone(),
        rules: request.rules.clone(),
        ttl: request.ttl,
        reason: request.reason.clone(),
        at,
    }
}

fn booking(broker: &Broker, who: &Identity, order: &IssueOrder, grant: Grant, server: &Server) -> Booking {
    let now = server.now();
    let cut = |end: Timestamp| grant.not_after.map_or(end, |limit| end.min(limit)).whole_second();
    Booking {
        id: LeaseId::new(uuid::Uuid::now_v7()),
        holder: holder(who),
        now,
        ends_at: cut(now + grant.ttl.as_duration()),
        max_ends_at: cut(now + grant.ttl_range.max.as_duration()),
        reason: order.request.reason.clone(),
        owner_proof: order.request.owner_proof,
        limits: broker.rules.limits,
        idempotency: order.idempotency_key.clone().map(|key| Idempotency {
            key,
            body: body_hash(&order.request),
        }),
        grant,
    }
}

/// One hash per meaning of a body: the parsed order, written anew. A verifier is hashed with it, never stored.
fn body_hash(request: &OrderRequest) -> [u8; 32] {
    let text = serde_json::to_vec(request).unwrap_or_default();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &text);
    let mut hash = [0; 32];
    hash.copy_from_slice(digest.as_ref());
    hash
}

/// What the server will know the user by, and the secret if the caller left it to us to make one.
async fn credential(
    broker: &Broker,
    engine: Engine,
    request: &OrderRequest,
) -> Result<(Credential, Option<SecretView>), UseCaseError> {
    match (engine, &request.verifier, &request.public_key) {
        (Engine::Postgres, Some(verifier), None) => Ok((Credential::Verifier(verifier.clone()), None)),
        (Engine::Snowflake, None, Some(key)) => Ok((Credential::PublicKey(key.clone()), None)),
        (Engine::Postgres, None, None) => {
            #[expect(
                clippy::disallowed_methods,
                reason = "the secret of a caller without our client is born here"
            )]
            let mut rng = rand::rng();
            let password = Password::generate(&mut rng);
            let verifier = password.verifier(broker.rules.iterations, &mut rng);
            let secret = SecretView::Password(password.secret().expose_secret().to_owned());
            Ok((Credential::Verifier(verifier), Some(secret)))
        }
        (Engine::Snowflake, None, None) => {
            let made = tokio::task::spawn_blocking(PrivateKey::generate).await;
            let internal =
                |error: &dyn std::fmt::Display| UseCaseError::from(ProblemCode::Internal).caused_by(error.to_string());
            let (private, public) = made
                .map_err(|error| internal(&error))?
                .map_err(|error| internal(&error))?;
            let secret = SecretView::PrivateKey(private.secret().expose_secret().to_owned());
            Ok((Credential::PublicKey(public), Some(secret)))
        }
        (Engine::Postgres, _, Some(_)) => Err(wrong_credential(engine, "`verifier`")),
        (Engine::Snowflake, Some(_), _) => Err(wrong_credential(engine, "`public_key`")),
    }
}

fn wrong_credential(engine: Engine, wanted: &str) -> UseCaseError {
    Problem::new(ProblemCode::WrongCredential)
        .reason(engine.as_str())
        .detail(format!("the target is on {engine}"))
        .hint(format!("send a {wanted}, or neither, and the broker makes the secret"))
        .into()
}

enum Provisioned {
    New(Lease),
    Replay(Lease),
}

/// Books and makes the user, with the next name where a foreign role holds the first.
async fn provision(
    broker: &Broker,
    server: &Arc<Server>,
    asked: (&Identity, &Order),
    (booking, mut under_way): (Booking, RwLockReadGuard<'_, ()>),
    credential: &Credential,
) -> Result<Provisioned, UseCaseError> {
    for _ in 0..NAME_TRIES {
        let mut booking = booking.clone();
        booking.id = LeaseId::new(uuid::Uuid::now_v7());
        let deadline = tokio::time::Instant::now() + DEADLINE;
        // The row goes first: if the process dies on the next line, the reaper knows what to end.
        let lease = match broker.store.book(booking).await.map_err(book_error)? {
            Booked::New(lease) => lease,
            Booked::Replay(lease) => return replay(lease),
        };
        drop(under_way);
        failpoint::at(Point::IssueBooked).await;
        let Some(user) = new_user(&lease, credential, deadline) else {
            return Err(ProblemCode::Internal.into());
        };
        match server.warehouse.create_user(user).await {
            Ok(engine_id) => {
                failpoint::at(Point::IssueCreated).await;
                let lease = activate(broker, server, asked, &lease, engine_id).await?;
                return Ok(Provisioned::New(lease));
            }
            Err(CreateError::NameTaken) => {
                under_way = broker.bookings.read().await;
                let now = server.now();
                let mut taken = Change::new(&lease, LeaseEvent::NameTaken { at: now }, Actor::Broker, now);
                taken.rest_until = Some(now + FOREIGN_NAME_RESTS);
                let taken = broker.store.record(taken).await?;
                tracing::warn!(server = %server.name, user = %lease.username, "a foreign role holds a lease name");
                // Whoever said "stop" meanwhile meant the order, not only its first name (I10).
                if taken.state.is_live() {
                    return Err(stopped());
                }
            }
            Err(error @ (CreateError::Refused(_) | CreateError::Unknown(_))) => {
                request_end(
                    broker.store.as_ref(),
                    server,
                    &lease,
                    EndReason::IssueFailed,
                    Actor::Broker,
                )
                .await?;
                return Err(UseCaseError::from(ProblemCode::WarehouseDown)
                    .caused_by(error)
                    .retry_after(Duration::from_secs(5)));
            }
        }
    }
    Err(UseCaseError::from(ProblemCode::Internal)
        .caused_by("every lease name that was tried is held by a foreign role"))
}

fn new_user(lease: &Lease, credential: &Credential, deadline: tokio::time::Instant) -> Option<NewUser> {
    let issue = lease.issue()?;
    Some(NewUser {
        lease: lease.id,
        subject: issue.holder.subject_hash(),
        username: lease.username.clone(),
        credential: credential.clone(),
        database: issue.grant.target.database.clone(),
        access: issue.grant.access.clone(),
        session: issue.grant.session.clone(),
        profile: issue.grant.profile.clone(),
        ends_at: lease.ends_at,
        max_ends_at: lease.max_ends_at,
        deadline,
    })
}

/// Records that the user exists. Whoever said "stop" meanwhile has moved the lease on, or replaced the policy, and
/// wins (I10).
async fn activate(
    broker: &Broker,
    server: &Arc<Server>,
    asked: (&Identity, &Order),
    lease: &Lease,
    engine_id: EngineId,
) -> Result<Lease, UseCaseError> {
    let _unchanged = broker.policy_gate.read().await;
    if !still_granted(broker, asked, lease)? {
        let reason = EndReason::PolicyChanged;
        request_end(broker.store.as_ref(), server, lease, reason, Actor::Broker).await?;
    }
    let created = Change::new(lease, LeaseEvent::Created { engine_id }, Actor::Broker, server.now());
    match broker.store.record(created).await {
        Ok(lease) if lease.state == LeaseState::Active => {
            failpoint::at(Point::IssueActivated).await;
            server.ring_before(lease.ends_at);
            tracing::info!(
                lease = %lease.id,
                user = %lease.username,
                server = %lease.server,
                ends_at = %lease.ends_at,
                "lease issued"
            );
            Ok(lease)
        }
        Ok(_ending) => {
            server.ring();
            Err(stopped())
        }
        Err(StoreError::Illegal(_)) => {
            // The lease has ended before its user was made: nobody else will end this one before the next sweep.
            let mut user = lease.user_ref();
            user.engine_id = Some(engine_id);
            for outcome in server.warehouse.end_users(&[user]).await {
                tracing::warn!(lease = %lease.id, ?outcome, "a user made after its lease had ended");
            }
            Err(stopped())
        }
        Err(error) => Err(error.into()),
    }
}

/// A repeated request gets the same lease, wherever it stands.
fn replay(lease: Lease) -> Result<Provisioned, UseCaseError> {
    match lease.state {
        LeaseState::Provisioning => {
            Err(UseCaseError::from(ProblemCode::RequestInProgress).retry_after(Duration::from_secs(1)))
        }
        LeaseState::Active | LeaseState::Ending { .. } | LeaseState::Quarantined { .. } | LeaseState::Ended { .. } => {
            Ok(Provisioned::Replay(lease))
        }
    }
}

fn already_delivered(lease: &Lease) -> UseCaseError {
    Problem::new(ProblemCode::SecretAlreadyDelivered)
        .detail(format!("the secret of `{}` went out with the first answer", lease.id))
        .hint("revoke that lease and ask again with another idempotency key")
        .into()
}

/// Whether today's policy still gives what the lease was given: it may have been replaced since the decision.
fn still_granted(broker: &Broker, (who, asked): (&Identity, &Order), lease: &Lease) -> Result<bool, UseCaseError> {
    let (Some(issue), policy) = (lease.issue(), broker.policy()?) else {
        return Ok(false);
    };
    if *policy.hash() == issue.grant.policy {
        return Ok(true);
    }
    let today = policy
        .decide(&who.claims, asked)
        .ok()
        .and_then(|grant| grant.render(lease.username.slug()).ok());
    Ok(today.is_some_and(|today| today.covers(&issue.grant)))
}

fn stopped() -> UseCaseError {
    Problem::new(ProblemCode::Stopped)
        .detail("the lease was ended while it was being made")
        .into()
}

fn book_error(error: BookError) -> UseCaseError {
    let detail = error.to_string();
    let limit = |hint: &str| {
        UseCaseError::from(
            Problem::new(ProblemCode::LimitReached)
                .detail(detail.clone())
                .hint(hint),
        )
        .retry_after(end::PROVISIONING_FOR)
    };
    match error {
        BookError::PersonLimit(_) => limit("end one with `kdbt-client revoke`, or wait until one expires"),
        BookError::RuleLimit(_) | BookError::TargetLimit => limit("wait until others have ended theirs"),
        BookError::KeyReused => ProblemCode::IdempotencyKeyReused.into(),
        BookError::Name(name) => Problem::new(ProblemCode::InvalidOrder)
            .detail(format!("the policy makes an invalid name for you: {name}"))
            .hint("ask a DBA to shorten the name in the rule")
            .into(),
        BookError::Store(error) => error.into(),
    }
}

fn fragment(
    server: &Server,
    lease: &Lease,
    profile: Option<ProfileName>,
    secret: Option<SecretView>,
) -> Result<IssuedView, UseCaseError> {
    let internal = |what: String| UseCaseError::from(ProblemCode::Internal).caused_by(what);
    let connection = view::connection(&server.public, lease)
        .ok_or_else(|| internal("an adopted lease, or one of another engine than its server's".into()))?;
    let (Some(target), Some(name)) = (&lease.target, profile.or_else(|| "kdbt".parse().ok())) else {
        return Err(internal("a lease without a target".into()));
    };
    let literal = secret.as_ref().map(|secret| match secret {
        SecretView::Password(text) | SecretView::PrivateKey(text) => SecretString::from(text.as_str()),
    });
    let form = literal.as_ref().map_or(SecretForm::Variable, SecretForm::Literal);
    let profiles_yml =
        profile::render(&name, target, &connection, form, None).map_err(|error| internal(error.to_string()))?;
    Ok(IssuedView {
        lease: view::lease(lease),
        connection,
        profiles_yml: profiles_yml.expose_secret().to_owned(),
        secret,
    })
}
