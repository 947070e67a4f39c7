//! The broker behind its front door: what the use cases share, and who may touch which lease.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use kdbt_api::credential::{Iterations, OwnerProof};
use kdbt_api::lease::{
    CancelledView, ClientConfig, ExplainRequest, ExplainView, LeaseId, LeaseList, LeaseStatus, LeaseView,
    RevocationRequest, RevocationView, TargetList,
};
use kdbt_api::name::{ServerName, TargetName};
use kdbt_api::problem::{Problem, ProblemCode};
use kdbt_api::{Timestamp, Ttl};
use serde_json::Value;
use tokio::sync::RwLock;

use crate::audit::{Actor, AuditEvent};
use crate::clock::SharedClock;
use crate::config::Admin;
use crate::identity::{Authenticator, Claims, Identity};
use crate::lease::{Holder, Lease, LeaseState};
use crate::policy::{Order, PolicySet};
use crate::server::Server;
use crate::service::{Check, IssueOrder, Issued, LeaseQuery, Readiness, Service, UseCaseError};
use crate::store::{LeaseFilter, LeaseStore, Limits, Page, StoreError};
use crate::view;

/// How many denials of one minute are written to the audit log; the rest is counted. A token holder must not be
/// able to fill the disk.
const DENIALS_PER_MINUTE: u32 = 600;

/// What the use cases share.
pub struct Broker {
    /// The store.
    pub store: Arc<dyn LeaseStore>,
    /// The servers by name.
    pub servers: BTreeMap<ServerName, Arc<Server>>,
    /// The running policy; none until one was loaded.
    pub policies: ArcSwapOption<PolicySet>,
    /// Held for writing while the policy is replaced, for reading from the last look at it until what it gave is
    /// written down: a policy that has been replaced gives nothing any more (I10).
    pub policy_gate: RwLock<()>,
    /// Held for reading from an order's decision until it is booked. Who selects leases to end passes through it for
    /// writing: every order that was there before stands among them then (I10).
    pub bookings: RwLock<()>,
    /// For readiness.
    pub authenticator: Authenticator,
    /// The clock.
    pub clock: SharedClock,
    /// What config says.
    pub rules: HouseRules,
    /// The leases whose renewal is under way: one at a time each.
    pub renewing: Mutex<BTreeSet<LeaseId>>,
    /// How many denials were audited in the minute that began then.
    pub denials: Mutex<(Timestamp, u32)>,
}

/// What config says about leases and callers.
#[derive(Debug, Clone)]
pub struct HouseRules {
    /// Who may see and end everybody's leases.
    pub admins: Vec<Admin>,
    /// How many leases there may be.
    pub limits: Limits,
    /// Whether the broker makes the secret for callers that send no verifier.
    pub broker_made_secrets: bool,
    /// How many iterations a verifier made here has, and clients are told to use.
    pub iterations: Iterations,
    /// What clients are told.
    pub client_config: ClientConfig,
}

/// Seen by another person, a lease is not there.
pub(crate) fn not_found() -> UseCaseError {
    ProblemCode::NotFound.into()
}

impl From<StoreError> for UseCaseError {
    fn from(error: StoreError) -> Self {
        let code = match &error {
            StoreError::NotFound(_) => ProblemCode::NotFound,
            StoreError::Illegal(_) => ProblemCode::LeaseNotActive,
            StoreError::Busy => ProblemCode::Unavailable,
            StoreError::ClaimLost | StoreError::Corrupt { .. } => ProblemCode::Internal,
            StoreError::Unavailable(_) => ProblemCode::StoreDown,
        };
        let failed = Self::from(code).caused_by(error);
        if matches!(code, ProblemCode::Unavailable | ProblemCode::StoreDown) {
            return failed.retry_after(Duration::from_secs(5));
        }
        failed
    }
}

pub(crate) fn holder(who: &Identity) -> Holder {
    Holder {
        issuer: who.issuer.to_string(),
        subject: who.subject.to_string(),
        session: who.session.clone(),
        display_name: who.display_name.clone(),
        azp: who.azp.clone(),
    }
}

impl Broker {
    /// The running policy.
    pub(crate) fn policy(&self) -> Result<Arc<PolicySet>, UseCaseError> {
        let missing = || UseCaseError::from(ProblemCode::PolicyNotLoaded).retry_after(Duration::from_secs(30));
        self.policies.load_full().ok_or_else(missing)
    }

