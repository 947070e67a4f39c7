//! What operators watch, in the text form of Prometheus. Labels are bounded: never a person, a user name or a lease.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kdbt_api::lease::LeaseStatus;
use kdbt_api::name::ServerName;
use kdbt_api::problem::ProblemCode;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use tokio::time::Instant;

/// Seconds; a lease takes a few milliseconds, a request is cut at 30 s.
const DURATION_BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 10.0, 30.0];

type Labels<const N: usize> = [(&'static str, String); N];
type Seconds = Gauge<f64, AtomicU64>;

/// All metrics of the broker. Shared by reference; an update is cheap and cannot fail.
pub struct Metrics {
    registry: Registry,
    requests: Family<Labels<3>, Counter>,
    durations: Family<Labels<2>, Histogram, fn() -> Histogram>,
    authentication_failures: Family<Labels<1>, Counter>,
    issues: Family<Labels<1>, Counter>,
    leases: Family<Labels<2>, Gauge>,
    sweep_age: Family<Labels<1>, Seconds>,
    clock_offset: Family<Labels<1>, Seconds>,
    issuing_stopped: Family<Labels<1>, Gauge>,
    unreadable_leases: Family<Labels<1>, Gauge>,
    audit_head: Family<Labels<1>, Gauge>,
    residue: Family<Labels<1>, Gauge>,
    scan_age: Family<Labels<1>, Seconds>,
    /// When each server was last scanned for residue in full.
    scanned: Mutex<BTreeMap<ServerName, Instant>>,
    /// When each server was last swept in full; ages are worked out when somebody asks.
    swept: Mutex<BTreeMap<ServerName, Instant>>,
}

impl Metrics {
    /// No events yet, by a broker of this version.
    #[must_use]
    pub fn new(version: &str) -> Self {
        let durations: fn() -> Histogram = || Histogram::new(DURATION_BUCKETS);
        let mut metrics = Self {
            registry: Registry::with_prefix("kdbt"),
            requests: Family::default(),
            durations: Family::new_with_constructor(durations),
            authentication_failures: Family::default(),
            issues: Family::default(),
            leases: Family::default(),
            sweep_age: Family::default(),
            clock_offset: Family::default(),
            issuing_stopped: Family::default(),
            unreadable_leases: Family::default(),
            audit_head: Family::default(),
            residue: Family::default(),
            scan_age: Family::default(),
            scanned: Mutex::default(),
            swept: Mutex::default(),
        };
        metrics.register(version);
        metrics
    }

    fn register(&mut self, version: &str) {
        let to = &mut self.registry;
        to.register(
            "build",
            "The broker's version",
            Info::new([("version", version.to_owned())]),
        );
        to.register("http_requests", "Answered requests", self.requests.clone());
        to.register(
            "http_request_duration_seconds",
            "Time from request to answer",
            self.durations.clone(),
        );
        let help = "Requests that no token rule let through, by the rule's code";
        to.register("authentication_failures", help, self.authentication_failures.clone());
        let help = "Orders by outcome: issued, replayed, or the code of the problem";
        to.register("issues", help, self.issues.clone());
        to.register(
            "leases",
            "Leases that have not ended, by server and state",
            self.leases.clone(),
        );
        let help = "Time since the last complete sweep of the server";
        to.register("sweep_age_seconds", help, self.sweep_age.clone());
        let help = "The server's clock minus the broker's, as of the last sweep";
        to.register("clock_offset_seconds", help, self.clock_offset.clone());
        let help = "1 while no leases are issued on the server because ending is unhealthy there";
        to.register("issuing_stopped", help, self.issuing_stopped.clone());
        let help = "Leases of the server whose row in the store cannot be read, as of the last sweep";
        to.register("store_unreadable_leases", help, self.unreadable_leases.clone());
        let help = "The number of the last audit row; keep it elsewhere to find a cut tail";
        to.register("audit_head", help, self.audit_head.clone());
        let help = "What leases left behind besides data and nobody has approved, and protections that are lost";
        to.register("residue_findings", help, self.residue.clone());
        let help = "Time since the last complete scan of the server for residue";
        to.register("scan_age_seconds", help, self.scan_age.clone());
    }

    /// A request was answered. `route` is the template, never the path.
    pub fn request(&self, route: &str, method: &'static str, status: u16, took: Duration) {
        let route = || ("route", route.to_owned());
        let method = || ("method", method.to_owned());
        self.requests
            .get_or_create(&[route(), method(), ("status", status.to_string())])
            .inc();
        self.durations
            .get_or_create(&[route(), method()])
            .observe(took.as_secs_f64());
    }

    /// A request was not authenticated, for this stable reason.
    pub fn authentication_failed(&self, reason: &'static str) {
        self.authentication_failures
            .get_or_create(&[("reason", reason.to_owned())])
            .inc();
    }

    /// An order came to its end.
    pub fn issue(&self, outcome: IssueOutcome) {
        self.issues
            .get_or_create(&[("outcome", outcome.as_str().to_owned())])
            .inc();
    }

    /// How many leases stand where, as the store counts them. What is not named has none.
    pub fn leases(&self, live: &[(ServerName, LeaseStatus, u64)]) {
        self.leases.clear();
        for (server, status, count) in live {
            let labels = [("server", server.to_string()), ("state", state(*status).to_owned())];
            self.leases
                .get_or_create(&labels)
                .set(i64::try_from(*count).unwrap_or(i64::MAX));
        }
    }

    /// The server was swept in full just now, and its clock ran this much ahead of ours.
    pub fn swept(&self, server: &ServerName, clock_offset_millis: i64) {
        self.sweep_ended(server, Instant::now());
        #[expect(
            clippy::cast_precision_loss,
            reason = "an offset that large is an alarm at any precision"
        )]
        let seconds = clock_offset_millis as f64 / 1000.0;
        self.clock_offset.get_or_create(&of(server)).set(seconds);
    }

    fn sweep_ended(&self, server: &ServerName, at: Instant) {
        locked(&self.swept).insert(server.clone(), at);
    }

    /// The server was scanned for residue in full just now, with so many findings.
    pub fn scanned(&self, server: &ServerName, findings: usize) {
        locked(&self.scanned).insert(server.clone(), Instant::now());
        let findings = i64::try_from(findings).unwrap_or(i64::MAX);
        self.residue.get_or_create(&of(server)).set(findings);
    }

    /// Issuing on the server is stopped, or goes on again.
    pub fn issuing_stopped(&self, server: &ServerName, stopped: bool) {
        self.issuing_stopped.get_or_create(&of(server)).set(stopped.into());
    }

    /// How many leases of the server the store has and cannot read.
    pub fn unreadable_leases(&self, server: &ServerName, count: usize) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.unreadable_leases.get_or_create(&of(server)).set(count);
    }

    /// The head of the audit chain. One series at a time; meant for once an hour.
    pub fn audit_head(&self, number: i64, hash: &str) {
        self.audit_head.clear();
        self.audit_head.get_or_create(&[("hash", hash.to_owned())]).set(number);
    }

    /// The text that Prometheus reads.
    #[must_use]
    pub fn render(&self) -> String {
        self.render_at(Instant::now())
    }

    fn render_at(&self, now: Instant) -> String {
        for (last, ages) in [(&self.swept, &self.sweep_age), (&self.scanned, &self.scan_age)] {
            for (server, at) in locked(last).iter() {
                let age = now.saturating_duration_since(*at);
                ages.get_or_create(&of(server)).set(age.as_secs_f64());
            }
        }
        let mut text = String::new();
        // Writing into a `String` fails only if an encoder of the library does; half a page beats none.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

fn locked(times: &Mutex<BTreeMap<ServerName, Instant>>) -> MutexGuard<'_, BTreeMap<ServerName, Instant>> {
    times.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics(..)")
    }
}

