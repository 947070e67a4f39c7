//! Tokens and requests as an attacker sends them, and odd ones that are legal, against the running broker.
//!
//! A row changes one thing of an honest order. The order without that change is sent first and becomes a lease, so
//! that no row passes for another reason than its own. All rows share one broker, which logs all that it can.

#[path = "hostile_tokens/claims.rs"]
mod claims;
#[path = "hostile_tokens/header.rs"]
mod header;
#[path = "hostile_tokens/minted.rs"]
mod minted;
#[path = "hostile_tokens/requests.rs"]
mod requests;
#[path = "hostile_tokens/transport.rs"]
mod transport;
#[path = "hostile_tokens/wire.rs"]
mod wire;

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::UNIX_EPOCH;

use futures_util::StreamExt as _;
use jsonwebtoken::Algorithm;
use kdbt_broker::identity::{AuthError, Reason};
use kdbt_e2e::broker::{BrokerOptions, test_policies};
use kdbt_e2e::identity::IdentityProvider;
use kdbt_e2e::issuer::{Issuer, TokenForge};
use kdbt_e2e::keycloak::Keycloak;
use kdbt_e2e::leaks::Secrets;
use kdbt_e2e::postgres::{PgOptions, PgVersion};
use kdbt_e2e::process::Finished;
use kdbt_e2e::stack::{Stack, StackOptions};
use serde_json::Value;
use tokio::sync::OnceCell;

use self::wire::{Answer, Request};

/// How many rows are sent at once.
const AT_ONCE: usize = 12;

/// An issuer that is configured and never answers.
const DEAD_ISSUER: &str = "http://127.0.0.1:1/realms/dead";

/// The broker that all rows are sent to, and whose tokens it takes.
struct World {
    stack: Stack,
    /// Another issuer, which the broker believes under stricter settings.
    strict: IdentityProvider,
    odd: header::OddKeys,
    /// By a real Keycloak, where there is one.
    minted: Option<minted::Minted>,
}

