//! The gate: the account's one address. The SQL API goes to the simulator; the connectors' own protocol to fakesnow, behind a
//! login that the simulated account decides.
//!
//! The connectors' protocol is not documented. Its paths and members are those that connectors send and read, its refusals those of the
//! vendor's own test data: `test/data/wiremock/mappings` in `snowflakedb/snowflake-connector-python`. What an open session is
//! told once its user is disabled or gone is an assumption: 390111, which connectors report as they get it.
//!
//! Not true to an account: nothing checks rights on objects, so a role is checked at login and decides nothing later; `USE ROLE`
//! changes nothing; and what is cut here may go on behind us to its end, unheard.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, Method, Response, Uri, header};
use axum::routing::{any, post};
use serde_json::{Value, json};

use self::identity::as_the_session;
use self::wire::{Answer, answer, authorization, broken, done, handed_on, read, refusal, token_of};
use super::fakesnow::Fakesnow;
use super::{LoginFailure, Simulator, new_id};

mod identity;
mod wire;

/// How often a running statement looks whether its user still may.
const LOOK: Duration = Duration::from_millis(20);

/// One request to the SQL API and its answer.
#[derive(Debug, Clone)]
pub struct Exchange {
    /// What was asked; null where there was no body.
    pub request: Value,
    /// The HTTP status.
    pub status: u16,
    /// What was answered; null where there was no body.
    pub answer: Value,
}

/// A session of a connector.
#[derive(Debug, Clone)]
struct Session {
    user: String,
    /// When that user was created: another user of the same name is somebody else.
    created_on: i64,
    role: String,
    warehouse: String,
    /// What renews it.
    master: String,
    /// The session behind us.
    behind: String,
}

#[derive(Default)]
struct Inside {
    /// By their tokens.
    sessions: BTreeMap<String, Session>,
    exchanges: Vec<Exchange>,
    /// The user of every login that succeeded.
    logins: Vec<String>,
    /// How much longer each statement of a connector takes.
    slow: Duration,
}

/// A running gate. It ends with its runtime, fakesnow with the last clone.
#[derive(Clone)]
pub struct Gate {
    simulator: Simulator,
    fakesnow: Arc<Fakesnow>,
    address: SocketAddr,
    http: reqwest::Client,
    inside: Arc<Mutex<Inside>>,
}

impl Gate {
    /// Opens it before this account, with a fakesnow of its own, on a loopback port.
    pub async fn open(simulator: Simulator) -> Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let gate = Self {
            simulator,
            fakesnow: Arc::new(Fakesnow::start().await?),
            address: listener.local_addr()?,
            http: reqwest::Client::builder().no_proxy().build()?,
            inside: Arc::default(),
        };
        let router = Router::new()
            .route("/api/v2/{*rest}", any(sql_api))
            .route("/session/v1/login-request", post(log_in))
            .route("/session/token-request", post(renew))
            .route("/session", post(of_session))
            .route("/session/heartbeat", post(of_session))
            .route("/queries/v1/query-request", post(query))
            .route("/queries/v1/abort-request", post(of_session))
            .route("/telemetry/send", post(|| async { done(&Value::Null) }))
            .with_state(gate.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(gate)
    }

    /// The account's address, without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The address alone.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Every request to the SQL API so far.
    pub fn exchanges(&self) -> Vec<Exchange> {
        self.inside().exchanges.clone()
    }

    /// What fakesnow has said.
    pub fn log(&self) -> String {
        self.fakesnow.log()
    }

    /// The user of every connector's login so far that succeeded.
    pub fn logins(&self) -> Vec<String> {
        self.inside().logins.clone()
    }

