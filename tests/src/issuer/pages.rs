//! The pages that a person sees: login, the question about a device, and errors. No script, no cookie, no memory of a login.

use std::fmt::Write as _;

use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use url::Url;

use super::Inner;
use super::http::{Form, Issued, pkce_challenge, read_form, reads_scope};
use super::realm::Client;
use super::sessions::{Asked, Login, Refused, Sessions, refused};

/// A page instead of a redirect: the address to return to cannot be trusted.
pub(super) struct ErrorPage(&'static str);

impl IntoResponse for ErrorPage {
    fn into_response(self) -> Response {
        (
            StatusCode::BAD_REQUEST,
            page("We are sorry...", &format!("<p>{}</p>", escape(self.0))),
        )
            .into_response()
    }
}

/// `GET …/auth`: the login page, or back to the client with an error.
pub(super) async fn authorize(State(inner): Issued, RawQuery(query): RawQuery) -> Result<Response, ErrorPage> {
    let form = read_form(&query.unwrap_or_default()).map_err(|_| ErrorPage("duplicated parameter"))?;
    let known = form.get("client_id").and_then(|id| inner.realm.clients.get(id));
    let client = known.ok_or(ErrorPage("Client not found."))?;
    if !client.enabled || client.unsupported.is_some() {
        return Err(ErrorPage("Client disabled."));
    }
    let redirect_uri = form.get("redirect_uri").filter(|uri| client.allows_redirect(uri));
    let redirect_uri = redirect_uri.ok_or(ErrorPage("Invalid parameter: redirect_uri"))?;
    Ok(match asked(client, redirect_uri, &form) {
        Ok(asked) => login_page(&inner, Login::Code(asked), None).into_response(),
        Err(refused) => {
            let error = [
                ("error", refused.error),
                ("error_description", refused.description.as_str()),
            ];
            back_to_client(&inner, redirect_uri, form.get("state"), &error)
        }
    })
}

fn asked(client: &Client, redirect_uri: &str, form: &Form) -> Result<Asked, Refused> {
    match form.get("response_type").map(String::as_str) {
        Some("code") if client.standard_flow => {}
        Some("code") => {
            return Err(refused(
                "unauthorized_client",
                "Client is not allowed to initiate browser login.",
            ));
        }
        Some(_) => return Err(refused("unsupported_response_type", "Only `code` is supported")),
        None => return Err(refused("invalid_request", "Missing parameter: response_type")),
    }
    if form.get("response_mode").is_some_and(|mode| mode != "query") {
        return Err(refused("invalid_request", "Invalid parameter: response_mode"));
    }
    if form.get("prompt").is_some_and(|prompt| prompt == "none") {
        return Err(refused("login_required", "No login is remembered here"));
    }
    Ok(Asked {
        client: client.id.clone(),
        redirect_uri: redirect_uri.to_owned(),
        state: form.get("state").cloned(),
        nonce: form.get("nonce").cloned(),
        openid: reads_scope(form)?,
        challenge: pkce_challenge(client, form)?,
    })
}

/// `GET …/device`: asks for the code that the device shows, then for a login.
pub(super) async fn device(State(inner): Issued, RawQuery(query): RawQuery) -> Result<Response, ErrorPage> {
    let form = read_form(&query.unwrap_or_default()).map_err(|_| ErrorPage("duplicated parameter"))?;
    let Some(user_code) = form.get("user_code") else {
        let body = r#"<form method="get"><label>Code <input name="user_code" autofocus></label> <button>Submit</button></form>"#;
        return Ok(page("Device Login", body).into_response());
    };
    let waits = inner.with_sessions(|sessions, now| sessions.device_client(now, user_code).is_some());
    if !waits {
        return Err(ErrorPage("Invalid code, please try again."));
    }
    Ok(login_page(
        &inner,
        Login::Device {
            user_code: user_code.clone(),
        },
        None,
    )
    .into_response())
}

/// `POST …/login-actions/authenticate`: user name and password.
pub(super) async fn authenticate(
    State(inner): Issued,
    RawQuery(query): RawQuery,
    body: String,
) -> Result<Response, ErrorPage> {
    let (session_code, login) = open_login(&inner, query)?;
    let form = read_form(&body).map_err(|_| ErrorPage("duplicated parameter"))?;
    let field = |name: &str| form.get(name).map(String::as_str).unwrap_or_default();
    let user = match Sessions::check_password(&inner.realm, field("username"), field("password")) {
        Ok(user) => user,
        Err(why) => return Ok(login_page(&inner, login, Some(why)).into_response()),
    };
    inner.with_sessions(|sessions, _| sessions.close_login(&session_code));
    match login {
        Login::Code(asked) => {
            let (redirect_uri, state) = (asked.redirect_uri.clone(), asked.state.clone());
            let (code, sid) = inner.with_sessions(|sessions, now| sessions.issue_code(now, user, asked));
            let fields = [("session_state", sid.as_str()), ("code", code.as_str())];
            Ok(back_to_client(&inner, &redirect_uri, state.as_ref(), &fields))
        }
        Login::Device { user_code } => Ok(consent_page(&inner, user_code, user.username.clone())),
        Login::Consent { .. } => Err(ErrorPage("You are already logged in.")),
    }
}

fn consent_page(inner: &Inner, user_code: String, username: String) -> Response {
    let client = inner.with_sessions(|sessions, now| sessions.device_client(now, &user_code).map(str::to_owned));
    let Some(client) = client else {
        return ErrorPage("Invalid code, please try again.").into_response();
    };
    let session_code = inner.with_sessions(|sessions, _| sessions.open_login(Login::Consent { user_code, username }));
    let action = format!("{}/login-actions/consent?session_code={session_code}", inner.iss);
    let body = format!(
        r#"<p>Grant access to {client}?</p>
<form action="{action}" method="post"><input type="hidden" name="code" value="{session_code}">
<button name="accept" value="Yes">Yes</button> <button name="cancel" value="No">No</button></form>"#,
        client = escape(&client),
        action = escape(&action),
    );
    page("Device Login", &body).into_response()
}

/// `POST …/login-actions/consent`: yes or no.
pub(super) async fn consent(
    State(inner): Issued,
    RawQuery(query): RawQuery,
    body: String,
) -> Result<Response, ErrorPage> {
    let (session_code, login) = open_login(&inner, query)?;
    let Login::Consent { user_code, username } = login else {
        return Err(ErrorPage("Log in first."));
    };
    let form = read_form(&body).map_err(|_| ErrorPage("duplicated parameter"))?;
    if form.get("code") != Some(&session_code) {
        return Err(ErrorPage("Invalid parameter: code"));
    }
    let accepted = form.contains_key("accept") && !form.contains_key("cancel");
    let user = accepted.then(|| &inner.realm.users[&username]);
    inner.with_sessions(|sessions, _| {
        sessions.close_login(&session_code);
        sessions.answer_device(&user_code, user);
    });
    let words = if accepted {
        "Device Login Successful"
    } else {
        "Consent denied for connecting the device."
    };
    Ok(page(
        words,
        "<p>You may close this browser window and go back to your device.</p>",
    )
    .into_response())
}

fn open_login(inner: &Inner, query: Option<String>) -> Result<(String, Login), ErrorPage> {
    let mut form = read_form(&query.unwrap_or_default()).map_err(|_| ErrorPage("duplicated parameter"))?;
    let session_code = form.remove("session_code").unwrap_or_default();
    let login = inner.with_sessions(|sessions, _| sessions.login(&session_code).cloned());
    login.map(|login| (session_code, login)).ok_or(ErrorPage(
        "Your login attempt timed out. Login will start from the beginning.",
    ))
}

fn login_page(inner: &Inner, login: Login, complaint: Option<&str>) -> Html<String> {
    let session_code = inner.with_sessions(|sessions, _| sessions.open_login(login));
    let action = format!(
        "{}/login-actions/authenticate?session_code={session_code}&execution=password",
        inner.iss
    );
    let mut body = String::new();
    if let Some(complaint) = complaint {
        let _ = writeln!(body, r#"<p role="alert">{}</p>"#, escape(complaint));
    }
    let _ = write!(
        body,
        r#"<form action="{}" method="post">
<p><label>Username <input name="username" autocomplete="username" autofocus></label></p>
<p><label>Password <input name="password" type="password" autocomplete="current-password"></label></p>
<input type="hidden" name="credentialId" value=""><button>Sign In</button></form>"#,
        escape(&action)
    );
    page("Sign in to your account", &body)
}

/// `state` and `iss` (RFC 9207) go along always.
fn back_to_client(inner: &Inner, redirect_uri: &str, state: Option<&String>, fields: &[(&str, &str)]) -> Response {
    let Ok(mut url) = Url::parse(redirect_uri) else {
        return ErrorPage("Invalid parameter: redirect_uri").into_response();
    };
    let mut pairs = url.query_pairs_mut();
    if let Some(state) = state {
        pairs.append_pair("state", state);
    }
    pairs.append_pair("iss", &inner.iss).extend_pairs(fields);
    drop(pairs);
    (
        StatusCode::FOUND,
        [
            (header::LOCATION, url.to_string()),
            (header::CACHE_CONTROL, "no-store".into()),
        ],
    )
        .into_response()
}

fn page(title: &str, body: &str) -> Html<String> {
    Html(format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title><h1>{title}</h1>\n{body}\n</html>\n"
    ))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
