//! The bodies of the connectors' protocol: packed JSON in, and a status of 200 out, also where it says no.

use std::io::Read as _;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

/// What is sent back.
pub(super) type Answer = Response<Body>;

/// The body as JSON; connectors send it packed.
pub(super) fn read(headers: &HeaderMap, body: &[u8]) -> Option<Value> {
    let coding = headers.get(header::CONTENT_ENCODING);
    if coding.is_none_or(|coding| coding != "gzip") {
        return serde_json::from_slice(body).ok();
    }
    let mut text = Vec::new();
    flate2::read::GzDecoder::new(body).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

/// The token of `Snowflake Token="…"`; empty where there is none.
pub(super) fn token_of(headers: &HeaderMap) -> String {
    let text = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = text.and_then(|text| text.strip_prefix("Snowflake Token=\"")?.strip_suffix('"'));
    token.unwrap_or_default().to_owned()
}

/// `Authorization` with this token, as connectors write it.
pub(super) fn authorization(token: &str) -> String {
    format!("Snowflake Token=\"{token}\"")
}

pub(super) fn answer(body: &Value) -> Answer {
    let mut answer = Response::new(Body::from(body.to_string()));
    let kind = HeaderValue::from_static("application/json");
    answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    answer
}

pub(super) fn done(data: &Value) -> Answer {
    answer(&json!({"data": data, "code": null, "message": null, "success": true}))
}

pub(super) fn refusal(code: &str, message: &str) -> Answer {
    answer(&json!({"data": null, "code": code, "message": message, "success": false, "headers": null}))
}

/// What is behind us did not answer, or not to the end.
pub(super) fn broken() -> Answer {
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = StatusCode::BAD_GATEWAY;
    answer
}

/// An answer of what is behind us, whole.
pub(super) async fn handed_on(sent: reqwest::Result<reqwest::Response>) -> Answer {
    let Ok(behind) = sent else { return broken() };
    let (status, headers) = (behind.status(), behind.headers().clone());
    let Ok(body) = behind.bytes().await else {
        return broken();
    };
    let mut answer = Response::new(Body::from(body));
    *answer.status_mut() = status;
    for name in [header::CONTENT_TYPE, header::DATE, header::LINK, header::RETRY_AFTER] {
        if let Some(value) = headers.get(&name) {
            answer.headers_mut().insert(name, value.clone());
        }
    }
    answer
}
