//! The realm's endpoints under `/realms/<realm>/`, for programs; the pages for people are in `pages`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::Inner;
use super::pages;
use super::realm::{Client, Realm};
use super::sessions::{Refused, Sessions, Tokens, refused};

pub(super) type Issued = State<Arc<Inner>>;
/// The decoded members of a form or query.
pub(super) type Form = BTreeMap<String, String>;

pub(super) fn router(inner: Arc<Inner>) -> Router {
    let oidc = Router::new()
        .route("/certs", get(certs))
        .route("/auth", get(pages::authorize))
        .route("/auth/device", post(start_device))
        .route("/token", post(token))
        .route("/token/introspect", post(introspect))
        .route("/revoke", post(revoke))
        .route("/logout", post(log_out));
    let realm = Router::new()
        .route("/.well-known/openid-configuration", get(discovery))
        .route("/device", get(pages::device))
        .route("/login-actions/authenticate", post(pages::authenticate))
        .route("/login-actions/consent", post(pages::consent))
        .nest("/protocol/openid-connect", oidc);
    Router::new()
        .nest(&format!("/realms/{}", inner.realm.name), realm)
        .with_state(inner)
}

async fn discovery(State(inner): Issued) -> Response {
    let iss = &inner.iss;
    let oidc = format!("{iss}/protocol/openid-connect");
    let mut document = json!({
        "issuer": iss,
        "authorization_endpoint": format!("{oidc}/auth"),
        "token_endpoint": format!("{oidc}/token"),
        "introspection_endpoint": format!("{oidc}/token/introspect"),
        "revocation_endpoint": format!("{oidc}/revoke"),
        "end_session_endpoint": format!("{oidc}/logout"),
        "device_authorization_endpoint": format!("{oidc}/auth/device"),
        "jwks_uri": format!("{oidc}/certs"),
        "grant_types_supported": [
            "authorization_code", "client_credentials", "password", "refresh_token", DEVICE_GRANT,
        ],
        "response_types_supported": ["code"],
        "response_modes_supported": ["query"],
        "subject_types_supported": ["public"],
        "scopes_supported": ["openid", "acr", "basic", "email", "profile", "roles", "web-origins"],
        "id_token_signing_alg_values_supported": ["RS256"],
        "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
        "code_challenge_methods_supported": ["S256"],
        "authorization_response_iss_parameter_supported": true,
    });
    for (name, value) in inner.discovery_edits.lock().unwrap().iter() {
        document[name] = value.clone();
    }
    inner.discovery.answer(document).await
}

async fn certs(State(inner): Issued) -> Response {
    let document = inner.keys.lock().unwrap().jwks(&inner.extra_keys.lock().unwrap());
    inner.certs.answer(document).await
}

const DEVICE_GRANT: &str = "urn:ietf:params:oauth:grant-type:device_code";

async fn token(State(inner): Issued, headers: HeaderMap, body: String) -> Result<Response, Refused> {
    let form = read_form(&body)?;
    let client = authenticate(&inner.realm, &headers, &form)?;
    let openid = reads_scope(&form)?;
    let field = |name: &str| form.get(name).map(String::as_str);
    let need = |name: &'static str| field(name).ok_or_else(|| missing(name));
    let allowed = |on: bool, what: &str| {
        if on {
            Ok(())
        } else {
            Err(refused("unauthorized_client", format!("Client not allowed {what}")))
        }
    };
    let tokens = inner.with_sessions(|sessions, now| match need("grant_type")? {
        "authorization_code" => {
            allowed(client.standard_flow, "to exchange code")?;
            sessions.redeem_code(
                now,
                client,
                need("code")?,
                field("redirect_uri"),
                field("code_verifier"),
            )
        }
        DEVICE_GRANT => {
            allowed(client.device_flow, "OAuth 2.0 Device Authorization Grant")?;
            sessions.poll_device(now, client, need("device_code")?, field("code_verifier"))
        }
        "refresh_token" => sessions.refresh(now, client, need("refresh_token")?),
        "client_credentials" => {
            allowed(client.secret.is_some(), "to retrieve service account: it is public")?;
            sessions.client_credentials(now, client)
        }
        "password" => {
            allowed(client.direct_grants, "for direct access grants")?;
            let user =
                Sessions::check_password(now.realm, need("username")?, need("password")?).map_err(|why| Refused {
                    status: 401,
                    ..refused("invalid_grant", why)
                })?;
            sessions.password(now, client, user, openid)
        }
        other => Err(refused(
            "unsupported_grant_type",
            format!("Unsupported grant_type `{other}`"),
        )),
    })?;
    Ok(no_store(&tokens_json(&tokens)))
}

fn tokens_json(tokens: &Tokens) -> Value {
    let mut answer = json!({
        "access_token": tokens.access,
        "expires_in": tokens.expires_in,
        "refresh_expires_in": tokens.refresh_expires_in,
        "token_type": "Bearer",
        "not-before-policy": 0,
        "scope": tokens.scope,
    });
    let optional = [
        ("refresh_token", &tokens.refresh),
        ("id_token", &tokens.id),
        ("session_state", &tokens.sid),
    ];
    for (name, value) in optional {
        if let Some(value) = value {
            answer[name] = value.as_str().into();
        }
    }
    answer
}

async fn start_device(State(inner): Issued, headers: HeaderMap, body: String) -> Result<Response, Refused> {
    let form = read_form(&body)?;
    let client = authenticate(&inner.realm, &headers, &form)?;
    if !client.device_flow {
        return Err(refused(
            "unauthorized_client",
            "Client is not allowed to initiate OAuth 2.0 Device Authorization Grant. The flow is disabled for the client.",
        ));
    }
    let openid = reads_scope(&form)?;
    let challenge = pkce_challenge(client, &form)?;
    Ok(no_store(&inner.with_sessions(|sessions, now| {
        sessions.start_device(now, client, challenge, openid)
    })))
}