    /// The server of a lease or grant. The policy was checked against the config when it was loaded.
    pub(crate) fn server(&self, name: &ServerName) -> Result<&Arc<Server>, UseCaseError> {
        let unknown =
            || UseCaseError::from(ProblemCode::Internal).caused_by(format!("server `{name}` is not configured"));
        self.servers.get(name).ok_or_else(unknown)
    }

    /// Whether a caller may see and end everybody's leases.
    pub(crate) fn is_admin(&self, who: &Identity) -> bool {
        self.rules.admins.iter().any(|admin| is_held(admin, &who.claims))
    }

    /// The lease, if it is the caller's: the same issuer and subject (I8). Else it is not there.
    pub(crate) async fn own_lease(&self, who: &Identity, id: LeaseId) -> Result<Lease, UseCaseError> {
        let lease = self.store.lease(id).await?;
        if is_holder(who, &lease) {
            Ok(lease)
        } else {
            Err(not_found())
        }
    }

    /// The same, for looking at it: a job of a service account sees what it has the proof of, and what nobody has.
    async fn readable_lease(
        &self,
        who: &Identity,
        id: LeaseId,
        proof: Option<&OwnerProof>,
    ) -> Result<Lease, UseCaseError> {
        let lease = self.own_lease(who, id).await?;
        if may_read(who, &lease, proof) {
            Ok(lease)
        } else {
            Err(not_found())
        }
    }

    /// The same, for acts that change it. A lease that was ordered with an owner proof needs that proof, whoever asks;
    /// one without needs a session. So two jobs of one service account cannot touch each other's (I8).
    pub(crate) async fn held_lease(
        &self,
        who: &Identity,
        id: LeaseId,
        proof: Option<&OwnerProof>,
    ) -> Result<Lease, UseCaseError> {
        let lease = self.own_lease(who, id).await?;
        let shown = match lease.issue().and_then(|issue| issue.owner_proof) {
            Some(stored) => proof.is_some_and(|proof| proof.hash() == stored),
            None => who.session.is_some(),
        };
        if shown { Ok(lease) } else { Err(not_found()) }
    }

    /// Writes a denial down, as long as there are not too many of them.
    pub(crate) async fn audit_denial(&self, who: &Identity, target: &TargetName, reason: &str) {
        let now = self.clock.now();
        let admitted = {
            let mut minute = self.denials.lock().unwrap_or_else(PoisonError::into_inner);
            if now.since(minute.0) >= Duration::from_mins(1) {
                *minute = (now, 0);
            }
            minute.1 = minute.1.saturating_add(1);
            minute.1 <= DENIALS_PER_MINUTE
        };
        if !admitted {
            return;
        }
        let event = AuditEvent {
            at: now,
            action: "denied".into(),
            actor: Actor::Identity(holder(who)),
            lease: None,
            username: None,
            server: None,
            target: Some(target.clone()),
            details: [("reason".to_owned(), reason.into())].into_iter().collect(),
        };
        if let Err(error) = self.store.audit(event).await {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "a denial could not be audited"
            );
        }
    }
}

/// Whether verified claims hold an admin role. Exact and case-sensitive, as the policy reads them (R24), and only of
/// a kind that the issuer is configured to provide: another issuer must not mint admins of ours by the way.
fn is_held(admin: &Admin, claims: &Claims) -> bool {
    let kinds = &claims.provides;
    let (provided, roles, wanted) = match admin {
        Admin::RealmRole(role) => {
            let access = claims.values.get("realm_access");
            (kinds.realm_roles, access.and_then(|access| access.get("roles")), role)
        }
        Admin::ClientRole { client, role } => {
            let access = claims
                .values
                .get("resource_access")
                .and_then(|clients| clients.get(client));
            (kinds.client_roles, access.and_then(|access| access.get("roles")), role)
        }
        Admin::Group(path) => (kinds.groups, claims.values.get("groups"), path),
    };
    let roles = roles.and_then(Value::as_array).filter(|_| provided);
    roles.is_some_and(|roles| roles.iter().any(|role| role.as_str() == Some(wanted)))
}

/// Two jobs of one service account do not see each other's leases (I8); a person sees all of their own.
fn may_read(who: &Identity, lease: &Lease, proof: Option<&OwnerProof>) -> bool {
    match lease.issue().and_then(|issue| issue.owner_proof) {
        Some(stored) if who.session.is_none() => proof.is_some_and(|proof| proof.hash() == stored),
        Some(_) | None => true,
    }
}

