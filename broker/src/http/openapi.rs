//! The OpenAPI document, made of the very table that routes requests: a call that is served is a call that is
//! documented.
//!
//! What a call does not say of itself, every call has in common: how a token is sent, how failures look, which statuses
//! there are, and which headers each answer has. No status is answered that does not stand there.

use std::fmt::Write as _;
use std::sync::LazyLock;

use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use kdbt_api::problem::{Problem, ProblemCode};
use serde_json::{Value, json};
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::Operation;
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::security::{Http as HttpScheme, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{
    Components, Content, InfoBuilder, OpenApi, OpenApiBuilder, Ref, RefOr, Response, ResponseBuilder,
};
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

static DOCUMENT: LazyLock<String> = LazyLock::new(|| {
    let mut document = serde_json::to_value(whole_document()).unwrap_or_default();
    tighten(&mut document);
    document.to_string()
});

/// This document.
#[utoipa::path(
    get, path = "/v1/openapi.json", tag = "public",
    responses((status = 200, description = "OpenAPI 3.1", body = serde_json::Value))
)]
pub(super) async fn document() -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], DOCUMENT.as_str())
}

/// With what all calls have in common.
fn whole_document() -> OpenApi {
    let mut document = routes().into_openapi();
    let components = document.components.get_or_insert_with(Components::new);
    components
        .schemas
        .insert(Problem::name().into_owned(), Problem::schema());
    let mut statuses: Vec<u16> = ProblemCode::ALL.iter().map(|code| code.status()).collect();
    statuses.sort_unstable();
    statuses.dedup();
    for status in statuses {
        components
            .responses
            .insert(status.to_string(), RefOr::T(failure(status)));
    }
    let bearer = HttpScheme::builder()
        .scheme(HttpAuthScheme::Bearer)
        .bearer_format("JWT")
        .build();
    components.add_security_scheme("token", SecurityScheme::Http(bearer));
    for (path, item) in &mut document.paths.paths {
        let operations = [&mut item.get, &mut item.post, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            add_failures(path, operation);
            for (status, response) in &mut operation.responses.responses {
                if let RefOr::T(response) = response {
                    let kept_by_nobody = path.starts_with("/v1/") || status.starts_with('5');
                    add_headers(response, kept_by_nobody);
                }
            }
        }
    }
    document
}

/// The answer to all failures of this status.
fn failure(status: u16) -> Response {
    let content = Content::new(Some(Ref::from_schema_name("Problem")));
    let mut response = ResponseBuilder::new()
        .description(problem_codes(status))
        .content("application/problem+json", content)
        .build();
    add_headers(&mut response, true);
    let own = match status {
        401 => Some((
            "WWW-Authenticate",
            Type::String,
            "How to get a token that is taken (RFC 6750, 9470, 9728).",
        )),
        429 => Some(("Retry-After", Type::Integer, "When to come back, in seconds.")),
        _ => None,
    };
    if let Some((name, kind, what)) = own {
        add_header(&mut response, name, ObjectBuilder::new().schema_type(kind), what);
    }
    response
}

/// The promise of the codes of this status, as a table.
fn problem_codes(status: u16) -> String {
    let mut text = "A problem document (RFC 9457). `code` is stable:\n\n| code | title |\n|---|---|\n".to_owned();
    for code in ProblemCode::ALL.iter().filter(|code| code.status() == status) {
        let _ = writeln!(text, "| `{code}` | {} |", code.title());
    }
    text
}

/// The failures that follow from what a call takes. Those of its own it names itself, and their form is the same.
fn add_failures(path: &str, operation: &mut Operation) {
    let mut statuses = vec![400, 414, 431, 500, 503];
    if operation.security.is_some() {
        statuses.extend([401, 403]);
    }
    if operation.request_body.is_some() {
        statuses.extend([413, 415, 422]);
    }
    if path.contains('{') {
        statuses.push(404);
    }
    for status in statuses.iter().map(ToString::to_string) {
        let reference = RefOr::Ref(Ref::from_response_name(&status));
        operation.responses.responses.entry(status).or_insert(reference);
    }
    for (status, response) in &mut operation.responses.responses {
        let bare = matches!(response, RefOr::T(response) if response.content.is_empty());
        if bare {
            *response = RefOr::Ref(Ref::from_response_name(status));
        }
    }
}

/// The headers of every answer; and of those that no cache may keep.
fn add_headers(response: &mut Response, kept_by_nobody: bool) {
    let id = ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern(Some("^req_[0-9a-f]{32}$"));
    add_header(response, "X-Request-Id", id, "To find the request in the broker's log.");
    let only = |word| ObjectBuilder::new().schema_type(Type::String).enum_values(Some([word]));
    add_header(
        response,
        "X-Content-Type-Options",
        only("nosniff"),
        "The content type is meant.",
    );
    if kept_by_nobody {
        add_header(response, "Cache-Control", only("no-store"), "No cache may keep it.");
    }
}

fn add_header(response: &mut Response, name: &str, schema: ObjectBuilder, what: &str) {
    let header = HeaderBuilder::new()
        .schema(Some(schema))
        .description(Some(what))
        .build();
    response.headers.insert(name.to_owned(), header.into());
}

/// What the types that the document is made of cannot say: every header that it names is in every such answer, and
/// nothing is ever `null`, neither in a request, where one form has one meaning, nor in an answer.
fn tighten(part: &mut Value) {
    match part {
        Value::Object(members) => {
            if members.get("default").is_some_and(Value::is_null) {
                members.remove("default");
            }
            if let Some(Value::Array(types)) = members.get_mut("type") {
                types.retain(|kind| kind != "null");
                if let [one] = types.as_slice() {
                    let one = one.clone();
                    members.insert("type".to_owned(), one);
                }
            }
            if let Some(Value::Array(forms)) = members.get_mut("oneOf") {
                forms.retain(|form| *form != json!({"type": "null"}));
                if let [Value::Object(one)] = forms.as_slice() {
                    let one = one.clone();
                    members.remove("oneOf");
                    members.extend(one);
                }
            }
            if let Some(Value::Object(headers)) = members.get_mut("headers") {
                for header in headers.values_mut() {
                    if let Value::Object(header) = header {
                        header.insert("required".to_owned(), Value::Bool(true));
                    }
                }
            }
            members.values_mut().for_each(tighten);
        }
        Value::Array(items) => items.iter_mut().for_each(tighten),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
