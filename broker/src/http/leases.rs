//! `/v1/leases`: order, look, renew, cancel, revoke.

use axum::Json;
use axum::extract::State;
use axum::http::header::{CONTENT_TYPE, LOCATION};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use kdbt_api::lease::{
    CancelledView, IssuedView, LeaseId, LeaseList, LeaseStatus, LeaseView, OrderRequest, RenewRequest,
};
use kdbt_api::name::{RuleId, TargetName};
use kdbt_api::problem::ProblemCode;
use serde::Deserialize;
use utoipa::IntoParams;

use super::Http;
use super::auth::Authenticated;
use super::error::ApiError;
use super::extract::{AnswerForm, IdempotencyKey, LeaseInPath, Proof, StrictJson, StrictJsonOrNothing, StrictQuery};
use crate::metrics::IssueOutcome;
use crate::service::{IssueOrder, Issued, LeaseQuery};

/// Order a lease.
///
/// Send a verifier and keep the secret to yourself, or send none and get a secret in this one answer. With
/// `Accept: application/yaml` the answer is `profiles.yml` and nothing else.
#[utoipa::path(
    post, path = "/v1/leases", tag = "leases", security(("token" = [])),
    params(("Idempotency-Key" = Option<String>, Header, pattern = "^[!-~]{1,255}$", description = "1 to 255 printable ASCII characters. The same key and body get the same lease.")),
    request_body = OrderRequest,
    responses(
        (status = 201, description = "A new lease", headers(("Location" = String, description = "The lease")),
            content((IssuedView = "application/json"), (String = "application/yaml"))),
        (status = 200, description = "The lease that the idempotency key stands for", headers(("Location" = String, description = "The lease")),
            content((IssuedView = "application/json"), (String = "application/yaml"))),
        (status = 409, description = "Not now, or not with this key"),
        (status = 429, description = "Too many live leases"),
    )
)]
pub(super) async fn issue(
    Authenticated(who): Authenticated,
    State(http): State<Http>,
    IdempotencyKey(idempotency_key): IdempotencyKey,
    form: AnswerForm,
    StrictJson(request): StrictJson<OrderRequest>,
) -> Result<Response, ApiError> {
    let (service, metrics) = (http.service.clone(), http.metrics.clone());
    let order = IssueOrder {
        request,
        idempotency_key,
    };
    let issued = http.run(async move {
        let result = service.issue(&who, order).await;
        metrics.issue(match &result {
            Ok(Issued { replay: false, .. }) => IssueOutcome::Issued,
            Ok(Issued { replay: true, .. }) => IssueOutcome::Replayed,
            Err(error) => {
                IssueOutcome::Refused(ProblemCode::from_code(&error.problem.code).unwrap_or(ProblemCode::Internal))
            }
        });
        result
    });
    Ok(answer(issued.await?, form))
}

fn answer(issued: Issued, form: AnswerForm) -> Response {
    let Issued { view, replay } = issued;
    let status = if replay { StatusCode::OK } else { StatusCode::CREATED };
    let location = HeaderValue::from_str(&format!("/v1/leases/{}", view.lease.id));
    let mut response = match form {
        AnswerForm::Json => (status, Json(view)).into_response(),
        AnswerForm::Yaml => (status, [(CONTENT_TYPE, "application/yaml")], view.profiles_yml).into_response(),
    };
    if let Ok(location) = location {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

/// The query of `GET /v1/leases`.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// On this target.
    target: Option<TargetName>,
    /// Joined by this rule.
    rule: Option<RuleId>,
    /// In this state.
    state: Option<LeaseStatus>,
    /// Of this person: the `sub` of the token. For admins.
    subject: Option<String>,
    /// `next` of the page before.
    after: Option<LeaseId>,
    /// How many; 100 if absent.
    #[param(value_type = u16, required = false, minimum = 1, maximum = 500)]
    limit: Option<String>,
}

impl TryFrom<ListQuery> for LeaseQuery {
    type Error = ApiError;

    fn try_from(query: ListQuery) -> Result<Self, ApiError> {
        let limit = query.limit.as_deref().map_or(Ok(100), str::parse).ok();
        let Some(limit) = limit.filter(|limit| (1..=500).contains(limit)) else {
            return Err(ApiError::malformed(
                "query: `limit`: must be a whole number from 1 to 500",
            ));
        };
        let ListQuery {
            target,
            rule,
            state,
            subject,
            after,
            limit: _,
        } = query;
        Ok(Self {
            target,
            rule,
            state,
            subject,
            after,
            limit,
        })
    }
}

/// List leases: one's own; admins see all.
#[utoipa::path(
    get, path = "/v1/leases", operation_id = "list_leases", tag = "leases", security(("token" = [])),
    params(
        ListQuery,
        ("Kdbt-Owner-Proof" = Option<String>, Header, pattern = "^[!-~]{1,128}$", description = "Callers without a session see only leases whose proof this is."),
    ),
    responses((status = 200, description = "A page, newest first", body = LeaseList))
)]
pub(super) async fn list(
    Authenticated(who): Authenticated,
    State(http): State<Http>,
    Proof(proof): Proof,
    StrictQuery(query): StrictQuery<ListQuery>,
) -> Result<Json<LeaseList>, ApiError> {
    let (service, query) = (http.service.clone(), LeaseQuery::try_from(query)?);
    http.run(async move { service.leases(&who, query, proof).await })
        .await
        .map(Json)
}

