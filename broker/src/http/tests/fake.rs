//! A service that answers from memory and remembers what it was asked, and an authenticator that knows two people.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use kdbt_api::credential::OwnerProof;
use kdbt_api::lease::{
    CancelledView, ClientConfig, ClientIssuer, Connection, Engine, ExplainRequest, ExplainView, IssuedView, LeaseId,
    LeaseList, LeaseStatus, LeaseView, PostgresConnection, RevocationRequest, RevocationView, SslMode, TargetList,
    TargetView,
};
use kdbt_api::problem::ProblemCode;
use kdbt_api::{Timestamp, Ttl};
use secrecy::ExposeSecret as _;
use tokio::sync::Notify;

use super::super::auth::Authenticate;
use crate::identity::{AuthError, AuthorizationHeader, Claims, Identity, Kind, Provides, Reason};
use crate::service::{Check, IssueOrder, Issued, LeaseQuery, Readiness, Service, UseCaseError};

const ISSUER: &str = "https://sso.acme.example/realms/data";

/// What the use cases see of the idempotency key `again`.
pub(super) const HASH_OF_AGAIN: &str = "tMnhQGHC_UU7NnAOOw2gCNshiccRrGKfD1gwiRZOJn0";

/// `alice` and `bob` are good tokens, all others have expired.
pub(super) struct Tokens;

#[async_trait]
impl Authenticate for Tokens {
    async fn authenticate(&self, authorization: AuthorizationHeader) -> Result<Identity, AuthError> {
        match authorization.token()? {
            name @ ("alice" | "bob") => Ok(identity(name)),
            token if token.len() > 32 * 1024 => Err(Reason::TokenTooLong.into()),
            _ => Err(Reason::Expired.into()),
        }
    }
}

fn identity(name: &str) -> Identity {
    Identity {
        issuer: ISSUER.into(),
        subject: name.parse().unwrap(),
        display_name: name.to_owned(),
        azp: "kdbt-cli".to_owned(),
        session: Some("session".to_owned()),
        kind: Kind::Person,
        token_id: None,
        issued_at: Timestamp::from_unix(0),
        expires_at: Timestamp::from_unix(300),
        claims: Claims {
            issuer: ISSUER.into(),
            values: serde_json::Map::default(),
            provides: Provides::default().into(),
        },
    }
}

/// The one lease that exists.
pub(super) const LEASE: &str = "lse_0190f3a1b2c37d4e8f90a1b2c3d4e5f6";

/// What stands in its `profiles_yml`.
pub(super) const FRAGMENT: &str = "kdbt:\n  target: \"dev\"\n";

fn lease(state: LeaseStatus) -> LeaseView {
    LeaseView {
        id: LEASE.parse().unwrap(),
        state,
        server: "dwh".parse().unwrap(),
        target: "dev".parse().ok(),
        user: "kdbt_alice_0".parse().unwrap(),
        rules: vec!["analyst".parse().unwrap()],
        policy: "ab".repeat(32),
        holder: "Alice".to_owned(),
        issued_at: Timestamp::from_unix(1_767_600_000),
        ends_at: Timestamp::from_unix(1_767_607_200),
        max_ends_at: Timestamp::from_unix(1_767_628_800),
        end_reason: None,
        ended_at: None,
        blocked_by: Vec::new(),
    }
}

fn issued() -> IssuedView {
    IssuedView {
        lease: lease(LeaseStatus::Active),
        connection: Connection::Postgres(PostgresConnection {
            host: "dwh.acme.example".to_owned(),
            port: 5432,
            database: "analytics".parse().unwrap(),
            user: "kdbt_alice_0".parse().unwrap(),
            role: None,
            schema: "dbt_alice".parse().unwrap(),
            threads: 4,
            sslmode: SslMode::VerifyFull,
            ca_pem: None,
            search_path: None,
            keepalives_idle: None,
            connect_timeout: None,
            retries: None,
        }),
        profiles_yml: FRAGMENT.to_owned(),
        secret: None,
    }
}

#[derive(Default)]
pub(super) struct FakeService {
    calls: Mutex<Vec<String>>,
    gate: Mutex<Option<Arc<Notify>>>,
    /// An issue has begun.
    pub(super) begun: Notify,
    /// An issue has ended.
    pub(super) finished: Notify,
    pub(super) issues_finished: AtomicUsize,
}

impl FakeService {
    /// What reached it, in order.
    pub(super) fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    /// From now on issues wait until they are let through.
    pub(super) fn hold_issues(&self) -> Arc<Notify> {
        let gate = Arc::new(Notify::new());
        *self.gate.lock().unwrap() = Some(Arc::clone(&gate));
        gate
    }

    fn note(&self, call: String) {
        self.calls.lock().unwrap().push(call);
    }
}

fn text(proof: Option<&OwnerProof>) -> &str {
    proof.map_or("-", |proof| proof.secret().expose_secret())
}

