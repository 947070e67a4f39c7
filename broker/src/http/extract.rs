//! From the raw parts of a request to typed arguments, every one of them bounded and strict.

use std::str::FromStr;

use aws_lc_rs::digest;
use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, RawPathParams, Request};
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Body as _;
use kdbt_api::credential::OwnerProof;
use kdbt_api::lease::{LeaseId, OWNER_PROOF_HEADER};
use kdbt_api::problem::{Problem, ProblemCode};
use secrecy::SecretString;
use serde::de::DeserializeOwned;

use super::error::ApiError;
use super::json::{self, JsonFault};
use super::{Http, Limits};

/// A body in strict JSON.
pub(super) struct StrictJson<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Http> for StrictJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, http: &Http) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        check_content_type(&parts.headers)?;
        let bytes = read(body, &http.limits).await?;
        Ok(Self(json::from_slice(&bytes)?))
    }
}

/// A body in strict JSON, or none at all: `curl -X POST` alone must do.
pub(super) struct StrictJsonOrNothing<T>(pub(super) T);

impl<T: DeserializeOwned + Default> FromRequest<Http> for StrictJsonOrNothing<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, http: &Http) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        if body.is_end_stream() {
            return Ok(Self(T::default()));
        }
        check_content_type(&parts.headers)?;
        let bytes = read(body, &http.limits).await?;
        Ok(Self(if bytes.is_empty() {
            T::default()
        } else {
            json::from_slice(&bytes)?
        }))
    }
}

impl From<JsonFault> for ApiError {
    fn from(fault: JsonFault) -> Self {
        let code = if fault.refused_value {
            ProblemCode::InvalidOrder
        } else {
            ProblemCode::MalformedRequest
        };
        Problem::new(code).detail(fault.to_string()).into()
    }
}

fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let is_json = |value: &HeaderValue| {
        value
            .to_str()
            .is_ok_and(|text| media_type(text).eq_ignore_ascii_case("application/json"))
    };
    // Of two, a proxy may have looked at the other one.
    let mut values = headers.get_all(CONTENT_TYPE).iter();
    if values.next().is_some_and(is_json) && values.next().is_none() {
        return Ok(());
    }
    let problem = Problem::new(ProblemCode::UnsupportedMediaType).detail("the body must be JSON");
    Err(problem.hint("send the header Content-Type: application/json").into())
}

/// Without its parameters.
fn media_type(text: &str) -> &str {
    text.split(';').next().unwrap_or_default().trim()
}

async fn read(body: Body, limits: &Limits) -> Result<Vec<u8>, ApiError> {
    let too_large = || {
        let detail = format!("the body has more than {} bytes", limits.body_bytes);
        ApiError::from(Problem::new(ProblemCode::PayloadTooLarge).detail(detail))
    };
    // An announced length is refused before a byte of it is read.
    if body.size_hint().lower() > u64::try_from(limits.body_bytes).unwrap_or(u64::MAX) {
        return Err(too_large());
    }
    let whole = Limited::new(body, limits.body_bytes).collect();
    match tokio::time::timeout(limits.body_time, whole).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes().into()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(ApiError::malformed("the body ended before it was complete")),
        Err(_) => Err(ApiError::malformed("the body did not arrive in time")),
    }
}

/// A query string in which every name is known and stands once.
pub(super) struct StrictQuery<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequestParts<Http> for StrictQuery<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Http) -> Result<Self, ApiError> {
        let query = parts.uri.query().unwrap_or_default();
        let pairs = url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        let read = json::from_pairs(pairs);
        read.map(Self)
            .map_err(|fault| ApiError::malformed(format!("query: {fault}")))
    }
}

/// The lease that a path names. A text that is no id names no lease.
pub(super) struct LeaseInPath(pub(super) LeaseId);

impl FromRequestParts<Http> for LeaseInPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, http: &Http) -> Result<Self, ApiError> {
        let not_found = || ApiError::new(ProblemCode::NotFound);
        let params = RawPathParams::from_request_parts(parts, http)
            .await
            .map_err(|_| not_found())?;
        let id = params
            .iter()
            .find_map(|(name, value)| (name == "id").then(|| LeaseId::from_str(value)));
        id.and_then(Result::ok).map(Self).ok_or_else(not_found)
    }
}

