//! From a refusal to an answer: every error leaves as a problem document (RFC 9457), and what only operators may
//! know goes to the log, once.

use std::error::Error;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use kdbt_api::problem::{Problem, ProblemCode};

use crate::service::UseCaseError;

/// An answer that is not the one that was asked for.
#[derive(Debug)]
pub(super) struct ApiError {
    problem: Box<Problem>,
    retry_after: Option<Duration>,
    challenge: Option<String>,
}

impl ApiError {
    pub(super) fn new(code: ProblemCode) -> Self {
        Problem::new(code).into()
    }

    pub(super) fn malformed(what: impl Into<String>) -> Self {
        Problem::new(ProblemCode::MalformedRequest).detail(what).into()
    }

    /// More is under way than the broker takes on.
    pub(super) fn overloaded() -> Self {
        let problem = Problem::new(ProblemCode::Unavailable).detail("the broker has as many requests as it takes");
        Self {
            retry_after: Some(Duration::from_secs(1)),
            ..problem.into()
        }
    }

    /// With the value of `WWW-Authenticate`.
    pub(super) fn challenged(self, challenge: Option<String>) -> Self {
        Self { challenge, ..self }
    }
}

impl From<Problem> for ApiError {
    fn from(problem: Problem) -> Self {
        Self {
            problem: Box::new(problem),
            retry_after: None,
            challenge: None,
        }
    }
}

impl From<UseCaseError> for ApiError {
    /// Writes the cause to the log: from here on nobody has it any more.
    fn from(error: UseCaseError) -> Self {
        let code = error.problem.code.as_str();
        if let Some(source) = &error.source {
            if error.problem.status >= 500 {
                tracing::error!(code, cause = chain(source.as_ref()), "a use case failed");
            } else {
                tracing::info!(code, cause = chain(source.as_ref()), "a use case was refused");
            }
        }
        Self {
            problem: Box::new(error.problem),
            retry_after: error.retry_after,
            challenge: None,
        }
    }
}

/// The error and its causes, outermost first.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

impl IntoResponse for ApiError {
    /// The body follows in [`render`], which knows the request id.
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = status.into_response();
        if let Some(wait) = self.retry_after {
            // At least one second: zero would ask for a busy loop.
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            response
                .headers_mut()
                .insert(RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        if let Some(challenge) = self.challenge.and_then(|text| HeaderValue::from_str(&text).ok()) {
            response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        }
        response.extensions_mut().insert(*self.problem);
        response
    }
}

/// Writes the problem of a failed response into its body. A failure that brought none (axum's own) gets the one of
/// its status; one with a JSON body of its own, as readiness has, keeps it.
pub(super) fn render(mut response: Response, request_id: &str) -> Response {
    let status = response.status();
    let carried = response.extensions_mut().remove::<Problem>();
    let failed = status.is_client_error() || status.is_server_error();
    let is_json = response
        .headers()
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind == "application/json");
    if !failed || carried.is_none() && is_json {
        return response;
    }
    let mut problem = carried.unwrap_or_else(|| Problem::new(code_of(status)));
    problem.request_id = Some(request_id.to_owned());
    let body = serde_json::to_vec(&problem).unwrap_or_default();
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    response.headers_mut().remove(axum::http::header::CONTENT_LENGTH);
    *response.body_mut() = Body::from(body);
    response
}

fn code_of(status: StatusCode) -> ProblemCode {
    let same = |code: &&ProblemCode| code.status() == status.as_u16();
    let fallback = if status.is_client_error() {
        ProblemCode::MalformedRequest
    } else {
        ProblemCode::Internal
    };
    ProblemCode::ALL.iter().find(same).copied().unwrap_or(fallback)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_waits_at_least_a_second_and_rounds_up() {
        for (wait, header) in [(0, "1"), (1, "1"), (1_000, "1"), (1_001, "2"), (60_000, "60")] {
            let error = UseCaseError::from(ProblemCode::LimitReached).retry_after(Duration::from_millis(wait));
            let response = ApiError::from(error).into_response();
            assert_eq!(response.headers()[RETRY_AFTER], header, "{wait} ms");
        }
    }

    #[test]
    fn a_cause_is_written_out_to_its_root() {
        let cause = UseCaseError::from(ProblemCode::StoreDown).caused_by("the disk is full");
        assert_eq!(chain(&cause), "The store is not available: the disk is full");
    }
}