#[async_trait]
impl Service for FakeService {
    async fn issue(&self, who: &Identity, order: IssueOrder) -> Result<Issued, UseCaseError> {
        let key = order.idempotency_key.as_deref().unwrap_or("-");
        self.note(format!("issue {} {} {key}", who.subject, order.request.target));
        self.begun.notify_one();
        let gate = self.gate.lock().unwrap().clone();
        if let Some(gate) = gate {
            gate.notified().await;
        }
        self.issues_finished.fetch_add(1, Ordering::SeqCst);
        self.finished.notify_one();
        match order.request.target.as_str() {
            "panic" => panic!("hunter2"),
            "nowhere" => Err(ProblemCode::PolicyDenied.into()),
            "down" => Err(UseCaseError::from(ProblemCode::WarehouseDown)
                .retry_after(Duration::from_secs(7))
                .caused_by("no connection to 10.0.0.5")),
            _ => Ok(Issued {
                view: issued(),
                replay: key == HASH_OF_AGAIN,
            }),
        }
    }

    async fn renew(
        &self,
        who: &Identity,
        id: LeaseId,
        proof: Option<OwnerProof>,
        ttl: Option<Ttl>,
    ) -> Result<LeaseView, UseCaseError> {
        let ttl = ttl.map_or("-".to_owned(), |ttl| ttl.to_string());
        self.note(format!("renew {} {id} {} {ttl}", who.subject, text(proof.as_ref())));
        Ok(lease(LeaseStatus::Active))
    }

    async fn cancel(
        &self,
        who: &Identity,
        id: LeaseId,
        proof: Option<OwnerProof>,
    ) -> Result<CancelledView, UseCaseError> {
        self.note(format!("cancel {} {id} {}", who.subject, text(proof.as_ref())));
        Ok(CancelledView {
            sessions_ended: Some(2),
        })
    }

    /// Bob's leases are slow to go.
    async fn revoke(&self, who: &Identity, id: LeaseId, proof: Option<OwnerProof>) -> Result<LeaseView, UseCaseError> {
        self.note(format!("revoke {} {id} {}", who.subject, text(proof.as_ref())));
        let is_slow = who.subject.as_str() == "bob";
        Ok(lease(if is_slow {
            LeaseStatus::Ending
        } else {
            LeaseStatus::Ended
        }))
    }

    async fn revoke_many(&self, who: &Identity, request: RevocationRequest) -> Result<RevocationView, UseCaseError> {
        self.note(format!("revoke_many {}", who.subject));
        Ok(RevocationView {
            dry_run: request.dry_run,
            leases: vec![lease(LeaseStatus::Ending)],
        })
    }

    async fn lease(&self, who: &Identity, id: LeaseId, _: Option<OwnerProof>) -> Result<LeaseView, UseCaseError> {
        self.note(format!("lease {} {id}", who.subject));
        let found = id.to_string() == LEASE;
        found
            .then(|| lease(LeaseStatus::Active))
            .ok_or_else(|| ProblemCode::NotFound.into())
    }

    async fn leases(
        &self,
        who: &Identity,
        query: LeaseQuery,
        _: Option<OwnerProof>,
    ) -> Result<LeaseList, UseCaseError> {
        let LeaseQuery {
            state, subject, limit, ..
        } = query;
        self.note(format!("leases {} {state:?} {subject:?} {limit}", who.subject));
        Ok(LeaseList {
            leases: vec![lease(LeaseStatus::Active)],
            next: LEASE.parse().ok(),
        })
    }

    async fn targets(&self, who: &Identity) -> Result<TargetList, UseCaseError> {
        self.note(format!("targets {}", who.subject));
        let target = TargetView {
            target: "dev".parse().unwrap(),
            engine: Engine::Postgres,
            tier: "dev".to_owned(),
            rules: Vec::new(),
            opt_in: Vec::new(),
            ttl: None,
            access: "reads".to_owned(),
        };
        Ok(TargetList { targets: vec![target] })
    }

    async fn explain(&self, who: &Identity, request: ExplainRequest) -> Result<ExplainView, UseCaseError> {
        self.note(format!("explain {} {}", who.subject, request.target));
        Ok(ExplainView {
            allowed: true,
            reason: None,
            text: "yes".to_owned(),
        })
    }

    fn client_config(&self) -> ClientConfig {
        let issuer = ClientIssuer {
            issuer: ISSUER.to_owned(),
            client_id: "kdbt-cli".to_owned(),
            audiences: vec!["kdbt-broker".to_owned()],
            scopes: vec!["openid".to_owned()],
        };
        ClientConfig {
            installation: "acme-test".to_owned(),
            version: "0.0.0".to_owned(),
            issuers: vec![issuer],
            scram_iterations: 1,
        }
    }

    async fn readiness(&self) -> Readiness {
        let check = Check {
            name: "store".to_owned(),
            ok: false,
            detail: "the disk is full".to_owned(),
        };
        Readiness {
            ready: false,
            checks: vec![check],
        }
    }
}
