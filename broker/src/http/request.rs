//! What is the same for every request: its id, its limits, its one line in the log, and the form of its failures.

use std::net::{IpAddr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};

use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HOST, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt as _;
use kdbt_api::problem::{Problem, ProblemCode};
use tokio::time::Instant;
use tracing::Instrument as _;
use uuid::Uuid;

use super::Http;
use super::error::{ApiError, render};
use crate::lease::SubjectHash;

/// The header that carries the request id.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The address at the other end of the connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) SocketAddr);

/// What the log line of a request learns while the request is worked on.
#[derive(Clone)]
pub(super) struct Context(Arc<OnceLock<Caller>>);

struct Caller {
    subject: SubjectHash,
    azp: String,
}

impl Context {
    /// Names the caller in the log: the hash, since a log is read by more people than may know who works when.
    pub(super) fn caller_is(&self, subject: SubjectHash, azp: &str) {
        let _ = self.0.set(Caller {
            subject,
            azp: azp.to_owned(),
        });
    }
}

/// Around every handler, and around the answers of axum itself.
pub(super) async fn frame(State(http): State<Http>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    // Ours, never the caller's: an id in the log must lead to one request.
    let id = format!("req_{}", Uuid::now_v7().simple());
    let context = Context(Arc::default());
    let method = method_label(request.method());
    let matched = request
        .extensions()
        .get::<MatchedPath>()
        .map(|path| path.as_str().to_owned());
    let route = matched.as_deref().unwrap_or("unmatched").to_owned();
    let client = client_address(&http, &request);
    let is_api = request.uri().path().starts_with("/v1/");
    request.extensions_mut().insert(context.clone());

    let span = tracing::info_span!("request", request_id = %id);
    let answer = limited(&http, request, next).instrument(span).await;
    let response = finish(render(answer, &id), &id, is_api);

    let took = started.elapsed();
    let status = response.status().as_u16();
    http.metrics.request(&route, method, status, took);
    let caller = context.0.get();
    tracing::info!(
        target: "kdbt_broker::access",
        request_id = %id,
        method,
        route,
        status,
        duration_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        client = client.map(tracing::field::display),
        subject = caller.map(|caller| caller.subject.as_str()),
        azp = caller.map(|caller| caller.azp.as_str()),
        "request"
    );
    response
}

/// Runs the handler within the limits of number, size and time; a panic in it ends as a 500 without text.
async fn limited(http: &Http, request: Request, next: Next) -> Response {
    let Ok(_permit) = http.0.requests.try_acquire() else {
        return ApiError::overloaded().into_response();
    };
    if let Err(error) = check_host(&request).and_then(|()| check_sizes(http, &request)) {
        return error.into_response();
    }
    let handler = AssertUnwindSafe(next.run(request)).catch_unwind();
    match tokio::time::timeout(http.limits.request_time, handler).await {
        Ok(Ok(response)) => response,
        Ok(Err(_panic)) => ApiError::new(ProblemCode::Internal).into_response(),
        Err(_elapsed) => {
            let problem = Problem::new(ProblemCode::Unavailable).detail("the request took longer than it may");
            ApiError::from(problem.hint("what it began goes on; list your leases to see the outcome")).into_response()
        }
    }
}

/// RFC 9112 section 3.2: one `Host`, which only HTTP/1.0 may leave out. We read none, but a proxy that routes by another
/// than the next reader would see two requests in one.
fn check_host(request: &Request) -> Result<(), ApiError> {
    match request.headers().get_all(HOST).iter().count() {
        1 => Ok(()),
        0 if request.version() == Version::HTTP_10 => Ok(()),
        _ => Err(ApiError::malformed("the request must have one header `Host`")),
    }
}

fn check_sizes(http: &Http, request: &Request) -> Result<(), ApiError> {
    let uri_bytes = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    if uri_bytes > http.limits.uri_bytes {
        let detail = format!("the URL has more than {} bytes", http.limits.uri_bytes);
        return Err(Problem::new(ProblemCode::UriTooLong).detail(detail).into());
    }
    if header_bytes(request.headers()) > http.limits.header_bytes {
        let detail = format!("the headers have more than {} bytes", http.limits.header_bytes);
        return Err(Problem::new(ProblemCode::HeadersTooLarge).detail(detail).into());
    }
    Ok(())
}

/// Without `Authorization`: too long a token has a rule and an answer of its own (R2).
fn header_bytes(headers: &HeaderMap) -> usize {
    let counted = headers.iter().filter(|(name, _)| *name != AUTHORIZATION);
    counted.map(|(name, value)| name.as_str().len() + value.len() + 4).sum()
}

fn finish(mut response: Response, id: &str, is_api: bool) -> Response {
    let failed = response.status() >= StatusCode::BAD_REQUEST;
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(id) {
        headers.insert(REQUEST_ID, id);
    }
    if is_api || failed {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    if headers.contains_key(CONTENT_TYPE) {
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    }
    response
}

/// A bounded set of labels, whatever a caller makes up.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "OTHER",
    }
}

/// Who is at the other end, for the log alone: the nearest address that is none of our own proxies.
fn client_address(http: &Http, request: &Request) -> Option<IpAddr> {
    let peer = request.extensions().get::<Peer>()?.0.ip();
    Some(http.trusted_proxies.client_of(peer, request.headers()))
}
