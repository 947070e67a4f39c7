//! `POST /v1/revocations`: end many leases in one call.

use axum::Json;
use axum::extract::State;
use kdbt_api::lease::{RevocationRequest, RevocationView};

use super::Http;
use super::auth::Authenticated;
use super::error::ApiError;
use super::extract::StrictJson;

/// Revoke all of one's own leases, or (admins) those of a person, a rule or a target.
#[utoipa::path(
    post, path = "/v1/revocations", tag = "leases", security(("token" = [])), request_body = RevocationRequest,
    responses((status = 200, description = "The leases that are being ended, or would be", body = RevocationView))
)]
pub(super) async fn create(
    Authenticated(who): Authenticated,
    State(http): State<Http>,
    StrictJson(request): StrictJson<RevocationRequest>,
) -> Result<Json<RevocationView>, ApiError> {
    check_selection(&request)?;
    let service = http.service.clone();
    http.run(async move { service.revoke_many(&who, request).await })
        .await
        .map(Json)
}

/// Exactly one kind of selection: an empty one must never mean "all".
fn check_selection(request: &RevocationRequest) -> Result<(), ApiError> {
    let others = request.subject.is_some() || request.rule.is_some() || request.target.is_some();
    match (request.mine, others, &request.issuer) {
        (true, true, _) | (true, false, Some(_)) => Err(ApiError::malformed("`mine` stands alone")),
        (false, false, _) => Err(ApiError::malformed(
            "one of `mine`, `subject`, `rule`, `target` is needed",
        )),
        (false, true, Some(_)) if request.subject.is_none() => {
            Err(ApiError::malformed("`issuer` stands only beside `subject`"))
        }
        (true, false, None) | (false, true, _) => Ok(()),
    }
}
