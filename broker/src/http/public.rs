//! What everybody may read before they are logged in, so that users configure one URL.

use axum::Json;
use axum::extract::State;
use kdbt_api::lease::ClientConfig;
use serde::Serialize;
use utoipa::ToSchema;

use super::Http;

/// Where RFC 9728 section 3 puts the metadata of a resource without a path.
pub(super) const RESOURCE_METADATA_PATH: &str = "/.well-known/oauth-protected-resource";

/// What stands under `/v1` and needs no token.
pub(super) const PATHS: [&str; 2] = ["/v1/client-config", "/v1/openapi.json"];

/// What the client needs to log its user in.
#[utoipa::path(
    get, path = "/v1/client-config", tag = "public",
    responses((status = 200, description = "Issuers, clients, scopes", body = ClientConfig))
)]
pub(super) async fn client_config(State(http): State<Http>) -> Json<ClientConfig> {
    Json(http.service.client_config())
}

/// Metadata of this protected resource (RFC 9728 section 2).
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ResourceMetadata {
    /// The resource identifier: the broker's public URL.
    resource: String,
    /// The issuers whose tokens are accepted.
    authorization_servers: Vec<String>,
    /// How a token is sent: in the header alone.
    bearer_methods_supported: [&'static str; 1],
    /// For people.
    resource_name: String,
}

/// Where to get a token for this broker.
#[utoipa::path(
    get, path = "/.well-known/oauth-protected-resource", tag = "public",
    responses((status = 200, description = "The metadata", body = ResourceMetadata))
)]
pub(super) async fn resource_metadata(State(http): State<Http>) -> Json<ResourceMetadata> {
    let config = http.service.client_config();
    Json(ResourceMetadata {
        resource: http.origin().to_owned(),
        authorization_servers: config.issuers.into_iter().map(|issuer| issuer.issuer).collect(),
        bearer_methods_supported: ["header"],
        resource_name: format!("kdbt {}", config.installation),
    })
}
