//! The broker as a caller sees it: one function per call of its API, each with a token that is ours.

mod source;

use std::time::Duration;

use kdbt_api::Ttl;
use kdbt_api::credential::{Iterations, OwnerProof};
use kdbt_api::lease::{
    CancelledView, ClientConfig, ClientIssuer, ExplainRequest, ExplainView, IssuedView, LeaseId, LeaseList, LeaseView,
    OWNER_PROOF_HEADER, OrderRequest, RenewRequest, RevocationRequest, RevocationView, TargetList,
};
use kdbt_api::problem::{Problem, ProblemCode};
use reqwest::{Method, RequestBuilder};
use secrecy::{ExposeSecret as _, SecretString};
use serde::de::DeserializeOwned;
use url::Url;

use self::source::Source;
use crate::cli::Login;
use crate::exit::{Code, Failure, Outcome};
use crate::http::{Answer, Http};
use crate::login::StoredLogin;
use crate::output::clean;
use crate::settings::Settings;
use crate::token::Claims;

/// The broker, and who we are to it.
#[derive(Debug)]
pub(crate) struct Broker {
    /// Where it is; ends with a slash.
    pub(crate) url: Url,
    /// What it announces.
    pub(crate) config: ClientConfig,
    /// The issuer that our tokens come from.
    pub(crate) issuer: ClientIssuer,
    settings: Settings,
    http: Http,
    source: Source,
}

/// Why a call brought nothing.
#[derive(Debug)]
pub(crate) enum CallError {
    /// The broker said why.
    Refused {
        problem: Box<Problem>,
        retry_after: Option<Duration>,
    },
    /// There was no answer, or no token to ask with. `sent` if the broker may have got the request.
    Failed { failure: Failure, sent: bool },
}

impl CallError {
    /// The code, if the broker refused with one that this version knows.
    pub(crate) fn code(&self) -> Option<ProblemCode> {
        match self {
            Self::Refused { problem, .. } => ProblemCode::from_code(&problem.code),
            Self::Failed { .. } => None,
        }
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        let known = error.code();
        let problem = match error {
            CallError::Failed { failure, .. } => return failure,
            CallError::Refused { problem, .. } => problem,
        };
        let code = exit_code(known, problem.status);
        let detail = clean(problem.detail.as_deref().unwrap_or(&problem.title));
        let reason = problem
            .reason
            .as_deref()
            .map_or_else(String::new, |reason| format!(" ({})", clean(reason)));
        let failure = Self::new(code, detail + &reason);
        match problem.hint {
            Some(hint) => failure.hint(clean(&hint)),
            None if code == Code::LoginNeeded => failure.hint("kdbt-client login"),
            None => failure,
        }
    }
}

fn exit_code(code: Option<ProblemCode>, status: u16) -> Code {
    use ProblemCode as P;
    match code {
        Some(P::TokenMissing | P::TokenInvalid) => Code::LoginNeeded,
        Some(P::PolicyDenied | P::AdminRequired | P::GrantChanged | P::Stopped) => Code::Denied,
        Some(P::NotFound | P::LeaseNotActive) => Code::LeaseGone,
        Some(P::TtlOutOfRange | P::InvalidOrder) => Code::Usage,
        Some(P::WarehouseDown | P::IssuingStopped) => Code::Warehouse,
        Some(P::PolicyNotLoaded | P::StoreDown | P::Unavailable) => Code::Unreachable,
        Some(_) => Code::Failed,
        None => match status {
            401 => Code::LoginNeeded,
            403 => Code::Denied,
            503 => Code::Unreachable,
            _ => Code::Failed,
        },
    }
}

impl Broker {
    /// Asks the broker what it is. Sends no token yet.
    pub(crate) async fn find(settings: Settings, trust_issuer: bool) -> Outcome<Self> {
        let url = settings.broker_url()?;
        let http = Http::new(&settings, &url)?;
        let request = http.client().get(join(&url, "v1/client-config")?);
        let answer = http.send(request).await?;
        if !answer.status.is_success() {
            return Err(
                Failure::new(Code::Unreachable, format!("{url} answers {}", answer.status))
                    .hint("is this a kdbt broker?"),
            );
        }
        let config: ClientConfig = answer.json("the broker's client configuration")?;
        let (source, issuer) = source::identify(&settings, &url, &config, trust_issuer)?;
        Ok(Self {
            url,
            config,
            issuer,
            settings,
            http,
            source,
        })
    }

    /// What surrounds us.
    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// How many iterations a verifier shall have: one of the two numbers that brokers accept.
    pub(crate) fn iterations(&self) -> Outcome<Iterations> {
        let announced = self.config.scram_iterations;
        let known = [Iterations::One, Iterations::Standard];
        known
            .into_iter()
            .find(|known| known.count().get() == announced)
            .ok_or_else(|| {
                Failure::new(
                    Code::Failed,
                    format!("the broker asks for {announced} SCRAM iterations, only 1 and 4096 are allowed"),
                )
            })
    }

    /// The stored login, where tokens come from one.
    pub(crate) fn login(&self) -> Outcome<&StoredLogin> {
        self.source.login().ok_or_else(|| {
            Failure::new(
                Code::Usage,
                "the token comes from the environment, so there is no login to begin or end",
            )
            .hint("unset KDBT_TOKEN, KDBT_TOKEN_FILE and KDBT_CLIENT_ID")
        })
    }

    /// Makes sure that there is a token; on a terminal by logging in.
    pub(crate) async fn log_in_if_needed(&self) -> Outcome<()> {
        match (self.token(false).await, self.source.login()) {
            (Err(failure), Some(login)) if failure.code == Code::LoginNeeded && self.settings.is_interactive() => {
                login
                    .begin(&self.settings, &self.issuer, self.url.as_str(), &Login::default())
                    .await
            }
            (token, _) => token.map(drop),
        }
    }