/// A header that may stand once, as 1 to `max` printable ASCII characters.
fn plain_header(headers: &HeaderMap, name: &str, max: usize) -> Result<Option<String>, ApiError> {
    let mut values = headers.get_all(name).iter();
    let value = match (values.next(), values.next()) {
        (None, _) => return Ok(None),
        (Some(value), None) => value,
        (Some(_), Some(_)) => return Err(ApiError::malformed(format!("header `{name}` stands twice"))),
    };
    let plain = |text: &&str| (1..=max).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    let text = value.to_str().ok().filter(plain);
    text.map(|text| Some(text.to_owned())).ok_or_else(|| {
        let detail = format!("header `{name}` must have 1 to {max} printable ASCII characters and no space");
        ApiError::malformed(detail)
    })
}

/// `Idempotency-Key`, hashed: callers may put anything there, a token too, and what the store keeps can be stolen.
pub(super) struct IdempotencyKey(pub(super) Option<String>);

impl FromRequestParts<Http> for IdempotencyKey {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Http) -> Result<Self, ApiError> {
        let key = plain_header(&parts.headers, "idempotency-key", 255)?;
        Ok(Self(key.map(|key| {
            URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, key.as_bytes()))
        })))
    }
}

/// The owner proof of a caller without a session.
pub(super) struct Proof(pub(super) Option<OwnerProof>);

impl FromRequestParts<Http> for Proof {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Http) -> Result<Self, ApiError> {
        let header = plain_header(&parts.headers, OWNER_PROOF_HEADER, 128)?;
        Ok(Self(
            header.map(|text| OwnerProof::from_secret(SecretString::from(text))),
        ))
    }
}

/// In which form the caller wants the answer to an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AnswerForm {
    /// All that is known of the lease.
    Json,
    /// `profiles.yml` and nothing else.
    Yaml,
}

impl FromRequestParts<Http> for AnswerForm {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Http) -> Result<Self, ApiError> {
        Ok(Self::of(parts.headers.get_all(ACCEPT)))
    }
}

impl AnswerForm {
    /// YAML if it is asked for by name and JSON is not: a list that accepts both gets the richer one.
    fn of<'a>(accept: impl IntoIterator<Item = &'a HeaderValue>) -> Self {
        let texts: Vec<&str> = accept.into_iter().filter_map(|value| value.to_str().ok()).collect();
        let named = |wanted: &str| {
            texts
                .iter()
                .flat_map(|text| text.split(','))
                .any(|range| media_type(range).eq_ignore_ascii_case(wanted))
        };
        if named("application/yaml") && !named("application/json") {
            Self::Yaml
        } else {
            Self::Json
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_is_given_only_to_those_who_ask_for_it_by_name() {
        let form = |values: &[&'static str]| {
            let values: Vec<HeaderValue> = values.iter().map(|v| HeaderValue::from_static(v)).collect();
            AnswerForm::of(&values)
        };
        assert_eq!(form(&["application/yaml"]), AnswerForm::Yaml);
        assert_eq!(form(&["Application/YAML; charset=utf-8, */*;q=0.1"]), AnswerForm::Yaml);
        for other in [
            &[][..],
            &["*/*"],
            &["application/json"],
            &["application/yaml", "application/json"],
            &["text/yaml2"],
        ] {
            assert_eq!(form(other), AnswerForm::Json, "{other:?}");
        }
    }

    #[test]
    fn a_key_that_stands_twice_or_is_no_plain_text_is_refused() {
        let of = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("idempotency-key", HeaderValue::from_str(value).unwrap());
            }
            plain_header(&headers, "idempotency-key", 255).ok()
        };
        assert_eq!(of(&[]), Some(None));
        assert_eq!(of(&["run-17"]), Some(Some("run-17".to_owned())));
        for bad in [&["a", "a"][..], &[""], &["a b"], &["ä"], &["x".repeat(256).as_str()]] {
            assert_eq!(of(bad), None, "{bad:?}");
        }
    }
}