/// Look at one lease.
#[utoipa::path(
    get, path = "/v1/leases/{id}", tag = "leases", security(("token" = [])),
    params(
        ("id" = LeaseId, Path, description = "The lease"),
        ("Kdbt-Owner-Proof" = Option<String>, Header, pattern = "^[!-~]{1,128}$", description = "Callers without a session see only leases whose proof this is."),
    ),
    responses((status = 200, description = "The lease", body = LeaseView))
)]
pub(super) async fn show(
    Authenticated(who): Authenticated,
    State(http): State<Http>,
    LeaseInPath(id): LeaseInPath,
    Proof(proof): Proof,
) -> Result<Json<LeaseView>, ApiError> {
    let service = http.service.clone();
    http.run(async move { service.lease(&who, id, proof).await })
        .await
        .map(Json)
}

/// Renew: keep user and secret, move the end.
#[utoipa::path(
    post, path = "/v1/leases/{id}/renew", tag = "leases", security(("token" = [])),
    params(
        ("id" = LeaseId, Path, description = "The lease"),
        ("Kdbt-Owner-Proof" = Option<String>, Header, pattern = "^[!-~]{1,128}$", description = "Required of callers without a session."),
    ),
    request_body(content = Option<RenewRequest>, description = "May be left out"),
    responses(
        (status = 200, description = "The lease with its new end", body = LeaseView),
        (status = 409, description = "Not in its state, or not under today's policy"),
    )
)]
pub(super) async fn renew(
    Authenticated(who): Authenticated,
    State(http): State<Http>,
    LeaseInPath(id): LeaseInPath,
    Proof(proof): Proof,
    StrictJsonOrNothing(request): StrictJsonOrNothing<RenewRequest>,
) -> Result<Json<LeaseView>, ApiError> {
    let service = http.service.clone();
    http.run(async move { service.renew(&who, id, proof, request.ttl).await })
        .await
        .map(Json)
}

/// Cancel: end the sessions, keep the lease.
#[utoipa::path(
    post, path = "/v1/leases/{id}/cancel", tag = "leases", security(("token" = [])),
    params(
        ("id" = LeaseId, Path, description = "The lease"),
        ("Kdbt-Owner-Proof" = Option<String>, Header, pattern = "^[!-~]{1,128}$", description = "Required of callers without a session."),
    ),
    responses(
        (status = 200, description = "How many sessions were ended", body = CancelledView),
        (status = 409, description = "Not in its state"),
    )
)]
pub(super) async fn cancel(
    Authenticated(who): Authenticated,
    State(http): State<Http>,
    LeaseInPath(id): LeaseInPath,
    Proof(proof): Proof,
) -> Result<Json<CancelledView>, ApiError> {
    let service = http.service.clone();
    http.run(async move { service.cancel(&who, id, proof).await })
        .await
        .map(Json)
}

/// Revoke: end the lease now.
#[utoipa::path(
    delete, path = "/v1/leases/{id}", tag = "leases", security(("token" = [])),
    params(
        ("id" = LeaseId, Path, description = "The lease"),
        ("Kdbt-Owner-Proof" = Option<String>, Header, pattern = "^[!-~]{1,128}$", description = "Required of callers without a session."),
    ),
    responses(
        (status = 200, description = "The user is gone", body = LeaseView),
        (status = 202, description = "The user is being ended", body = LeaseView),
    )
)]
pub(super) async fn revoke(
    Authenticated(who): Authenticated,
    State(http): State<Http>,
    LeaseInPath(id): LeaseInPath,
    Proof(proof): Proof,
) -> Result<(StatusCode, Json<LeaseView>), ApiError> {
    let service = http.service.clone();
    let lease = http.run(async move { service.revoke(&who, id, proof).await }).await?;
    let gone = lease.state == LeaseStatus::Ended;
    Ok((if gone { StatusCode::OK } else { StatusCode::ACCEPTED }, Json(lease)))
}
