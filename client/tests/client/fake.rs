//! A broker and an issuer in one process, on one port, with knobs for what they get wrong.

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{any, get, post};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use tempfile::TempDir;

pub(crate) const LEASE: &str = "lse_0190f3c49a3c7d1e8a4b5c6d7e8f9a0b";

/// What the stack answers with.
pub(crate) struct Knobs {
    pub(crate) host: String,
    pub(crate) sslmode: &'static str,
    pub(crate) issuer: Option<String>,
    pub(crate) ttl_secs: i64,
    /// Refusals that come before the first lease: status, code, `Retry-After`.
    pub(crate) refusals: VecDeque<(u16, &'static str, u32)>,
    pub(crate) refuse_renewal: bool,
    pub(crate) lease_state: &'static str,
    pub(crate) targets: Vec<&'static str>,
    /// What it says of the access to each.
    pub(crate) access: &'static str,
    pub(crate) expires_in: i64,
    pub(crate) refresh_works: bool,
    /// Other members of the connection than those of a PostgreSQL target: the target is on Snowflake.
    pub(crate) snowflake: Option<Value>,
    /// Whether it calls every credential the wrong one, and names the other engine.
    pub(crate) contradicts: bool,
}

/// A call to the broker.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) line: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

struct Shared {
    url: String,
    knobs: Mutex<Knobs>,
    calls: Mutex<Vec<Call>>,
    /// Challenge and nonce of the login that is under way.
    login: Mutex<(String, String)>,
    polls: Mutex<u32>,
}

/// The running stack, and a home folder for its users.
pub(crate) struct Fake {
    shared: Arc<Shared>,
    pub(crate) home: TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl Fake {
    pub(crate) fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let shared = Arc::new(Shared {
            url: format!("http://{}", listener.local_addr().unwrap()),
            knobs: Mutex::new(Knobs {
                host: "127.0.0.1".into(),
                sslmode: "disable",
                issuer: None,
                ttl_secs: 3600,
                refusals: VecDeque::new(),
                refuse_renewal: false,
                lease_state: "active",
                targets: vec!["dev"],
                access: "reads marts",
                expires_in: 300,
                refresh_works: true,
                snowflake: None,
                contradicts: false,
            }),
            calls: Mutex::default(),
            login: Mutex::default(),
            polls: Mutex::default(),
        });
        let routes = Router::new()
            .route("/v1/client-config", get(client_config))
            .route("/realm/.well-known/openid-configuration", get(discovery))
            .route("/realm/auth", get(authorize))
            .route("/realm/token", post(token))
            .route("/realm/device", post(device))
            .route("/realm/logout", post(StatusCode::NO_CONTENT))
            .route("/realm/revoke", post(StatusCode::OK))
            .route("/v1/{*path}", any(broker))
            .with_state(Arc::clone(&shared));
        runtime.spawn(async { axum::serve(listener, routes).await });
        Self {
            shared,
            home: TempDir::new().unwrap(),
            _runtime: runtime,
        }
    }

    pub(crate) fn knobs(&self) -> MutexGuard<'_, Knobs> {
        self.shared.knobs.lock().unwrap()
    }

