//! Who calls. A handler that takes [`Authenticated`] cannot be reached without a verified token, and one that needs
//! a person cannot be written without it.

use async_trait::async_trait;
use axum::extract::FromRequestParts;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;

use super::Http;
use super::error::ApiError;
use super::request::Context;
use crate::identity::{AuthError, Authenticator, AuthorizationHeader, Identity};
use crate::lease::SubjectHash;

/// Turns what a request brings into a verified identity.
#[async_trait]
pub trait Authenticate: Send + Sync {
    /// Who sends this.
    async fn authenticate(&self, authorization: AuthorizationHeader) -> Result<Identity, AuthError>;
}

#[async_trait]
impl Authenticate for Authenticator {
    async fn authenticate(&self, authorization: AuthorizationHeader) -> Result<Identity, AuthError> {
        Self::authenticate(self, authorization).await
    }
}

/// The verified caller. Must be a handler's first argument, so that nothing else about a request is judged, and
/// told, before it is known who asks.
pub(super) struct Authenticated(pub(super) Identity);

impl FromRequestParts<Http> for Authenticated {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, http: &Http) -> Result<Self, ApiError> {
        let values = parts
            .headers
            .get_all(AUTHORIZATION)
            .iter()
            .map(axum::http::HeaderValue::as_bytes);
        let authorization = AuthorizationHeader::of_request(values, parts.uri.query());
        match http.authenticator.authenticate(authorization).await {
            Ok(identity) => {
                if let Some(context) = parts.extensions.get::<Context>() {
                    context.caller_is(
                        SubjectHash::of(&identity.issuer, identity.subject.as_str()),
                        &identity.azp,
                    );
                }
                Ok(Self(identity))
            }
            Err(error) => Err(refuse(&error, http)),
        }
    }
}

/// Failed logins go to log and metric only: an audit row each would let anybody fill the disk.
fn refuse(error: &AuthError, http: &Http) -> ApiError {
    let reason = error.reason.code();
    tracing::info!(
        reason,
        issuer = error.issuer.as_deref(),
        "a request was not authenticated"
    );
    http.metrics.authentication_failed(reason);
    let challenge = error.www_authenticate().map(|text| http.with_resource_metadata(&text));
    ApiError::from(error.problem()).challenged(challenge)
}
