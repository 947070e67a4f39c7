//! The broker's HTTP side: from bytes to a call of [`Service`], and back to JSON, YAML or a problem document.
//!
//! Nothing is decided here but what a well-formed request is and who sends it. No store, no warehouse and no policy
//! is in reach of this module.

mod auth;
mod error;
mod extract;
mod health;
mod json;
mod leases;
mod openapi;
mod proxy;
mod public;
mod request;
mod revocations;
mod server;
mod targets;
mod tls;

#[cfg(test)]
mod tests;

use std::future::Future;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::from_fn_with_state;
use axum::{RequestExt as _, Router};
use kdbt_api::problem::{Problem, ProblemCode};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;
use url::Url;

pub use self::auth::Authenticate;
pub use self::proxy::{Network, NetworkError, TrustedProxies};
pub use self::server::Server;
pub use self::tls::{Tls, TlsError};

use self::auth::Authenticated;
use self::error::ApiError;
use crate::metrics::Metrics;
use crate::service::{Service, UseCaseError};

/// What a caller may cost. The defaults fit a broker of a few thousand people.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of a body.
    pub body_bytes: usize,
    /// From the head of a request to the end of its body.
    pub body_time: Duration,
    /// Bytes of all headers but `Authorization`, whose token has a limit and an answer of its own (R2).
    pub header_bytes: usize,
    /// From the first wait for a request to the end of its headers; also how long a connection may idle.
    pub header_time: Duration,
    /// Bytes of path and query.
    pub uri_bytes: usize,
    /// Requests that are worked on at once; so many use cases, too, whose callers may be gone.
    pub requests: usize,
    /// From the headers of a request to its answer.
    pub request_time: Duration,
    /// Connections at once; more wait in the kernel's queue.
    pub connections: usize,
    /// How long a connection may live, however busy: the end of a peer that never reads its answers.
    pub connection_time: Duration,
    /// For a TLS handshake.
    pub handshake_time: Duration,
    /// For requests under way when the broker stops.
    pub drain_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: 64 * 1024,
            body_time: Duration::from_secs(10),
            header_bytes: 16 * 1024,
            header_time: Duration::from_secs(10),
            uri_bytes: 4 * 1024,
            requests: 512,
            request_time: Duration::from_secs(30),
            connections: 2048,
            connection_time: Duration::from_mins(10),
            handshake_time: Duration::from_secs(10),
            drain_time: Duration::from_secs(20),
        }
    }
}

/// What [`Http`] is made of.
pub struct Parts {
    /// The use cases.
    pub service: Arc<dyn Service>,
    /// Who calls.
    pub authenticator: Arc<dyn Authenticate>,
    /// Where requests are counted.
    pub metrics: Arc<Metrics>,
    /// Where use cases run, so that shutdown can wait for those whose callers are gone.
    pub tasks: TaskTracker,
    /// How people reach this broker, without a path: the resource identifier of RFC 9728.
    pub public_url: Url,
    /// Whose word on client addresses is taken.
    pub trusted_proxies: TrustedProxies,
    /// What a caller may cost.
    pub limits: Limits,
}

/// The state of all handlers. Cheap to clone.
#[derive(Clone)]
pub struct Http(Arc<Inner>);

struct Inner {
    parts: Parts,
    requests: Semaphore,
    use_cases: Arc<Semaphore>,
}

impl Deref for Http {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0.parts
    }
}

impl Http {
    /// From its parts.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let limit = parts.limits.requests;
        let (requests, use_cases) = (Semaphore::new(limit), Arc::new(Semaphore::new(limit)));
        Self(Arc::new(Inner {
            parts,
            requests,
            use_cases,
        }))
    }

    /// For callers: all of `/v1`, and health without detail.
    pub fn router(&self) -> Router {
        self.framed(Router::from(openapi::routes()).fallback(nothing_here))
    }

    /// For operators, on an address of its own: metrics, and health with detail.
    pub fn management_router(&self) -> Router {
        self.framed(health::management_routes().fallback(nothing_here))
    }

    fn framed(&self, routes: Router<Self>) -> Router {
        let frame = from_fn_with_state(self.clone(), request::frame);
        routes
            .method_not_allowed_fallback(wrong_method)
            .layer(frame)
            .with_state(self.clone())
    }

    /// Runs a use case to its end, whatever becomes of the caller: in a task of its own, not in the handler's
    /// future, which is dropped when the connection is. Callers who hang up cannot raise the number of use cases
    /// under way above its limit either.
    async fn run<T, F>(&self, use_case: F) -> Result<T, ApiError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, UseCaseError>> + Send + 'static,
    {
        let permit = Arc::clone(&self.0.use_cases)
            .try_acquire_owned()
            .map_err(|_| ApiError::overloaded())?;
        let work = async move {
            let _permit = permit;
            use_case.await.map_err(ApiError::from)
        };
        let task = self.tasks.spawn(work.in_current_span());
        task.await
            .unwrap_or_else(|_panicked| Err(ApiError::new(ProblemCode::Internal)))
    }

    /// A challenge, with the URL that tells clients where to log in (RFC 9728 section 5.1).
    fn with_resource_metadata(&self, challenge: &str) -> String {
        format!(
            r#"{challenge}, resource_metadata="{}{}""#,
            self.origin(),
            public::RESOURCE_METADATA_PATH
        )
    }

    /// The public URL without a slash at its end.
    fn origin(&self) -> &str {
        self.public_url.as_str().trim_end_matches('/')
    }
}

/// No such path. Under `/v1` even that is told only to those who show who they are.
async fn nothing_here(State(http): State<Http>, request: Request) -> ApiError {
    match authenticated_if_api(&http, request).await {
        Err(refusal) => refusal,
        Ok(()) => Problem::new(ProblemCode::NotFound)
            .hint("the calls stand in /v1/openapi.json")
            .into(),
    }
}

/// The path exists, but not with this method. Of a path that everybody may read, everybody is told.
async fn wrong_method(State(http): State<Http>, request: Request) -> ApiError {
    match authenticated_if_api(&http, request).await {
        Err(refusal) => refusal,
        Ok(()) => ApiError::new(ProblemCode::MethodNotAllowed),
    }
}

async fn authenticated_if_api(http: &Http, mut request: Request) -> Result<(), ApiError> {
    let path = request.uri().path();
    if path.starts_with("/v1/") && !public::PATHS.contains(&path) {
        request.extract_parts_with_state::<Authenticated, _>(http).await?;
    }
    Ok(())
}
