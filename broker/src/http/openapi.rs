//! The OpenAPI document, made of the very table that routes requests: a call that is served is a call that is
//! documented.

use std::fmt::Write as _;
use std::sync::LazyLock;

use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use kdbt_api::problem::{Problem, ProblemCode};
use utoipa::openapi::security::{Http as HttpScheme, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{Components, Content, InfoBuilder, OpenApi, OpenApiBuilder, Ref, RefOr, ResponseBuilder};
use utoipa::{PartialSchema as _, ToSchema as _};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Http, health, leases, public, revocations, targets};

/// Every call, with its documentation.
pub(super) fn routes() -> OpenApiRouter<Http> {
    let info = InfoBuilder::new()
        .title("kdbt")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "Ephemeral warehouse users for dbt, by Keycloak identity and reviewed policy.",
        ));
    OpenApiRouter::with_openapi(OpenApiBuilder::new().info(info.build()).build())
        .routes(routes!(leases::issue, leases::list))
        .routes(routes!(leases::show, leases::revoke))
        .routes(routes!(leases::renew))
        .routes(routes!(leases::cancel))
        .routes(routes!(revocations::create))
        .routes(routes!(targets::list))
        .routes(routes!(targets::explain))
        .routes(routes!(public::client_config))
        .routes(routes!(public::resource_metadata))
        .routes(routes!(health::alive))
        .routes(routes!(health::ready))
        .routes(routes!(document))
}

static DOCUMENT: LazyLock<String> = LazyLock::new(|| whole_document().to_json().unwrap_or_default());

/// This document.
#[utoipa::path(
    get, path = "/v1/openapi.json", tag = "public",
    responses((status = 200, description = "OpenAPI 3.1"))
)]
pub(super) async fn document() -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], DOCUMENT.as_str())
}

/// With what all calls have in common: how to send a token, and how failures look.
fn whole_document() -> OpenApi {
    let mut document = routes().into_openapi();
    let problem = ResponseBuilder::new()
        .description(problem_codes())
        .content(
            "application/problem+json",
            Content::new(Some(Ref::from_schema_name("Problem"))),
        )
        .build();
    let components = document.components.get_or_insert_with(Components::new);
    components
        .schemas
        .insert(Problem::name().into_owned(), Problem::schema());
    components.responses.insert("Problem".to_owned(), RefOr::T(problem));
    let bearer = HttpScheme::builder()
        .scheme(HttpAuthScheme::Bearer)
        .bearer_format("JWT")
        .build();
    components.add_security_scheme("token", SecurityScheme::Http(bearer));
    for item in document.paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.post, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            let reference = Ref::from_response_name("Problem");
            operation
                .responses
                .responses
                .insert("default".to_owned(), RefOr::Ref(reference));
        }
    }
    document
}

/// The promise of all codes, as a table.
fn problem_codes() -> String {
    let mut text = "Every failure is a problem document (RFC 9457). `code` is stable:\n\n".to_owned();
    text.push_str("| code | status | title |\n|---|---|---|\n");
    for code in ProblemCode::ALL {
        let _ = writeln!(text, "| `{code}` | {} | {} |", code.status(), code.title());
    }
    text
}