    /// An access token that is meant for this broker. `fresh` asks for one that was not used before.
    pub(crate) async fn token(&self, fresh: bool) -> Outcome<SecretString> {
        let token = self.source.token(&self.settings, &self.issuer, fresh).await?;
        Claims::read(token.expose_secret())?.check(&self.issuer)?;
        Ok(token)
    }

    /// What our token says of us.
    pub(crate) async fn claims(&self) -> Outcome<Claims> {
        Claims::read(self.token(false).await?.expose_secret())
    }

    /// `POST /v1/leases`. The same key and order again never makes a second lease.
    pub(crate) async fn order(&self, order: &OrderRequest, key: &str) -> Result<IssuedView, CallError> {
        self.call(Method::POST, "v1/leases", |request| {
            request.header("idempotency-key", key).json(order)
        })
        .await
    }

    /// `GET /v1/leases`: the newest 500. Leases live for hours, so the live ones are among them.
    pub(crate) async fn leases(&self) -> Result<Vec<LeaseView>, CallError> {
        let page: LeaseList = self
            .call(Method::GET, "v1/leases", |request| request.query(&[("limit", "500")]))
            .await?;
        Ok(page.leases)
    }

    /// `GET /v1/leases/{id}`.
    pub(crate) async fn lease(&self, id: LeaseId, proof: Option<&OwnerProof>) -> Result<LeaseView, CallError> {
        self.call(Method::GET, &format!("v1/leases/{id}"), |request| {
            proven(request, proof)
        })
        .await
    }

    /// `POST /v1/leases/{id}/renew`.
    pub(crate) async fn renew(
        &self,
        id: LeaseId,
        ttl: Option<Ttl>,
        proof: Option<&OwnerProof>,
    ) -> Result<LeaseView, CallError> {
        let path = format!("v1/leases/{id}/renew");
        self.call(Method::POST, &path, |request| {
            proven(request, proof).json(&RenewRequest { ttl })
        })
        .await
    }

    /// `POST /v1/leases/{id}/cancel`.
    pub(crate) async fn cancel(&self, id: LeaseId, proof: Option<&OwnerProof>) -> Result<CancelledView, CallError> {
        self.call(Method::POST, &format!("v1/leases/{id}/cancel"), |request| {
            proven(request, proof)
        })
        .await
    }

    /// `DELETE /v1/leases/{id}`.
    pub(crate) async fn revoke(&self, id: LeaseId, proof: Option<&OwnerProof>) -> Result<LeaseView, CallError> {
        self.call(Method::DELETE, &format!("v1/leases/{id}"), |request| {
            proven(request, proof)
        })
        .await
    }

    /// `POST /v1/revocations` of all that is ours.
    pub(crate) async fn revoke_mine(&self) -> Result<RevocationView, CallError> {
        let mine = RevocationRequest {
            mine: true,
            ..RevocationRequest::default()
        };
        self.call(Method::POST, "v1/revocations", |request| request.json(&mine))
            .await
    }

    /// `GET /v1/targets`.
    pub(crate) async fn targets(&self) -> Result<TargetList, CallError> {
        self.call(Method::GET, "v1/targets", |request| request).await
    }

    /// `POST /v1/explain`.
    pub(crate) async fn explain(&self, order: &ExplainRequest) -> Result<ExplainView, CallError> {
        self.call(Method::POST, "v1/explain", |request| request.json(order))
            .await
    }

    /// The time at the broker, as its answers carry it.
    pub(crate) async fn date(&self) -> Outcome<Option<String>> {
        let url = join(&self.url, "v1/client-config")?;
        Ok(self.http.send(self.http.client().get(url)).await?.date)
    }

    /// One call. A token that the broker no longer takes is replaced once.
    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        fill: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<T, CallError> {
        let unsent = |failure| CallError::Failed { failure, sent: false };
        let url = join(&self.url, path).map_err(unsent)?;
        let mut fresh = false;
        loop {
            let token = self.token(fresh).await.map_err(unsent)?;
            let request = self.http.client().request(method.clone(), url.clone());
            let request = fill(request.bearer_auth(token.expose_secret()));
            let answer = self.http.send(request).await;
            let answer = answer.map_err(|failure| CallError::Failed { failure, sent: true })?;
            if answer.status.as_u16() == 401 && !fresh && self.source.has_others() {
                fresh = true;
                continue;
            }
            return read(&answer);
        }
    }
}

fn read<T: DeserializeOwned>(answer: &Answer) -> Result<T, CallError> {
    let failed = |failure| CallError::Failed { failure, sent: true };
    if answer.status.is_success() {
        return answer.json("the broker's answer").map_err(failed);
    }
    match answer.json::<Problem>("the broker's answer") {
        Ok(mut problem) => {
            problem.status = answer.status.as_u16();
            Err(CallError::Refused {
                problem: Box::new(problem),
                retry_after: answer.retry_after,
            })
        }
        Err(_) => Err(failed(Failure::new(
            exit_code(None, answer.status.as_u16()),
            format!("the broker answers {}", answer.status),
        ))),
    }
}

fn proven(request: RequestBuilder, proof: Option<&OwnerProof>) -> RequestBuilder {
    match proof {
        Some(proof) => request.header(OWNER_PROOF_HEADER, proof.secret().expose_secret()),
        None => request,
    }
}

fn join(base: &Url, path: &str) -> Outcome<Url> {
    base.join(path)
        .map_err(|error| Failure::new(Code::Usage, format!("the broker's URL cannot be used: {error}")))
}
