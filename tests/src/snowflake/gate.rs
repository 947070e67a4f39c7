//! The connectors' own protocol in front of fakesnow: who logs in is checked against the simulated account, and every
//! later request of the session too.
//!
//! Not true to an account: `CURRENT_USER()` and `CURRENT_ROLE()` are fakesnow's, and no privilege on data is checked.
//! The refusals have the codes of the vendor's own test mappings for key pairs (390144) and lost sessions (390111).

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, Response, Uri, header};
use serde_json::{Value, json};

use super::fakesnow::Fakesnow;
use super::{Simulator, new_id};

/// A running gate. It ends with its runtime.
#[derive(Clone)]
pub struct Gate {
    inside: Arc<Inside>,
    address: SocketAddr,
}

struct Inside {
    simulator: Simulator,
    fakesnow: Fakesnow,
    http: reqwest::Client,
    /// Whose each session is.
    sessions: Mutex<BTreeMap<String, String>>,
    /// Every login that was tried: the user that it was for, and whether it was let in.
    logins: Mutex<Vec<(String, bool)>>,
}

impl Gate {
    /// In front of a fakesnow of its own.
    pub async fn start(simulator: &Simulator) -> anyhow::Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let inside = Arc::new(Inside {
            simulator: simulator.clone(),
            fakesnow: Fakesnow::start().await?,
            http: reqwest::Client::builder().no_proxy().build()?,
            sessions: Mutex::default(),
            logins: Mutex::default(),
        });
        let gate = Self {
            address: listener.local_addr()?,
            inside: Arc::clone(&inside),
        };
        let router = Router::new().fallback(pass).with_state(inside);
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(gate)
    }

    /// Where dbt connects.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Every login so far: the user that it was for, and whether it was let in.
    pub fn logins(&self) -> Vec<(String, bool)> {
        self.inside
            .logins
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

async fn pass(
    State(inside): State<Arc<Inside>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let is_login = uri.path() == "/session/v1/login-request";
    let user = if is_login {
        inside.admit(&headers, &body, &uri)
    } else {
        inside.goes_on(&headers)
    };
    let user = match user {
        Ok(user) => user,
        Err(refusal) => return answer(&refusal),
    };
    let target = format!(
        "{}{}",
        inside.fakesnow.url(),
        uri.path_and_query().map_or("/", |path| path.as_str())
    );
    let mut request = inside.http.request(method, target).body(body);
    for (name, value) in headers
        .iter()
        .filter(|(name, _)| !["host", "content-length"].contains(&name.as_str()))
    {
        request = request.header(name, value);
    }
    let Ok(response) = request.send().await else {
        return answer(&json!({"success": false, "code": "261000", "message": "fakesnow does not answer"}));
    };
    let kind = response.headers().get(header::CONTENT_TYPE).cloned();
    let status = response.status();
    let bytes = response.bytes().await.unwrap_or_default();
    if is_login {
        let token = serde_json::from_slice::<Value>(&bytes).ok();
        if let Some(token) = token.as_ref().and_then(|answer| answer["data"]["token"].as_str()) {
            inside
                .sessions
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(token.to_owned(), user);
        }
    }
    let mut answer = Response::builder().status(status);
    if let Some(kind) = kind {
        answer = answer.header(header::CONTENT_TYPE, kind);
    }
    answer.body(Body::from(bytes)).unwrap_or_default()
}

impl Inside {
    /// A login is by key pair, as a user who may, in a role that it has.
    fn admit(&self, headers: &HeaderMap, body: &[u8], uri: &Uri) -> Result<String, Value> {
        let asked: Value = serde_json::from_slice(&plain(headers, body)).unwrap_or_default();
        let asked = &asked["data"];
        let name = asked["LOGIN_NAME"].as_str().unwrap_or_default().to_ascii_uppercase();
        let token = asked["TOKEN"]
            .as_str()
            .filter(|_| asked["AUTHENTICATOR"] == "SNOWFLAKE_JWT");
        let let_in = token
            .and_then(|token| self.simulator.log_in(token).ok())
            .filter(|user| *user == name);
        let role =
            url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()).find(|(key, _)| key == "roleName");
        let in_role = |user: &str| {
            let role = role.as_ref().map(|(_, role)| role.trim_matches('"').to_owned());
            role.is_none_or(|role| self.simulator.look(|account| account.may_use(user, &role)))
        };
        let result = match let_in {
            Some(user) if in_role(&user) => Ok(user),
            Some(_) => Err(refusal(
                "390189",
                "Role specified in the connect string does not exist or not authorized.",
            )),
            None if token.is_some() => Err(refusal("390144", &format!("JWT token is invalid. [{}]", new_id()))),
            None => Err(refusal("390100", "Incorrect username or password was specified.")),
        };
        self.logins
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((name, result.is_ok()));
        result
    }

    /// A session goes on for as long as its user may.
    fn goes_on(&self, headers: &HeaderMap) -> Result<String, Value> {
        let bearer = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let token = bearer.split('"').nth(1).unwrap_or_default();
        let user = self
            .sessions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(token)
            .cloned();
        user.filter(|user| self.simulator.is_session_alive(user))
            .ok_or_else(|| {
                refusal(
                    "390111",
                    "Session no longer exists. New login required to access the service.",
                )
            })
    }
}

fn plain(headers: &HeaderMap, body: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    let packed = headers
        .get(header::CONTENT_ENCODING)
        .is_some_and(|coding| coding == "gzip");
    if packed && flate2::read::GzDecoder::new(body).read_to_end(&mut text).is_ok() {
        return text;
    }
    body.to_vec()
}

fn refusal(code: &str, message: &str) -> Value {
    json!({"data": {"nextAction": "RETRY_LOGIN"}, "code": code, "message": message, "success": false, "headers": null})
}

fn answer(body: &Value) -> Response<Body> {
    let answer = Response::builder().header(header::CONTENT_TYPE, "application/json");
    answer.body(Body::from(body.to_string())).unwrap_or_default()
}
