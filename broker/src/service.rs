//! What callers can do: the one thing that `http` sees of the rest.
//!
//! Whoever calls is a verified [`Identity`], so no implementation asks again who it is. What a caller may not know
//! of is answered exactly like what does not exist.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use kdbt_api::Ttl;
use kdbt_api::credential::OwnerProof;
use kdbt_api::lease::{
    CancelledView, ClientConfig, ExplainRequest, ExplainView, IssuedView, LeaseId, LeaseList, LeaseStatus, LeaseView,
    OrderRequest, RevocationRequest, RevocationView, TargetList,
};
use kdbt_api::name::{RuleId, TargetName};
use kdbt_api::problem::{Problem, ProblemCode};

use crate::identity::Identity;

/// The use cases, for callers.
///
/// None of them may be run in a future that a caller can drop by hanging up: an issue that has begun ends as
/// "delivered" or as "ended", never half-way. Whoever calls these spawns them.
#[async_trait]
pub trait Service: Send + Sync {
    /// Fills an order: a new lease, or, under a known idempotency key, the one that the key stands for.
    async fn issue(&self, who: &Identity, order: IssueOrder) -> Result<Issued, UseCaseError>;

    /// Moves the end of a lease, under today's policy.
    async fn renew(
        &self,
        who: &Identity,
        id: LeaseId,
        proof: Option<OwnerProof>,
        ttl: Option<Ttl>,
    ) -> Result<LeaseView, UseCaseError>;

    /// Ends the sessions of a lease's user; the lease lives on.
    async fn cancel(
        &self,
        who: &Identity,
        id: LeaseId,
        proof: Option<OwnerProof>,
    ) -> Result<CancelledView, UseCaseError>;

    /// Ends a lease. Waits up to 2 s for the user to be gone; the state of the answer says whether it is.
    async fn revoke(&self, who: &Identity, id: LeaseId, proof: Option<OwnerProof>) -> Result<LeaseView, UseCaseError>;

    /// Ends many leases, or says which it would end.
    async fn revoke_many(&self, who: &Identity, request: RevocationRequest) -> Result<RevocationView, UseCaseError>;

    /// One lease of the caller's, or (admins) any.
    async fn lease(&self, who: &Identity, id: LeaseId, proof: Option<OwnerProof>) -> Result<LeaseView, UseCaseError>;

    /// A page of the caller's leases, or (admins) of all. Of those that were ordered with an owner proof, a caller
    /// without a session sees the ones whose proof it shows; so a page may hold fewer than there are.
    async fn leases(
        &self,
        who: &Identity,
        query: LeaseQuery,
        proof: Option<OwnerProof>,
    ) -> Result<LeaseList, UseCaseError>;

    /// What the caller may ask for.
    async fn targets(&self, who: &Identity) -> Result<TargetList, UseCaseError>;

    /// Whether an order would be filled, and why.
    async fn explain(&self, who: &Identity, request: ExplainRequest) -> Result<ExplainView, UseCaseError>;

    /// What a client needs to know before anybody is logged in. Public.
    fn client_config(&self) -> ClientConfig;

    /// Whether requests can be taken, and what that depends on.
    async fn readiness(&self) -> Readiness;
}

/// An order and the key under which it may be sent again.
#[derive(Debug, Clone)]
pub struct IssueOrder {
    /// What is asked for.
    pub request: OrderRequest,
    /// `Idempotency-Key`: 1 to 255 printable ASCII characters, as the caller sent them.
    pub idempotency_key: Option<String>,
}

/// A filled order.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The answer.
    pub view: IssuedView,
    /// The lease is not new: the idempotency key was known.
    pub replay: bool,
}

/// Which leases to list; all members narrow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseQuery {
    /// On this target.
    pub target: Option<TargetName>,
    /// Joined by this rule.
    pub rule: Option<RuleId>,
    /// In this state.
    pub state: Option<LeaseStatus>,
    /// Of this person; for admins.
    pub subject: Option<String>,
    /// The last lease of the page before.
    pub after: Option<LeaseId>,
    /// How many at most: 1 to 500.
    pub limit: usize,
}

/// Whether requests can be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readiness {
    /// Store, policy and required issuers are fine. A dead warehouse stands in `checks` only.
    pub ready: bool,
    /// What was looked at. For operators.
    pub checks: Vec<Check>,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// Such as `store`, `policy`, `issuer https://…`, `server dwh`.
    pub name: String,
    /// Whether it is as it should be.
    pub ok: bool,
    /// What was seen.
    pub detail: String,
}

/// Why a use case did not do it: what the caller is told, and apart from it what only operators may know.
#[derive(Debug)]
pub struct UseCaseError {
    /// For the caller. Goes over the wire as it stands.
    pub problem: Problem,
    /// When it is worth asking again.
    pub retry_after: Option<Duration>,
    /// The cause, for the log: written there once, when the error becomes an answer.
    pub source: Option<Box<dyn Error + Send + Sync>>,
}

impl UseCaseError {
    /// With the cause.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// With a time after which to ask again.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }
}

impl From<Problem> for UseCaseError {
    fn from(problem: Problem) -> Self {
        Self {
            problem,
            retry_after: None,
            source: None,
        }
    }
}

impl From<ProblemCode> for UseCaseError {
    fn from(code: ProblemCode) -> Self {
        Problem::new(code).into()
    }
}

impl fmt::Display for UseCaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.problem.detail.as_deref().unwrap_or(&self.problem.title))
    }
}

impl Error for UseCaseError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn Error + 'static))
    }
}