fn is_holder(who: &Identity, lease: &Lease) -> bool {
    lease
        .issue()
        .is_some_and(|issue| issue.holder.issuer == *who.issuer && issue.holder.subject == who.subject.as_str())
}

#[async_trait]
impl Service for Broker {
    async fn issue(&self, who: &Identity, order: IssueOrder) -> Result<Issued, UseCaseError> {
        crate::issue::issue(self, who, order).await
    }

    async fn renew(
        &self,
        who: &Identity,
        id: LeaseId,
        proof: Option<OwnerProof>,
        ttl: Option<Ttl>,
    ) -> Result<LeaseView, UseCaseError> {
        let lease = self.held_lease(who, id, proof.as_ref()).await?;
        crate::renew::renew(self, who, lease, ttl).await
    }

    async fn cancel(
        &self,
        who: &Identity,
        id: LeaseId,
        proof: Option<OwnerProof>,
    ) -> Result<CancelledView, UseCaseError> {
        let lease = self.held_lease(who, id, proof.as_ref()).await?;
        if lease.state != LeaseState::Active {
            return Err(ProblemCode::LeaseNotActive.into());
        }
        let server = self.server(&lease.server)?;
        // The row goes first: no session ends without one that says who wanted it (I6).
        self.store.audit(cancelled(who, &lease, server.now())).await?;
        let ended = server.warehouse.end_sessions(&lease.user_ref()).await;
        let sessions_ended = ended.map_err(|error| UseCaseError::from(ProblemCode::WarehouseDown).caused_by(error))?;
        tracing::info!(lease = %lease.id, user = %lease.username, sessions_ended, "sessions ended for their holder");
        Ok(CancelledView { sessions_ended })
    }

    async fn revoke(&self, who: &Identity, id: LeaseId, proof: Option<OwnerProof>) -> Result<LeaseView, UseCaseError> {
        crate::revoke::revoke(self, who, id, proof.as_ref()).await
    }

    async fn revoke_many(&self, who: &Identity, request: RevocationRequest) -> Result<RevocationView, UseCaseError> {
        crate::revoke::revoke_many(self, who, request).await
    }

    async fn lease(&self, who: &Identity, id: LeaseId, proof: Option<OwnerProof>) -> Result<LeaseView, UseCaseError> {
        let lease = if self.is_admin(who) {
            self.store.lease(id).await?
        } else {
            self.readable_lease(who, id, proof.as_ref()).await?
        };
        Ok(view::lease(&lease))
    }

    async fn leases(
        &self,
        who: &Identity,
        query: LeaseQuery,
        proof: Option<OwnerProof>,
    ) -> Result<LeaseList, UseCaseError> {
        let admin = self.is_admin(who);
        if query.subject.is_some() && !admin {
            return Err(ProblemCode::AdminRequired.into());
        }
        let filter = LeaseFilter {
            holder: (!admin).then(|| (who.issuer.to_string(), who.subject.to_string())),
            subject: query.subject,
            target: query.target,
            rule: query.rule,
            states: query.state.into_iter().collect(),
            ..LeaseFilter::default()
        };
        let page = self
            .store
            .leases(
                &filter,
                Page {
                    after: query.after,
                    limit: query.limit,
                },
            )
            .await?;
        for row in &page.unreadable {
            tracing::error!(
                lease = row.row,
                error = row.what,
                "a lease cannot be read, and is not listed"
            );
        }
        Ok(LeaseList {
            leases: page
                .leases
                .iter()
                .filter(|lease| admin || may_read(who, lease, proof.as_ref()))
                .map(view::lease)
                .collect(),
            next: page.next,
        })
    }

    async fn targets(&self, who: &Identity) -> Result<TargetList, UseCaseError> {
        Ok(TargetList {
            targets: self.policy()?.targets_for(&who.claims),
        })
    }

    async fn explain(&self, who: &Identity, request: ExplainRequest) -> Result<ExplainView, UseCaseError> {
        let ExplainRequest {
            target,
            ttl,
            rules,
            reason,
        } = request;
        crate::issue::check_reason(reason.as_deref())?;
        let order = Order {
            target,
            rules,
            ttl,
            reason,
            at: self.clock.now(),
        };
        let story = self.policy()?.explain(&who.claims, &order);
        Ok(ExplainView {
            allowed: story.outcome.is_ok(),
            reason: story
                .outcome
                .as_ref()
                .err()
                .map(|denied| denied.public_code().to_owned()),
            text: story.public(),
        })
    }