async fn introspect(State(inner): Issued, headers: HeaderMap, body: String) -> Result<Response, Refused> {
    let form = read_form(&body)?;
    let client = authenticate(&inner.realm, &headers, &form)?;
    if client.secret.is_none() {
        return Err(Refused {
            status: 403,
            ..refused("invalid_request", "Client not allowed.")
        });
    }
    let token = form.get("token").ok_or_else(|| missing("token"))?;
    Ok(no_store(&inner.with_sessions(|sessions, now| {
        sessions.introspect(now, client, token)
    })))
}

async fn revoke(State(inner): Issued, headers: HeaderMap, body: String) -> Result<StatusCode, Refused> {
    let form = read_form(&body)?;
    let client = authenticate(&inner.realm, &headers, &form)?;
    let token = form.get("token").ok_or_else(|| missing("token"))?;
    inner.with_sessions(|sessions, _| sessions.revoke(client, token));
    Ok(StatusCode::OK)
}

async fn log_out(State(inner): Issued, headers: HeaderMap, body: String) -> Result<StatusCode, Refused> {
    let form = read_form(&body)?;
    let client = authenticate(&inner.realm, &headers, &form)?;
    let token = form.get("refresh_token").ok_or_else(|| missing("refresh_token"))?;
    inner.with_sessions(|sessions, _| sessions.log_out(client, token))?;
    Ok(StatusCode::NO_CONTENT)
}

/// The members of a form; one that stands twice is refused, as RFC 6749 3.1 wants.
pub(super) fn read_form(text: &str) -> Result<Form, Refused> {
    let mut form = Form::new();
    for (name, value) in url::form_urlencoded::parse(text.as_bytes()) {
        if form.insert(name.to_string(), value.into_owned()).is_some() {
            return Err(refused("invalid_request", "duplicated parameter"));
        }
    }
    Ok(form)
}

/// Was `openid` asked for? Optional scopes are not served, so asking for one is an error and not a thinner token.
pub(super) fn reads_scope(form: &Form) -> Result<bool, Refused> {
    let mut openid = false;
    for word in form
        .get("scope")
        .map(String::as_str)
        .unwrap_or_default()
        .split_whitespace()
    {
        match word {
            "openid" => openid = true,
            "acr" | "basic" | "email" | "profile" | "roles" | "web-origins" => {}
            unknown => return Err(refused("invalid_scope", format!("Invalid scopes: {unknown}"))),
        }
    }
    Ok(openid)
}

/// The S256 challenge, which a client with the PKCE setting must send.
pub(super) fn pkce_challenge(client: &Client, form: &Form) -> Result<Option<String>, Refused> {
    let challenge = form.get("code_challenge");
    let method = form.get("code_challenge_method").map(String::as_str);
    match (method, challenge) {
        (None, None) if !client.requires_pkce => Ok(None),
        (None, _) => Err(missing("code_challenge_method")),
        (Some("S256"), Some(challenge)) if challenge.len() == 43 => Ok(Some(challenge.clone())),
        (Some("S256"), None) => Err(missing("code_challenge")),
        (Some("S256"), Some(_)) => Err(refused("invalid_request", "Invalid parameter: code_challenge")),
        (Some(_), _) => Err(refused(
            "invalid_request",
            "Invalid parameter: code challenge method is not matching the configured one",
        )),
    }
}

/// The client, by `Authorization: Basic`, by the form, or by its bare id where it is public.
fn authenticate<'r>(realm: &'r Realm, headers: &HeaderMap, form: &Form) -> Result<&'r Client, Refused> {
    let unauthorized = |error, description: &str| Refused {
        status: 401,
        ..refused(error, description)
    };
    let wrong = || unauthorized("unauthorized_client", "Invalid client or Invalid client credentials");
    let (id, secret) = match headers.get(header::AUTHORIZATION) {
        Some(value) => {
            let (id, secret) = value.to_str().ok().and_then(read_basic).ok_or_else(wrong)?;
            (id, Some(secret))
        }
        None => (
            form.get("client_id").cloned().unwrap_or_default(),
            form.get("client_secret").cloned(),
        ),
    };
    let client = realm.clients.get(&id).filter(|client| client.enabled);
    let client =
        client.ok_or_else(|| unauthorized("invalid_client", "Invalid client or Invalid client credentials"))?;
    match (&client.unsupported, &client.secret) {
        (Some(why), _) => Err(unauthorized("invalid_client", why)),
        (None, None) => Ok(client),
        (None, Some(_)) if secret == client.secret => Ok(client),
        (None, Some(_)) => Err(wrong()),
    }
}

/// RFC 6749 2.3.1: both halves are form-encoded before they are joined.
fn read_basic(value: &str) -> Option<(String, String)> {
    let text = String::from_utf8(STANDARD.decode(value.strip_prefix("Basic ")?).ok()?).ok()?;
    let (id, secret) = text.split_once(':')?;
    let decode = |half: &str| {
        let form = format!("half={half}");
        url::form_urlencoded::parse(form.as_bytes())
            .next()
            .map(|(_, value)| value.into_owned())
    };
    Some((decode(id)?, decode(secret)?))
}

fn missing(name: &str) -> Refused {
    refused("invalid_request", format!("Missing parameter: {name}"))
}

fn no_store(answer: &Value) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "application/json"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, answer.to_string()).into_response()
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap();
        let body = no_store(&json!({ "error": self.error, "error_description": self.description }));
        (status, body).into_response()
    }
}