    /// Every statement of a connector takes so much longer.
    pub fn slow(&self, each: Duration) {
        self.inside().slow = each;
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session whose token this request has, if its user may still work.
    fn session(&self, headers: &HeaderMap) -> Result<Session, Box<Answer>> {
        let no = |code, message| Box::new(refusal(code, message));
        let session = self.inside().sessions.get(&token_of(headers)).cloned();
        let session = session.ok_or_else(|| no("390104", "User must login again to access the service."))?;
        if self.is_alive(&session) {
            Ok(session)
        } else {
            let gone = "Session no longer exists.  New login required to access the service.";
            Err(no("390111", gone))
        }
    }

    fn is_alive(&self, session: &Session) -> bool {
        self.simulator.look(|account| {
            let user = account.user(&session.user);
            user.is_some_and(|user| !user.disabled && user.created_on == session.created_on)
        })
    }

    /// Returns when the session's user may not work any longer.
    async fn cut_off(&self, session: &Session) {
        while self.is_alive(session) {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Sends it to fakesnow, as the session there.
    async fn behind(&self, uri: &Uri, token: &str, body: Vec<u8>) -> Answer {
        let request = self
            .http
            .post(format!("{}{uri}", self.fakesnow.url()))
            .header(header::AUTHORIZATION, authorization(token))
            .header(header::CONTENT_TYPE, "application/json");
        handed_on(request.body(body).send().await).await
    }

    /// Who logs in: by a key pair's token for this very user, and by nothing else.
    fn admit(&self, order: &Value) -> Result<String, Box<Answer>> {
        let said = |name: &str| order["data"][name].as_str().unwrap_or_default();
        if said("AUTHENTICATOR") != "SNOWFLAKE_JWT" {
            let message = "Incorrect username or password was specified.";
            return Err(Box::new(refusal("390100", message)));
        }
        let code = match self.simulator.log_in(said("TOKEN")) {
            Ok(user) if user == said("LOGIN_NAME").to_uppercase() => return Ok(user),
            Ok(_) => "394300",
            Err(code) => code,
        };
        let id = new_id();
        let failure = LoginFailure { id: id.clone(), code };
        self.simulator.inside().failures.push(failure);
        let message = format!("JWT token is invalid. [{id}]");
        Err(Box::new(refusal("390144", &message)))
    }
}

/// The simulator's own answer, noted.
async fn sql_api(State(gate): State<Gate>, method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Answer {
    let mut headers_behind = headers;
    headers_behind.remove(header::HOST);
    let request = gate.http.request(method, format!("{}{uri}", gate.simulator.url()));
    let sent = request.headers(headers_behind).body(body.clone()).send().await;
    let (parts, answered) = handed_on(sent).await.into_parts();
    let answered = axum::body::to_bytes(answered, usize::MAX).await.unwrap_or_default();
    let json = |bytes: &[u8]| serde_json::from_slice(bytes).unwrap_or_default();
    gate.inside().exchanges.push(Exchange {
        request: json(&body),
        status: parts.status.as_u16(),
        answer: json(&answered),
    });
    Response::from_parts(parts, Body::from(answered))
}

/// A key pair's token opens a session, for a role that the user may use; nothing else does.
async fn log_in(
    State(gate): State<Gate>,
    Query(asked): Query<BTreeMap<String, String>>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    let Some(mut order) = read(&headers, &body) else {
        return refusal("390400", "Bad request.");
    };
    let user = match gate.admit(&order) {
        Ok(user) => user,
        Err(refused) => return *refused,
    };
    let wanted = |name: &str| asked.get(name).filter(|value| !value.is_empty()).cloned();
    let known = gate.simulator.look(|account| {
        let known = account.user(&user)?;
        let role = wanted("roleName").or_else(|| known.default_role.clone());
        let role = role.unwrap_or_else(|| "PUBLIC".to_owned());
        let warehouse = wanted("warehouse").or_else(|| known.default_warehouse.clone());
        let may = account.may_use(&user, &role);
        Some((known.created_on, role, warehouse.unwrap_or_default())).filter(|_| may)
    });
    let Some((created_on, role, warehouse)) = known else {
        let message = "Role specified in the connect string is not granted to this user. \
                       Contact your local system administrator, or attempt to login with another role, e.g. PUBLIC.";
        return refusal("390186", message);
    };

    // fakesnow learns neither token nor user.
    let parameters = order["data"]["SESSION_PARAMETERS"].take();
    let order = json!({"data": {"SESSION_PARAMETERS": parameters}});
    let opened = gate.behind(&uri, "", order.to_string().into_bytes()).await;
    let opened = axum::body::to_bytes(opened.into_body(), usize::MAX).await;
    let mut opened: Value = serde_json::from_slice(&opened.unwrap_or_default()).unwrap_or_default();
    let Some(behind) = opened["data"]["token"].as_str().map(str::to_owned) else {
        return broken();
    };
    let session = Session {
        user: user.clone(),
        created_on,
        role,
        warehouse,
        master: new_id(),
        behind,
    };
    let (token, data) = (new_id(), &mut opened["data"]);
    data["token"] = json!(token);
    data["masterToken"] = json!(session.master);
    data["validityInSeconds"] = json!(3600);
    data["masterValidityInSeconds"] = json!(14400);
    data["displayUserName"] = json!(user);
    data["sessionId"] = json!(1);
    data["sessionInfo"]["roleName"] = json!(session.role);
    data["sessionInfo"]["warehouseName"] = json!(session.warehouse);
    let mut inside = gate.inside();
    inside.logins.push(user);
    inside.sessions.insert(token, session);
    answer(&opened)
}

/// A new token for a session that goes on, against its master token.
async fn renew(State(gate): State<Gate>, headers: HeaderMap, body: Bytes) -> Answer {
    let master = token_of(&headers);
    let old = read(&headers, &body).and_then(|order| Some(order["oldSessionToken"].as_str()?.to_owned()));
    let known = old.and_then(|old| Some((gate.inside().sessions.get(&old)?.clone(), old)));
    match known {
        Some((session, old)) if session.master == master && gate.is_alive(&session) => {
            let token = new_id();
            let mut inside = gate.inside();
            inside.sessions.remove(&old);
            inside.sessions.insert(token.clone(), session);
            done(&json!({
                "sessionToken": token, "masterToken": master,
                "validityInSecondsST": 3600, "validityInSecondsMT": 14400, "sessionId": 1,
            }))
        }
        _ => refusal("390115", "The master token is invalid."),
    }
}

/// What concerns the session alone: heartbeat, abort and logout.
async fn of_session(State(gate): State<Gate>, uri: Uri, headers: HeaderMap, body: Bytes) -> Answer {
    let session = match gate.session(&headers) {
        Ok(session) => session,
        Err(refused) => return *refused,
    };
    if uri.query().is_some_and(|query| query.contains("delete=true")) {
        gate.inside().sessions.remove(&token_of(&headers));
    }
    gate.behind(&uri, &session.behind, body.to_vec()).await
}

/// A statement, for as long as the session's user may work: disabling a user aborts what it runs.
async fn query(State(gate): State<Gate>, uri: Uri, headers: HeaderMap, body: Bytes) -> Answer {
    let session = match gate.session(&headers) {
        Ok(session) => session,
        Err(refused) => return *refused,
    };
    let Some(mut order) = read(&headers, &body) else {
        return refusal("390400", "Bad request.");
    };
    if let Some(text) = order["sqlText"].as_str() {
        order["sqlText"] = json!(as_the_session(text, &session));
    }
    let slow = gate.inside().slow;
    let run = async {
        tokio::time::sleep(slow).await;
        gate.behind(&uri, &session.behind, order.to_string().into_bytes()).await
    };
    tokio::select! {
        answer = run => answer,
        () = gate.cut_off(&session) => refusal("000604", "SQL execution canceled"),
    }
}
