//! The running broker against its own `OpenAPI` document, by Schemathesis: requests that the document allows and ones that it
//! does not, as callers of every kind, and every answer held to what the document says of it.
//!
//! What the checks may not hold against the broker stands in `fixtures/schemathesis/hooks.py`. Short runs use a fixed seed;
//! with `KDBT_LONG` each caller sends for that many minutes, with a seed that is printed.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, UNIX_EPOCH};

use futures_util::StreamExt as _;
use kdbt_e2e::broker::{BrokerOptions, test_policies};
use kdbt_e2e::issuer::{Issuer, TokenForge};
use kdbt_e2e::leaks::Secrets;
use kdbt_e2e::postgres::{PgOptions, PgVersion};
use kdbt_e2e::process::Finished;
use kdbt_e2e::schemathesis;
use kdbt_e2e::stack::{Stack, StackOptions};
use serde_json::{Value, json};

/// How many requests a short run makes up for each call and kind of data.
const SHORT_EXAMPLES: &str = "15";
/// How many callers send at once.
const AT_ONCE: usize = 2;
/// The longest that a token may live at the broker, in seconds.
const TOKEN_LIFE: i64 = 3600;
/// The most minutes that a caller sends for: its token must live so long.
const MINUTES_MAX: u64 = 55;
/// How much longer than it should a run of Schemathesis may take, to load and to report.
const GRACE: Duration = Duration::from_mins(5);
/// How long the last user may take to be gone.
const PATIENCE: Duration = Duration::from_mins(1);
/// How often is looked whether it is.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Who sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Caller {
    /// An engineer, beside another one who must see nothing of what the first one has.
    Person,
    /// Sees and ends everybody's.
    Admin,
    /// A service account: without a session.
    Job,
    /// Somebody whom no rule gives anything.
    Stranger,
    /// Nobody who says who it is.
    Anonymous,
}

impl Caller {
    const ALL: [Self; 5] = [Self::Person, Self::Admin, Self::Job, Self::Stranger, Self::Anonymous];

    /// Name and token of each identity: the caller's, then those that it is compared with.
    fn tokens(self, issuer: &Issuer) -> Vec<(&'static str, String)> {
        let person = |name| (name, long(issuer.forge(name)));
        match self {
            Self::Person => vec![person("ada"), person("ben")],
            Self::Admin => vec![person("adm")],
            Self::Job => vec![("kdbt-ci", long(issuer.open(&issuer.service_token("kdbt-ci"))))],
            Self::Stranger => vec![person("nobody")],
            Self::Anonymous => Vec::new(),
        }
    }
}