    fn client_config(&self) -> ClientConfig {
        self.rules.client_config.clone()
    }

    async fn readiness(&self) -> Readiness {
        let mut checks = vec![Check {
            name: "policy".into(),
            ok: self.policies.load().is_some(),
            detail: self
                .policies
                .load()
                .as_ref()
                .map_or("no policy is loaded".into(), |set| set.hash().to_string()),
        }];
        checks.push(match self.store.health().await {
            Ok(health) => Check {
                name: "store".into(),
                ok: true,
                detail: format!(
                    "{} live leases",
                    health.live.iter().map(|(_, _, count)| count).sum::<u64>()
                ),
            },
            Err(error) => Check {
                name: "store".into(),
                ok: false,
                detail: error.to_string(),
            },
        });
        let waiting_for = self.authenticator.ready().waiting_for;
        checks.push(Check {
            name: "issuers".into(),
            ok: waiting_for.is_empty(),
            detail: if waiting_for.is_empty() {
                "keys at hand".into()
            } else {
                format!("no keys yet: {waiting_for:?}")
            },
        });
        let ready = checks.iter().all(|check| check.ok);
        for (name, server) in &self.servers {
            let stop = server.may_issue().err();
            checks.push(Check {
                name: format!("server {name}"),
                ok: stop.is_none(),
                detail: stop.map_or("issuing".into(), |stop| stop.to_string()),
            });
        }
        Readiness { ready, checks }
    }
}

fn cancelled(who: &Identity, lease: &Lease, at: Timestamp) -> AuditEvent {
    AuditEvent {
        at,
        action: "sessions-cancelled".into(),
        actor: Actor::Identity(holder(who)),
        lease: Some(lease.id),
        username: Some(lease.username.clone()),
        server: Some(lease.server.clone()),
        target: lease.target.clone(),
        details: serde_json::Map::new(),
    }
}

/// States in which a user may still exist.
pub(crate) fn live_states() -> Vec<LeaseStatus> {
    vec![
        LeaseStatus::Provisioning,
        LeaseStatus::Active,
        LeaseStatus::Ending,
        LeaseStatus::Quarantined,
    ]
}

/// A refusal of the policy, as the caller may read it.
pub(crate) fn denied(denied: &crate::policy::Denied) -> UseCaseError {
    let code = match denied.code() {
        "ttl-out-of-range" => ProblemCode::TtlOutOfRange,
        "invalid-order" => ProblemCode::InvalidOrder,
        _refused => ProblemCode::PolicyDenied,
    };
    let mut problem = Problem::new(code)
        .reason(denied.public_code())
        .detail(denied.to_string());
    if let Some(hint) = denied.hint() {
        problem = problem.hint(hint);
    }
    problem.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Provides;

    fn claims(kinds: Provides) -> Claims {
        let values = serde_json::json!({
            "realm_access": { "roles": ["admin"] },
            "resource_access": { "kdbt-broker": { "roles": ["admin"] } },
            "groups": ["/dba"],
        });
        Claims {
            issuer: "https://sso.acme.example/realms/data".into(),
            values: values.as_object().cloned().unwrap_or_default(),
            provides: Arc::new(kinds),
        }
    }

    #[test]
    fn an_admin_role_counts_only_from_an_issuer_that_provides_its_kind() {
        let admins = [
            Admin::RealmRole("admin".into()),
            Admin::ClientRole {
                client: "kdbt-broker".into(),
                role: "admin".into(),
            },
            Admin::Group("/dba".into()),
        ];
        let nothing = claims(Provides {
            realm_roles: false,
            client_roles: false,
            groups: false,
            claims: [].into(),
        });
        let all = claims(Provides {
            realm_roles: true,
            client_roles: true,
            groups: true,
            claims: [].into(),
        });
        for admin in &admins {
            assert!(is_held(admin, &all), "{admin:?}");
            assert!(!is_held(admin, &nothing), "{admin:?}");
        }
        assert!(!is_held(&Admin::RealmRole("Admin".into()), &all), "case matters");
        assert!(!is_held(
            &Admin::ClientRole {
                client: "other".into(),
                role: "admin".into()
            },
            &all
        ));
    }
}