fn of(server: &ServerName) -> Labels<1> {
    [("server", server.to_string())]
}

fn state(status: LeaseStatus) -> &'static str {
    match status {
        LeaseStatus::Provisioning => "provisioning",
        LeaseStatus::Active => "active",
        LeaseStatus::Ending => "ending",
        LeaseStatus::Quarantined => "quarantined",
        LeaseStatus::Ended => "ended",
    }
}

/// What became of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IssueOutcome {
    /// A new lease.
    Issued,
    /// The lease that the idempotency key stands for.
    Replayed,
    /// None, for this reason.
    Refused(ProblemCode),
}

impl IssueOutcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Issued => "issued",
            Self::Replayed => "replayed",
            Self::Refused(code) => code.as_str(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(name: &str) -> ServerName {
        name.parse().unwrap()
    }

    #[test]
    fn every_update_shows_in_the_text() {
        let metrics = Metrics::new("0.1.0");
        metrics.request("/v1/leases/{id}", "GET", 200, Duration::from_millis(3));
        metrics.authentication_failed("expired");
        metrics.issue(IssueOutcome::Issued);
        metrics.issue(IssueOutcome::Refused(ProblemCode::PolicyDenied));
        metrics.leases(&[(server("dwh"), LeaseStatus::Quarantined, 2)]);
        metrics.swept(&server("dwh"), -250);
        metrics.issuing_stopped(&server("dwh"), true);
        metrics.unreadable_leases(&server("dwh"), 2);
        metrics.audit_head(41, "ab");
        metrics.audit_head(42, "cd");
        metrics.scanned(&server("dwh"), 3);
        let text = metrics.render();
        for line in [
            r#"kdbt_build_info{version="0.1.0"} 1"#,
            r#"kdbt_http_requests_total{route="/v1/leases/{id}",method="GET",status="200"} 1"#,
            r#"kdbt_http_request_duration_seconds_count{route="/v1/leases/{id}",method="GET"} 1"#,
            r#"kdbt_authentication_failures_total{reason="expired"} 1"#,
            r#"kdbt_issues_total{outcome="issued"} 1"#,
            r#"kdbt_issues_total{outcome="policy-denied"} 1"#,
            r#"kdbt_leases{server="dwh",state="quarantined"} 2"#,
            r#"kdbt_clock_offset_seconds{server="dwh"} -0.25"#,
            r#"kdbt_issuing_stopped{server="dwh"} 1"#,
            r#"kdbt_store_unreadable_leases{server="dwh"} 2"#,
            r#"kdbt_audit_head{hash="cd"} 42"#,
            r#"kdbt_residue_findings{server="dwh"} 3"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        assert!(!text.contains(r#"hash="ab""#), "an old head stays as a series");
    }

    #[test]
    fn a_state_without_leases_has_no_stale_number() {
        let metrics = Metrics::new("0.1.0");
        metrics.leases(&[(server("dwh"), LeaseStatus::Active, 3)]);
        metrics.leases(&[]);
        assert!(!metrics.render().contains("kdbt_leases{"));
    }

    #[test]
    fn the_age_of_a_sweep_grows_until_the_next_one() {
        let metrics = Metrics::new("0.1.0");
        let start = Instant::now();
        metrics.sweep_ended(&server("dwh"), start);
        let later = metrics.render_at(start + Duration::from_secs(90));
        assert!(
            later.contains(r#"kdbt_sweep_age_seconds{server="dwh"} 90.0"#),
            "{later}"
        );
        metrics.sweep_ended(&server("dwh"), start + Duration::from_secs(90));
        let now = metrics.render_at(start + Duration::from_secs(90));
        assert!(now.contains(r#"kdbt_sweep_age_seconds{server="dwh"} 0.0"#), "{now}");
    }
}
