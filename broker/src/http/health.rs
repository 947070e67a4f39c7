//! Whether the process lives and whether it can take requests. The reasons are for the management address alone.

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use kdbt_api::problem::Problem;
use serde::Serialize;
use utoipa::ToSchema;

use super::Http;
use crate::service::{Check, Readiness};

/// A state of health in one word.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Health {
    /// `ok` or `unready`.
    status: &'static str,
}

/// The process is alive.
#[utoipa::path(
    get, path = "/healthz", tag = "public",
    responses((status = 200, description = "Alive", body = Health))
)]
pub(super) async fn alive() -> Json<Health> {
    Json(Health { status: "ok" })
}

/// Requests can be taken. Fails in this form too, not as a problem: probes read the status.
#[utoipa::path(
    get, path = "/readyz", tag = "public",
    responses(
        (status = 200, description = "Ready", body = Health),
        (status = 503, description = "Not ready, or overloaded",
            content((Health = "application/json"), (Problem = "application/problem+json"))),
    )
)]
pub(super) async fn ready(State(http): State<Http>) -> (StatusCode, Json<Health>) {
    let readiness = http.service.readiness().await;
    (
        status(&readiness),
        Json(Health {
            status: word(&readiness),
        }),
    )
}

fn status(readiness: &Readiness) -> StatusCode {
    if readiness.ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}

fn word(readiness: &Readiness) -> &'static str {
    if readiness.ready { "ok" } else { "unready" }
}

/// What the management address serves.
pub(super) fn management_routes() -> Router<Http> {
    Router::new()
        .route("/healthz", get(alive))
        .route("/readyz", get(ready_in_detail))
        .route("/metrics", get(metrics))
}

#[derive(Serialize)]
struct Detail {
    status: &'static str,
    checks: Vec<CheckView>,
}

#[derive(Serialize)]
struct CheckView {
    name: String,
    ok: bool,
    detail: String,
}

async fn ready_in_detail(State(http): State<Http>) -> impl IntoResponse {
    let readiness = http.service.readiness().await;
    let (status, word) = (status(&readiness), word(&readiness));
    let view = |Check { name, ok, detail }| CheckView { name, ok, detail };
    (
        status,
        Json(Detail {
            status: word,
            checks: readiness.checks.into_iter().map(view).collect(),
        }),
    )
}

async fn metrics(State(http): State<Http>) -> impl IntoResponse {
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(CONTENT_TYPE, content_type)], http.metrics.render())
}