/// A token that lives as long as any may.
fn long(forge: TokenForge) -> String {
    let now = i64::try_from(UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap();
    forge.claim("iat", now).claim("exp", now + TOKEN_LIFE).token()
}

/// How long is sent, and what.
#[derive(Debug, Clone, Copy)]
struct Length {
    minutes: Option<u64>,
    seed: u32,
}

impl Length {
    fn of_environment() -> Self {
        let minutes = std::env::var("KDBT_LONG").ok().map(|text| text.parse().unwrap_or(1));
        Self {
            minutes: minutes.map(|minutes: u64| minutes.min(MINUTES_MAX)),
            seed: if minutes.is_some() { rand::random() } else { 1 },
        }
    }

    fn patience(self) -> Duration {
        Duration::from_secs(60 * self.minutes.unwrap_or_default()) + GRACE
    }
}

/// What Schemathesis did as one caller.
struct Run {
    caller: Caller,
    tokens: Vec<String>,
    cases: u64,
    finished: Finished,
}

impl Run {
    async fn of(caller: Caller, stack: &Stack, length: Length) -> Self {
        let tokens = caller.tokens(stack.identity.played());
        let folder = tempfile::tempdir().unwrap();
        configure(folder.path(), &tokens);
        let mut command = Command::new(schemathesis::program().unwrap());
        command
            .current_dir(folder.path())
            .args(["run", "--no-color", "--mode", "all", "--generation-database", "none"])
            .args(["--seed", &length.seed.to_string()]);
        match length.minutes {
            Some(minutes) => command.args(["--max-time", &(60 * minutes).to_string()]),
            None => command.args(["--max-examples", SHORT_EXAMPLES]),
        };
        command.arg(format!("{}/v1/openapi.json", stack.broker.url()));
        let start = Instant::now();
        let finished = Finished::within(command, length.patience()).await.unwrap();
        let cases = generated(&finished.stdout);
        eprintln!(
            "schemathesis as {caller:?}: {cases} cases in {:.1} s (seed {})",
            start.elapsed().as_secs_f32(),
            length.seed
        );
        Self {
            caller,
            tokens: tokens.into_iter().map(|(_, token)| token).collect(),
            cases,
            finished,
        }
    }
}

/// Puts its settings where it looks for them; tokens into a file, since everybody sees arguments.
fn configure(folder: &Path, tokens: &[(&str, String)]) {
    let hooks = include_str!("../../fixtures/schemathesis/hooks.py");
    let mut settings = include_str!("../../fixtures/schemathesis/schemathesis.toml").to_owned();
    if let [(caller, _), others @ ..] = tokens {
        let header = |token: &str| json!([{"name": "Authorization", "value": format!("Bearer {token}")}]);
        let identity = |(name, token): &(&str, String)| json!({"name": name, "fixedHeaders": header(token)});
        let identities = json!({"auth": tokens.iter().map(identity).collect::<Vec<_>>()});
        fs::write(folder.join("identities.json"), identities.to_string()).unwrap();
        writeln!(
            settings,
            "\n[auth.wfc]\npath = \"identities.json\"\nuser = \"{caller}\""
        )
        .unwrap();
        if !others.is_empty() {
            let names: Vec<&str> = tokens.iter().map(|(name, _)| *name).collect();
            writeln!(settings, "peers = {names:?}").unwrap();
        }
    }
    fs::write(folder.join("schemathesis.toml"), settings).unwrap();
    fs::write(folder.join("hooks.py"), hooks).unwrap();
}

/// The number in `1234 generated, 1234 passed`, of the summary.
fn generated(output: &str) -> u64 {
    let mut lines = output.lines().filter_map(|line| line.split_once(" generated,"));
    lines
        .find_map(|(number, _)| number.trim().parse().ok())
        .unwrap_or_default()
}

#[tokio::test]
async fn whoever_asks_whatever_the_broker_answers_what_its_document_says() {
    if !schemathesis::is_there() {
        return;
    }
    let options = StackOptions {
        version: PgVersion::Pg18,
        postgres: PgOptions::default(),
        keycloak: false,
        broker: BrokerOptions {
            more: "limits: { leases_per_person: 40 }\n".to_owned(),
            ..BrokerOptions::new(test_policies())
        },
    };
    let mut stack = Stack::start(&options, |_| {}).await.unwrap();
    let length = Length::of_environment();
    let runs: Vec<Run> = futures_util::stream::iter(Caller::ALL)
        .map(|caller| Run::of(caller, &stack, length))
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;

    for run in &runs {
        assert!(
            run.cases > 200,
            "{:?}: {} cases only: {:?}",
            run.caller,
            run.cases,
            run.finished
        );
    }
    let found: Vec<String> = runs
        .iter()
        .filter(|run| run.finished.code != 0)
        .map(|run| format!("as {:?}:\n{}{}", run.caller, run.finished.stdout, run.finished.stderr))
        .collect();
    assert!(found.is_empty(), "{}", found.join("\n"));

    stack.broker.wait_until_ready().await.unwrap();
    every_lease_ends(&stack).await;
    let log = stack.broker.log().unwrap();
    for line in log.lines() {
        assert!(!line.contains("\"ERROR\"") && !line.contains("panicked"), "{line}");
    }
    let mut secrets = Secrets::default();
    runs.iter()
        .flat_map(|run| &run.tokens)
        .for_each(|token| secrets.add_token(token));
    assert_eq!(secrets.found_in(log.as_bytes()), None);
    assert!(stack.broker.stop().await.unwrap().success());
}

/// Everything that was ordered can be revoked, and leaves no user.
async fn every_lease_ends(stack: &Stack) {
    let admin = Admin {
        url: stack.broker.url(),
        token: long(stack.identity.played().forge("adm")),
        http: reqwest::Client::builder().timeout(PATIENCE).build().unwrap(),
    };
    let (mut ordered, mut after) = (0, String::new());
    loop {
        let page = admin
            .send(reqwest::Method::GET, &format!("/v1/leases?limit=500{after}"))
            .await;
        let leases = page["leases"].as_array().unwrap();
        ordered += leases.len();
        for lease in leases.iter().filter(|lease| lease["state"] != "ended") {
            let id = lease["id"].as_str().unwrap();
            admin.send(reqwest::Method::DELETE, &format!("/v1/leases/{id}")).await;
        }
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    eprintln!("schemathesis: {ordered} leases were ordered");
    assert!(ordered > 10, "nothing much was tried");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = stack.lease_users().await.unwrap();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "{left:?} are left");
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

struct Admin {
    url: String,
    token: String,
    http: reqwest::Client,
}

impl Admin {
    async fn send(&self, method: reqwest::Method, path: &str) -> Value {
        let request = self.http.request(method, format!("{}{path}", self.url));
        let answer = request.bearer_auth(&self.token).send().await.unwrap();
        assert!(answer.status().is_success(), "{path}: {answer:?}");
        answer.json().await.unwrap()
    }
}
