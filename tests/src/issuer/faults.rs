//! How an identity provider misbehaves, at the switch of a test, and how often it was asked.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value;

/// What a document's endpoint does instead of answering well.
#[derive(Debug, Clone, Default)]
pub enum Fault {
    /// Nothing: it answers.
    #[default]
    None,
    /// This status and a short text.
    Status(u16),
    /// The right answer, so late.
    Slow(Duration),
    /// The right answer, with so many spaces behind it.
    Oversized(usize),
    /// 302 to this address.
    Redirect(String),
    /// 200 with this text.
    Body(String),
}

/// One document of the issuer, its switch and its counter.
#[derive(Debug, Default)]
pub(super) struct Endpoint {
    fault: Mutex<Fault>,
    fetches: AtomicU64,
}

impl Endpoint {
    pub(super) fn set(&self, fault: Fault) {
        *self.fault.lock().unwrap() = fault;
    }

    pub(super) fn fetches(&self) -> u64 {
        self.fetches.load(Ordering::SeqCst)
    }

    pub(super) async fn answer(&self, document: Value) -> Response {
        self.fetches.fetch_add(1, Ordering::SeqCst);
        let json = |body: String| ([(header::CONTENT_TYPE, "application/json")], body).into_response();
        let fault = self.fault.lock().unwrap().clone();
        match fault {
            Fault::None => json(document.to_string()),
            Fault::Status(code) => (StatusCode::from_u16(code).unwrap(), "out of order").into_response(),
            Fault::Slow(wait) => {
                tokio::time::sleep(wait).await;
                json(document.to_string())
            }
            Fault::Oversized(spaces) => json(format!("{document}{}", " ".repeat(spaces))),
            Fault::Redirect(to) => (StatusCode::FOUND, [(header::LOCATION, to)]).into_response(),
            Fault::Body(text) => json(text),
        }
    }
}