impl World {
    /// One for the whole run.
    async fn shared() -> &'static Self {
        static WORLD: OnceCell<World> = OnceCell::const_new();
        WORLD.get_or_init(Self::start).await
    }

    async fn start() -> Self {
        let strict = IdentityProvider::play().unwrap();
        strict.played().add_key(Algorithm::ES256);
        let minted = match Keycloak::shared().await {
            Some(keycloak) => Some(minted::Minted::by(keycloak).await.unwrap()),
            None => None,
        };
        let issuers = format!(
            "  - issuer: {}\n    audiences: [kdbt-strict]\n    authorized_parties: [kdbt-cli]\n    provides: [realm_roles]\n    algorithms: [ES256]\n    \
             require_at_jwt: true\n    required_scope: kdbt\n    max_token_age: 2m\n    max_token_lifetime: 5m\n  \
             - issuer: {DEAD_ISSUER}\n    audiences: [kdbt-broker]\n    authorized_parties: [kdbt-cli]\n    required: false\n{}",
            strict.issuer(),
            minted.as_ref().map(minted::Minted::configured).unwrap_or_default(),
        );
        let policies = tempfile::tempdir().unwrap();
        fs::copy(test_policies().join("shop.yaml"), policies.path().join("shop.yaml")).unwrap();
        fs::write(policies.path().join("accents.yaml"), claims::ACCENTS).unwrap();
        let options = StackOptions {
            version: PgVersion::Pg18,
            // What the server is told is in its log, so that it shows what it was not told.
            postgres: PgOptions::default().set("log_statement", "all"),
            keycloak: false,
            broker: BrokerOptions {
                log: "trace".to_owned(),
                issuers,
                // Each row's honest order is a lease.
                more: "limits: { leases_per_rule: 5000, leases_per_target: 5000 }\n".to_owned(),
                ..BrokerOptions::new(policies.path())
            },
        };
        let stack = Stack::prepare(&options, |_| {}).await.unwrap();
        let odd = header::OddKeys::new();
        stack.identity.played().publish_also(odd.published());
        let namesake = stack.identity.played().active_key(Algorithm::RS256).kid().to_owned();
        strict
            .played()
            .publish_also(vec![odd.of_the_other.with_kid(&namesake).jwk()]);
        let mut stack = stack.bootstrapped(|_| {}).await.unwrap();
        stack.broker.start().await.unwrap();
        Self {
            stack,
            strict,
            odd,
            minted,
        }
    }

    fn issuer(&self) -> &Issuer {
        self.stack.identity.played()
    }

    /// An honest token of a person whom nobody else plays.
    fn honest(&self, person: &str) -> TokenForge {
        personal(self.issuer().forge("ada"), person)
    }

    /// The same from the stricter issuer.
    fn strict(&self, person: &str) -> TokenForge {
        let key = self.strict.played().active_key(Algorithm::ES256);
        let forge = personal(self.strict.played().forge("ada"), person);
        let forge = forge.signed_by(&key).header("typ", "at+jwt");
        forge.claim("aud", "kdbt-strict").claim("scope", "openid kdbt")
    }

    fn address(&self) -> String {
        self.stack.broker.url().replace("http://", "")
    }

    async fn metrics(&self) -> String {
        let url = format!("{}/metrics", self.stack.broker.management_url());
        reqwest::get(url).await.unwrap().text().await.unwrap()
    }

    async fn audit(&self) -> Vec<Value> {
        let command = self.stack.broker.command(&["audit", "show"]).unwrap();
        let shown = Finished::of(command).await.unwrap().expect(0).unwrap().stdout;
        shown.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn personal(forge: TokenForge, person: &str) -> TokenForge {
    forge
        .claim("sub", format!("sub-{person}"))
        .claim("preferred_username", person)
        .claim("canary", canary(person))
}

/// A claim that nobody may repeat, in clear either.
fn canary(person: &str) -> String {
    format!("canary-of-{person}-that-no-text-may-hold")
}

fn now() -> i64 {
    i64::try_from(UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap()
}

type Forging = Box<dyn Fn(&World, TokenForge) -> TokenForge + Send + Sync>;

/// A row: what is changed of an honest order, and what comes back.
struct Row {
    /// The rule that it proves, such as `R3`.
    rule: &'static str,
    /// A sentence that can be false.
    name: &'static str,
    from_strict: bool,
    base: Forging,
    token: Forging,
    text: Box<dyn Fn(String) -> String + Send + Sync>,
    request: Box<dyn Fn(Request) -> Request + Send + Sync>,
    expected: Vec<Expected>,
}

/// One answer.
#[derive(Debug, Clone, Copy)]
struct Expected {
    status: u16,
    code: Option<&'static str>,
    reason: Option<Reason>,
}

/// A row that changes nothing yet and expects a lease.
fn row(rule: &'static str, name: &'static str) -> Row {
    Row {
        rule,
        name,
        from_strict: false,
        base: Box::new(|_, token| token),
        token: Box::new(|_, token| token),
        text: Box::new(|token| token),
        request: Box::new(|request| request),
        expected: vec![status(201)],
    }
}

fn status(status: u16) -> Expected {
    Expected {
        status,
        code: None,
        reason: None,
    }
}

impl Row {
    /// Starts from a token of the stricter issuer.
    fn strict(mut self) -> Self {
        self.from_strict = true;
        self
    }

    /// What the honest order has already.
    fn base(mut self, edit: impl Fn(&World, TokenForge) -> TokenForge + Send + Sync + 'static) -> Self {
        self.base = Box::new(edit);
        self
    }

    /// Changes the token before it is signed.
    fn token(mut self, edit: impl Fn(TokenForge) -> TokenForge + Send + Sync + 'static) -> Self {
        self.token = Box::new(move |_, token| edit(token));
        self
    }

    /// The same, with the issuers at hand.
    fn token_in(mut self, edit: impl Fn(&World, TokenForge) -> TokenForge + Send + Sync + 'static) -> Self {
        self.token = Box::new(edit);
        self
    }

    /// One claim is this.
    fn claim(self, name: &'static str, value: impl Into<Value>) -> Self {
        let value = value.into();
        self.token(move |token| token.claim(name, value.clone()))
    }

    /// Changes the token's text.
    fn text(mut self, edit: impl Fn(String) -> String + Send + Sync + 'static) -> Self {
        self.text = Box::new(edit);
        self
    }

    /// Changes the request.
    fn request(mut self, edit: impl Fn(Request) -> Request + Send + Sync + 'static) -> Self {
        self.request = Box::new(edit);
        self
    }

    /// Refused by this rule.
    fn refused(mut self, reason: Reason) -> Self {
        let error = AuthError::from(reason);
        self.expected = vec![Expected {
            status: error.status(),
            code: None,
            reason: Some(reason),
        }];
        self
    }

    /// Answered with a problem.
    fn problem(mut self, status: u16, code: &'static str) -> Self {
        self.expected = vec![Expected {
            status,
            code: Some(code),
            reason: None,
        }];
        self
    }

    /// Answered so, one after the other.
    fn statuses(mut self, statuses: &[u16]) -> Self {
        self.expected = statuses.iter().map(|one| status(*one)).collect();
        self
    }

    /// Whether it is refused at all: legal ones need no order without the change.
    fn is_refusal(&self) -> bool {
        self.expected.iter().all(|answer| answer.status >= 300)
    }

    fn leases(&self) -> usize {
        self.expected.iter().filter(|answer| answer.status == 201).count() + usize::from(self.is_refusal())
    }
}

/// What became of a row.
struct Sent {
    row: Row,
    person: String,
    tokens: Vec<String>,
    answers: Vec<Answer>,
    complaints: Vec<String>,
}

impl Sent {
    async fn of(world: &World, row: Row) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let person = format!("row{:04}", NEXT.fetch_add(1, Ordering::Relaxed));
        let honest = if row.from_strict {
            world.strict(&person)
        } else {
            world.honest(&person)
        };
        let honest = (row.base)(world, honest);
        let (mut complaints, mut tokens) = (Vec::new(), Vec::new());
        let mut twin = Vec::new();
        if row.is_refusal() {
            tokens.push(honest.token());
            // The mended order: what the row takes away from it is all that it lacks.
            twin = Request::order(&tokens[0]).send(&world.address()).await;
            if twin.iter().map(|answer| answer.status).ne([201]) {
                complaints.push(format!("the honest order was answered {twin:?}"));
            }
        }
        let token = (row.text)((row.token)(world, honest).token());
        let mut answers = (row.request)(Request::order(&token)).send(&world.address()).await;
        tokens.push(token);
        complaints.extend(differences(&row.expected, &answers));
        answers.extend(twin);
        Self {
            row,
            person,
            tokens,
            answers,
            complaints,
        }
    }
}

fn differences(expected: &[Expected], answers: &[Answer]) -> Vec<String> {
    let mut found = Vec::new();
    if expected
        .iter()
        .map(|one| one.status)
        .ne(answers.iter().map(|one| one.status))
    {
        found.push(format!("expected {expected:?}, got {answers:?}"));
        return found;
    }
    for (expected, answer) in expected.iter().zip(answers) {
        let problem = answer.json();
        let reason = expected.reason.map(|reason| AuthError::from(reason).problem());
        let code = expected.code.or(reason.as_ref().map(|problem| problem.code.as_str()));
        if code.is_some() && problem["code"].as_str() != code {
            found.push(format!("expected the code {code:?}, got {answer:?}"));
        }
        if let Some(reason) = expected.reason
            && problem["reason"] != reason.code()
        {
            found.push(format!("expected the reason {}, got {answer:?}", reason.code()));
        }
        let challenge = expected
            .reason
            .and_then(|reason| AuthError::from(reason).www_authenticate());
        if let Some(challenge) = challenge
            && !answer
                .header("www-authenticate")
                .is_some_and(|sent| sent.starts_with(&challenge))
        {
            found.push(format!("expected the challenge {challenge}, got {answer:?}"));
        }
        // Answers of hyper itself, to what is no HTTP, have no body and no request id.
        let ours = answer.header("x-request-id").is_some();
        if ours && answer.status >= 400 && answer.header("content-type") != Some("application/problem+json") {
            found.push(format!("not a problem document: {answer:?}"));
        }
        for name in ["access-control-allow-origin", "set-cookie", "upgrade", "server"] {
            if answer.header(name).is_some() {
                found.push(format!("`{name}` in {answer:?}"));
            }
        }
    }
    found
}

/// Sends all rows and looks at what is left of them: leases, audit, log, metrics, and no secret.
async fn check(rows: Vec<Row>) {
    let world = World::shared().await;
    let sent: Vec<Sent> = futures_util::stream::iter(rows)
        .map(|row| Sent::of(world, row))
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let audit = world.audit().await;
    let log = world.stack.broker.log().unwrap();
    let refusals: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("was not authenticated"))
        .collect();
    let metrics = world.metrics().await;
    let server_log = world.stack.postgres.log().unwrap();
    let mut complaints: Vec<String> = Vec::new();
    for one in &sent {
        let name = format!("{}: {}", one.row.rule, one.row.name);
        let mut left = left_over(one, &audit, &refusals);
        left.extend(heard_of(one, &server_log));
        complaints.extend(one.complaints.iter().chain(&left).map(|what| format!("{name}: {what}")));
    }
    let mut counted: BTreeMap<&str, u64> = BTreeMap::new();
    for reason in sent
        .iter()
        .flat_map(|one| &one.row.expected)
        .filter_map(|one| one.reason)
    {
        *counted.entry(reason.code()).or_default() += 1;
    }
    for (reason, at_least) in counted {
        let prefix = format!("kdbt_authentication_failures_total{{reason=\"{reason}\"}} ");
        let value = metrics
            .lines()
            .find_map(|line| line.strip_prefix(&prefix)?.parse::<u64>().ok());
        if value.is_none_or(|value| value < at_least) {
            complaints.push(format!("the metric counts {value:?} of {reason}, sent were {at_least}"));
        }
    }
    complaints.extend(leaked(world, &sent, &audit, &log, &metrics));
    assert!(
        complaints.is_empty(),
        "{} complaints:\n{}",
        complaints.len(),
        complaints.join("\n")
    );
}