    /// The calls so far, as `METHOD /path`.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.calls().into_iter().map(|call| call.line).collect()
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.shared.calls.lock().unwrap().clone()
    }

    pub(crate) fn issuer(&self) -> String {
        self.shared.issuer()
    }

    pub(crate) fn url(&self) -> String {
        self.shared.url.clone()
    }

    /// A token of a person with a session.
    pub(crate) fn token(&self) -> String {
        self.shared.token(&json!({"sid": "s1"}))
    }

    /// A token with these claims besides the usual ones.
    pub(crate) fn token_with(&self, claims: &Value) -> String {
        self.shared.token(claims)
    }

    /// The client, with nothing of this machine's environment but what programs need to start.
    pub(crate) fn client(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kdbt-client"));
        let folder = |name: &str| {
            let path = self.home.path().join(name);
            std::fs::create_dir_all(&path).unwrap();
            path
        };
        command
            .args(args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", self.home.path())
            .env("XDG_RUNTIME_DIR", folder("run"))
            .env("KDBT_BROKER", &self.shared.url)
            .current_dir(folder("work"));
        command
    }

    /// The client with a person's token.
    pub(crate) fn client_with_token(&self, args: &[&str]) -> Command {
        let mut command = self.client(args);
        command.env("KDBT_TOKEN", self.token());
        command
    }

    /// Another client of the user's at this broker: what the first one keeps is there.
    pub(crate) fn client_at(&self, other: &Self, args: &[&str]) -> Command {
        let mut command = self.client(args);
        command.env("KDBT_BROKER", other.url());
        command
    }

    /// The same command by a shell that lets everybody read and write what it makes.
    pub(crate) fn openly(command: &Command) -> Command {
        let mut shell = Command::new("sh");
        shell
            .args(["-c", "umask 000; exec \"$0\" \"$@\""])
            .arg(command.get_program())
            .args(command.get_args())
            .env_clear()
            .envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))))
            .current_dir(command.get_current_dir().unwrap());
        shell
    }

    /// The folders that `exec` has left in the runtime folder.
    pub(crate) fn leftovers(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.home.path().join("run")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Waits until something has happened that another process does.
pub(crate) fn until(what: &str, mut happened: impl FnMut() -> bool) {
    let patience = Instant::now() + Duration::from_secs(20);
    while !happened() {
        assert!(Instant::now() < patience, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A browser that follows no redirect: status line and `Location`.
pub(crate) fn browse(url: &str) -> (String, Option<String>) {
    let url = url::Url::parse(url).unwrap();
    let address = (url.host_str().unwrap(), url.port().unwrap());
    let mut stream = TcpStream::connect(address).unwrap();
    let target = &url[url::Position::BeforePath..url::Position::AfterQuery];
    write!(
        stream,
        "GET {target} HTTP/1.1\r\nHost: {}:{}\r\nConnection: close\r\n\r\n",
        address.0, address.1
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let headers = answer.lines().filter_map(|line| line.split_once(": "));
    let location = headers
        .filter(|(name, _)| name.eq_ignore_ascii_case("location"))
        .map(|(_, value)| value.to_owned())
        .next();
    (answer.lines().next().unwrap().to_owned(), location)
}

impl Shared {
    fn issuer(&self) -> String {
        format!("{}/realm", self.url)
    }

    fn token(&self, more: &Value) -> String {
        let mut claims = json!({
            "iss": self.issuer(), "aud": "kdbt-broker", "sub": "sub-ada", "exp": 4_000_000_000_i64,
            "preferred_username": "ada", "realm_access": {"roles": ["analyst"]},
        });
        for (name, value) in more.as_object().unwrap() {
            claims[name] = value.clone();
        }
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims.to_string()))
    }
}

type App = State<Arc<Shared>>;

fn answer(status: u16, body: &Value) -> Response {
    let kind = [("content-type", "application/json")];
    (StatusCode::from_u16(status).unwrap(), kind, body.to_string()).into_response()
}

async fn client_config(State(shared): App) -> Response {
    let issuer = shared
        .knobs
        .lock()
        .unwrap()
        .issuer
        .clone()
        .unwrap_or_else(|| shared.issuer());
    let issuer = json!({"issuer": issuer, "client_id": "kdbt-cli", "audiences": ["kdbt-broker"], "scopes": ["openid"]});
    answer(
        200,
        &json!({"installation": "test", "version": "0.1.0", "issuers": [issuer], "scram_iterations": 1}),
    )
}

async fn discovery(State(shared): App) -> Response {
    let issuer = shared.issuer();
    let endpoint = |name: &str| format!("{issuer}/{name}");
    answer(
        200,
        &json!({
            "issuer": issuer, "authorization_endpoint": endpoint("auth"), "token_endpoint": endpoint("token"),
            "device_authorization_endpoint": endpoint("device"), "end_session_endpoint": endpoint("logout"),
            "revocation_endpoint": endpoint("revoke"), "authorization_response_iss_parameter_supported": true,
        }),
    )
}

async fn authorize(State(shared): App, Query(query): Query<Value>) -> Response {
    let text = |name: &str| query[name].as_str().unwrap().to_owned();
    *shared.login.lock().unwrap() = (text("code_challenge"), text("nonce"));
    let mut location = url::Url::parse(&text("redirect_uri")).unwrap();
    let answers = [
        ("code", "the-code".to_owned()),
        ("state", text("state")),
        ("iss", shared.issuer()),
    ];
    location.query_pairs_mut().extend_pairs(answers);
    (StatusCode::FOUND, [("location", location.to_string())]).into_response()
}

async fn device(State(shared): App, body: Bytes) -> Response {
    shared.login.lock().unwrap().0 = form(&body)["code_challenge"].as_str().unwrap().to_owned();
    let uri = format!("{}/activate", shared.issuer());
    answer(
        200,
        &json!({"device_code": "the-device-code", "user_code": "ABCD-EFGH", "verification_uri": uri, "expires_in": 60, "interval": 1}),
    )
}

async fn token(State(shared): App, body: Bytes) -> Response {
    let form = form(&body);
    let (challenge, nonce) = shared.login.lock().unwrap().clone();
    let hash = form["code_verifier"].as_str().map(|verifier| {
        URL_SAFE_NO_PAD.encode(aws_lc_rs::digest::digest(
            &aws_lc_rs::digest::SHA256,
            verifier.as_bytes(),
        ))
    });
    let (works, expires_in) = {
        let knobs = shared.knobs.lock().unwrap();
        (knobs.refresh_works, knobs.expires_in)
    };
    let refused = |error: &str| answer(400, &json!({"error": error}));
    let claims = match form["grant_type"].as_str().unwrap() {
        "authorization_code" if form["code"] == "the-code" && hash.as_ref() == Some(&challenge) => json!({"sid": "s1"}),
        "refresh_token" if works && form["refresh_token"] == "the-refresh-token" => {
            json!({"sid": "s1", "preferred_username": "ada-again"})
        }
        "client_credentials" if form["client_id"] == "kdbt-ci" && form["client_secret"] == "hush-hush" => {
            json!({"sub": "sub-ci"})
        }
        "urn:ietf:params:oauth:grant-type:device_code" => {
            let mut polls = shared.polls.lock().unwrap();
            *polls += 1;
            if *polls < 2 {
                return refused("authorization_pending");
            }
            if hash.as_ref() != Some(&challenge) {
                return refused("invalid_grant");
            }
            json!({"sid": "s1"})
        }
        _ => return refused("invalid_grant"),
    };
    let id = shared.token(&json!({"aud": "kdbt-cli", "nonce": nonce}));
    answer(
        200,
        &json!({"access_token": shared.token(&claims), "token_type": "Bearer", "expires_in": expires_in, "refresh_token": "the-refresh-token", "id_token": id}),
    )
}

fn form(body: &[u8]) -> Value {
    Value::Object(
        url::form_urlencoded::parse(body)
            .map(|(name, value)| (name.into_owned(), Value::from(value)))
            .collect(),
    )
}

/// The body of the call that is being answered.
fn body_of(shared: &Shared) -> Value {
    shared.calls.lock().unwrap().last().unwrap().body.clone()
}

async fn broker(
    State(shared): App,
    Path(path): Path<String>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let line = format!("{method} {}", uri.path());
    let body = serde_json::from_slice(&body).unwrap_or_default();
    shared.calls.lock().unwrap().push(Call { line, headers, body });
    let mut knobs = shared.knobs.lock().unwrap();
    let problem = |status: u16, code: &str, retry_after: u32| {
        let body = json!({"type": "x", "title": code, "status": status, "code": code});
        let mut response = answer(status, &body);
        response.headers_mut().insert("retry-after", retry_after.into());
        response
    };
    let ttl_secs = knobs.ttl_secs;
    let lease = |state: &str, renewed: i64| {
        let at = |seconds: i64| {
            jiff::Timestamp::from_second(1_767_643_200 + seconds)
                .unwrap()
                .to_string()
        };
        json!({
            "id": LEASE, "state": state, "server": "dwh", "target": "dev", "user": "kdbt_ada_0", "rules": ["analyst"],
            "policy": "p1", "holder": "ada", "issued_at": at(0), "ends_at": at(ttl_secs + renewed),
            "max_ends_at": at(100_000), "end_reason": (state == "ended").then_some("revoked by an admin"),
        })
    };
    match (
        method.as_str(),
        path.trim_start_matches("leases/")
            .split_once('/')
            .map_or(path.as_str(), |(_, verb)| verb),
    ) {
        ("POST", "leases") => {
            if let Some((status, code, retry_after)) = knobs.refusals.pop_front() {
                return problem(status, code, retry_after);
            }
            let (wanted, mut engine) = match knobs.snowflake {
                Some(_) => ("public_key", "snowflake"),
                None => ("verifier", "postgres"),
            };
            let body = body_of(&shared);
            if knobs.contradicts {
                engine = if body["verifier"].is_null() {
                    "postgres"
                } else {
                    "snowflake"
                };
            }
            if body[wanted].is_null() || knobs.contradicts {
                let body =
                    json!({"type": "x", "title": "x", "status": 422, "code": "wrong-credential", "reason": engine});
                return answer(422, &body);
            }
            if let Some(other) = &knobs.snowflake {
                let mut connection = json!({
                    "engine": "snowflake", "account": "myorg-myacct", "user": "KDBT_ADA_0", "role": "DBT_FINANCE",
                    "database": "ANALYTICS", "warehouse": "BI", "schema": "FINANCE", "threads": 4,
                });
                for (name, value) in other.as_object().unwrap() {
                    connection[name] = value.clone();
                }
                return answer(
                    201,
                    &json!({"lease": lease("active", 0), "connection": connection, "profiles_yml": "{{ lies }}"}),
                );
            }
            let connection = json!({
                "engine": "postgres", "host": knobs.host, "port": 5432, "database": "analytics", "user": "kdbt_ada_0",
                "role": "dbt_finance", "schema": "finance", "threads": 4, "sslmode": knobs.sslmode,
            });
            answer(
                201,
                &json!({"lease": lease("active", 0), "connection": connection, "profiles_yml": "{{ lies }}"}),
            )
        }
        ("POST", "renew") if knobs.refuse_renewal => problem(403, "policy-denied", 0),
        ("POST", "renew") => answer(200, &lease("active", knobs.ttl_secs)),
        ("POST", "cancel") => answer(200, &json!({"sessions_ended": 1})),
        ("POST", "revocations") => answer(200, &json!({"dry_run": false, "leases": [lease("ended", 0)]})),
        ("GET", "targets") => {
            let engine = knobs.snowflake.as_ref().map_or("postgres", |_| "snowflake");
            let target = |name: &&str| json!({"target": name, "engine": engine, "tier": "dev", "rules": ["analyst"], "opt_in": [], "access": knobs.access});
            let targets: Vec<Value> = knobs.targets.iter().map(target).collect();
            answer(200, &json!({"targets": targets}))
        }
        ("GET", "leases") => answer(200, &json!({"leases": [lease("active", 0)]})),
        ("GET", _) => answer(200, &lease(knobs.lease_state, 0)),
        ("DELETE", _) => answer(200, &lease("ended", 0)),
        _ => {
            knobs.refusals.clear();
            problem(404, "not-found", 0)
        }
    }
}
