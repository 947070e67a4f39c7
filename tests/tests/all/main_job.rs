//! The main job end to end, on the real programs: a token becomes a lease, a user, a dbt run, and nothing.
//!
//! Tests that only ask share one stack per version of PostgreSQL; tests that kill, stop or edit have one of their own.

#[path = "main_job/answers.rs"]
mod answers;
#[path = "main_job/audit.rs"]
mod audit;
#[path = "main_job/building.rs"]
mod building;
#[path = "main_job/crashes.rs"]
mod crashes;
#[path = "main_job/elsewhere.rs"]
mod elsewhere;
#[path = "main_job/ending.rs"]
mod ending;
#[path = "main_job/installations.rs"]
mod installations;
#[path = "main_job/jobs.rs"]
mod jobs;
#[path = "main_job/network.rs"]
mod network;
#[path = "main_job/operating.rs"]
mod operating;
#[path = "main_job/residue.rs"]
mod residue;
#[path = "main_job/secrets.rs"]
mod secrets;
#[path = "main_job/terminal.rs"]
mod terminal;

use std::future::Future;
use std::time::{Duration, Instant};

use kdbt_e2e::broker::{BrokerOptions, test_policies};
use kdbt_e2e::postgres::{PgOptions, PgVersion};
use kdbt_e2e::stack::{Stack, StackOptions};
use reqwest::StatusCode;
use reqwest::header::{ACCEPT, HeaderMap};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

fn options(version: PgVersion) -> StackOptions {
    StackOptions {
        version,
        postgres: PgOptions::default(),
        keycloak: false,
        broker: BrokerOptions::new(test_policies()),
    }
}

/// A stack of the test's own, on the newest PostgreSQL.
async fn own_stack() -> Stack {
    Stack::start(&options(PgVersion::Pg18), |_| {}).await.unwrap()
}

/// The stack that the tests share that change nothing on it.
async fn shared(version: PgVersion) -> &'static Stack {
    static PG15: OnceCell<Stack> = OnceCell::const_new();
    static PG18: OnceCell<Stack> = OnceCell::const_new();
    let once = match version {
        PgVersion::Pg15 => &PG15,
        PgVersion::Pg18 => &PG18,
    };
    let start = async || Stack::start(&options(version), |_| {}).await.unwrap();
    once.get_or_init(start).await
}

/// The API, as a program without our client calls it.
#[derive(Clone)]
struct Caller {
    url: String,
    token: String,
    http: reqwest::Client,
}

/// What came back.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    #[track_caller]
    fn expect(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        self
    }
}

impl Caller {
    fn new(stack: &Stack, token: String) -> Self {
        let http = reqwest::Client::builder()
            .pool_max_idle_per_host(0)
            .timeout(Duration::from_mins(1));
        Self {
            url: stack.broker.url(),
            token,
            http: http.build().unwrap(),
        }
    }

    /// A person, logged in a moment ago.
    fn person(stack: &Stack, name: &str) -> Self {
        Self::new(stack, stack.identity.played().token_for(name))
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> reqwest::Result<Answer> {
        let answer = request.bearer_auth(&self.token).send().await?;
        Ok(Answer {
            status: answer.status(),
            headers: answer.headers().clone(),
            text: answer.text().await?,
        })
    }

    fn order(&self, body: &Value) -> reqwest::RequestBuilder {
        self.http.post(format!("{}/v1/leases", self.url)).json(body)
    }

    async fn lease(&self, body: &Value) -> Answer {
        self.send(self.order(body)).await.unwrap()
    }

    /// As plain curl gets it.
    async fn fragment(&self, body: &Value) -> Answer {
        self.send(self.order(body).header(ACCEPT, "application/yaml"))
            .await
            .unwrap()
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(self.http.get(format!("{}{path}", self.url))).await.unwrap()
    }

    async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(self.http.post(format!("{}{path}", self.url)).json(body))
            .await
            .unwrap()
    }

    async fn revoke(&self, id: &str) -> Answer {
        self.send(self.http.delete(format!("{}/v1/leases/{id}", self.url)))
            .await
            .unwrap()
    }
}

/// A lease whose secret the broker made.
#[derive(Debug)]
struct Lease {
    id: String,
    user: String,
    password: String,
    ends_at: jiff::Timestamp,
}

impl Lease {
    async fn take(caller: &Caller, target: &str, ttl: &str) -> Self {
        let answer = caller.lease(&json!({ "target": target, "ttl": ttl })).await;
        Self::of(&answer.expect(201).json())
    }

    fn of(answer: &Value) -> Self {
        let text = |value: &Value| {
            value
                .as_str()
                .unwrap_or_else(|| panic!("a text is missing in {answer}"))
                .to_owned()
        };
        Self {
            id: text(&answer["lease"]["id"]),
            user: text(&answer["lease"]["user"]),
            password: text(&answer["secret"]["password"]),
            ends_at: text(&answer["lease"]["ends_at"]).parse().unwrap(),
        }
    }

    async fn connect(&self, stack: &Stack) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        stack
            .postgres
            .connect_as(kdbt_e2e::stack::DATABASE, &self.user, &self.password)
            .await
    }
}

async fn exists(stack: &Stack, user: &str) -> bool {
    stack.lease_users().await.unwrap().iter().any(|one| one == user)
}

/// Asks until it is so; how long that took.
async fn within<F: Future<Output = bool>>(limit: Duration, what: &str, mut so: impl FnMut() -> F) -> Duration {
    let start = Instant::now();
    while !so().await {
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    start.elapsed()
}

/// Waits until the user is gone.
async fn gone(stack: &Stack, user: &str, limit: Duration) -> Duration {
    within(limit, &format!("{user} is gone"), async || !exists(stack, user).await).await
}