/// What was booked, denied and logged for a row, where it is not what its answers say.
fn left_over(one: &Sent, audit: &[Value], refusals: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    let mine = |action: &str| {
        let is_mine = |event: &&Value| {
            event["action"] == action && event["actor"]["identity"]["display_name"] == one.person.as_str()
        };
        audit.iter().filter(is_mine).count()
    };
    let booked = mine("lease-booked");
    if booked != one.row.leases() {
        found.push(format!("{booked} leases were booked, expected {}", one.row.leases()));
    }
    let denied = one
        .row
        .expected
        .iter()
        .filter(|one| one.code == Some("policy-denied"))
        .count();
    if mine("denied") != denied {
        found.push(format!("{} denials were audited, expected {denied}", mine("denied")));
    }
    for (expected, answer) in one.row.expected.iter().zip(&one.answers) {
        let (Some(reason), Some(id)) = (expected.reason, answer.header("x-request-id")) else {
            continue;
        };
        let told = format!("reason=\"{}\"", reason.code());
        if !refusals.iter().any(|line| line.contains(id) && line.contains(&told)) {
            found.push(format!("the log does not say {told} for {id}"));
        }
    }
    found
}

/// What the server was told of a row that is refused, beyond the user of its honest order.
fn heard_of(one: &Sent, server_log: &str) -> Option<String> {
    let told = |n: u8| server_log.contains(&format!("CREATE ROLE \"kdbt_{}_{n}\"", one.person));
    match (one.row.is_refusal(), told(0), told(1)) {
        (true, false, _) => Some("the server's log does not name the honest order's user".to_owned()),
        (true, _, true) => Some("the server was told to make a user".to_owned()),
        _ => None,
    }
}

