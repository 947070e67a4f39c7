//! What a caller may ask for, and why (not).

use axum::Json;
use axum::extract::State;
use kdbt_api::lease::{ExplainRequest, ExplainView, TargetList};

use super::Http;
use super::auth::Authenticated;
use super::error::ApiError;
use super::extract::StrictJson;

/// List the targets that the caller may ask for.
#[utoipa::path(
    get, path = "/v1/targets", operation_id = "list_targets", tag = "policy", security(("token" = [])),
    responses((status = 200, description = "In the order of their names", body = TargetList))
)]
pub(super) async fn list(
    Authenticated(who): Authenticated,
    State(http): State<Http>,
) -> Result<Json<TargetList>, ApiError> {
    let service = http.service.clone();
    http.run(async move { service.targets(&who).await }).await.map(Json)
}

/// Explain: would this order be filled, and why (not)?
#[utoipa::path(
    post, path = "/v1/explain", tag = "policy", security(("token" = [])), request_body = ExplainRequest,
    responses((status = 200, description = "The decision and its story", body = ExplainView))
)]
pub(super) async fn explain(
    Authenticated(who): Authenticated,
    State(http): State<Http>,
    StrictJson(request): StrictJson<ExplainRequest>,
) -> Result<Json<ExplainView>, ApiError> {
    let service = http.service.clone();
    http.run(async move { service.explain(&who, request).await })
        .await
        .map(Json)
}