/// Every place but the holder's own answer that shows a secret.
fn leaked(world: &World, sent: &[Sent], audit: &[Value], log: &str, metrics: &str) -> Vec<String> {
    let mut secrets = Secrets::default();
    for one in sent {
        secrets.add(canary(&one.person));
        one.tokens.iter().for_each(|token| secrets.add_token(token));
    }
    secrets.add(requests::VERIFIER);
    secrets.add(requests::CANARY);
    let mut found = Vec::new();
    for answer in sent.iter().flat_map(|one| &one.answers) {
        if let Some(seen) = secrets.found_in(answer.text().as_bytes()) {
            found.push(format!("an answer holds a secret: {seen}"));
        }
    }
    secrets.add(world.stack.broker.password());
    for password in sent.iter().flat_map(|one| &one.answers).map(Answer::json) {
        secrets.add(password["secret"]["password"].as_str().unwrap_or_default());
    }
    let audit = serde_json::to_vec(audit).unwrap();
    let mut places = vec![
        ("the log".to_owned(), log.as_bytes().to_vec()),
        ("the audit".to_owned(), audit),
        ("the metrics".to_owned(), metrics.as_bytes().to_vec()),
    ];
    let folder = world.stack.broker.store_file().parent().unwrap().to_owned();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("kdbt.db") {
            places.push((name, fs::read(entry.path()).unwrap_or_default()));
        }
    }
    for (place, bytes) in &places {
        if let Some(seen) = secrets.found_in(bytes) {
            found.push(format!("{place} holds a secret: {seen}"));
        }
    }
    if log.contains("a panic") || log.contains("panicked at") {
        found.push("a panic is in the log".to_owned());
    }
    found
}
