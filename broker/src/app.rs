//! Wires the broker: the only file that names adapters. What starts here stops here, in the opposite order.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwapOption;
use kdbt_api::Timestamp;
use kdbt_api::lease::{ClientConfig, ClientIssuer, SslMode};
use kdbt_api::name::ServerName;
use secrecy::{ExposeSecret as _, SecretSlice, SecretString};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::RwLock;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::audit::{Actor, AuditEvent, chain::AuditKey};
use crate::broker::{Broker, HouseRules};
use crate::clock::{SharedClock, system_clock};
use crate::config::{self, Config, Protection};
use crate::failpoint::{self, Point};
use crate::http::{self, Http, Parts, TrustedProxies};
use crate::identity::Authenticator;
use crate::metrics::Metrics;
use crate::policy::{IssuerFacts, PolicySet};
use crate::reaper::Reaper;
use crate::scan::Scanner;
use crate::server::{PublicAddress, Server};
use crate::store::sqlite::{SqliteOptions, SqliteStore};
use crate::store::{LeaseStore, Limits};
use crate::warehouse::Warehouse;
use crate::warehouse::postgres::{PostgresConfig, PostgresWarehouse, Tls};
use crate::warehouse::snowflake::{SnowflakeConfig, SnowflakeWarehouse};

/// How often the catalog of a PostgreSQL server is compared with the store.
const SWEEP_EVERY: Duration = Duration::from_secs(10);

/// The same for a Snowflake account, where a look costs a call over the internet.
const SWEEP_ACCOUNT_EVERY: Duration = Duration::from_mins(1);

/// How often numbers that nobody pushes are read for the metrics.
const METRICS_EVERY: Duration = Duration::from_secs(5);

/// How often the audit's head goes to the log, so that a cut tail shows (S21).
const HEAD_EVERY: Duration = Duration::from_hours(1);

/// For how long the listeners may take beyond the drain time of the requests.
const FRONT_GRACE: Duration = Duration::from_secs(5);

/// For how long the reaper's step and the lanes may go on after the requests are done.
const LAST_STEP: Duration = Duration::from_secs(30);

/// Leases that ended longer ago are forgotten by the store; the audit keeps them.
const ENDED_KEPT: Duration = Duration::from_hours(24 * 90);

/// Runs the broker until the first signal, and stops it in order. A second signal ends the wait.
pub async fn serve(config: Config) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let clock = system_clock();
    let running = Running::start(config, clock).await?;
    running.until_stopped(&mut signals).await?;
    tokio::select! {
        done = running.stop() => done,
        () = signals.stop() => anyhow::bail!("a second signal: leaving what still runs to the next start"),
    }
}

/// The signals that the broker listens to.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Everything that runs.
struct Running {
    broker: Arc<Broker>,
    store: Arc<SqliteStore>,
    policies: Policies,
    tls: Option<Arc<http::Tls>>,
    /// The listeners, and issuers' key refresh: first to stop.
    front: Stage,
    /// Use cases whose callers may be gone.
    use_cases: TaskTracker,
    /// The reapers and the metrics: next.
    reapers: Stage,
    /// The warehouses' lanes: last but the store.
    lanes: Stage,
    /// Cancelled by a task that ended by itself.
    failed: CancellationToken,
    /// How long requests that are under way may go on.
    drain: Duration,
}

/// Tasks that stop together.
#[derive(Clone, Default)]
struct Stage {
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Stage {
    /// Starts a task that must not end by itself: if it does, the process ends, loudly.
    fn run(&self, name: &'static str, failed: &CancellationToken, task: impl Future<Output = ()> + Send + 'static) {
        let (stop, failed) = (self.stop.clone(), failed.clone());
        let guard = failed.drop_guard();
        self.tasks.spawn(async move {
            task.await;
            if stop.is_cancelled() {
                guard.disarm();
            } else {
                tracing::error!(task = name, "a task ended by itself");
            }
        });
    }

    async fn finish(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// The same, for so long at most. What still runs then must not keep the later stages from stopping.
    async fn finish_within(&self, limit: Duration) {
        if tokio::time::timeout(limit, self.finish()).await.is_err() {
            tracing::error!(tasks = self.tasks.len(), "tasks that should have stopped still run");
        }
    }
}

impl Running {
    async fn start(config: Config, clock: SharedClock) -> anyhow::Result<Self> {
        let (front, reapers, lanes) = (Stage::default(), Stage::default(), Stage::default());
        let failed = CancellationToken::new();
        let metrics = Arc::new(Metrics::new(env!("CARGO_PKG_VERSION")));
        failpoint::at(Point::StartConfigured).await;
        let store = Arc::new(open_store(&config, clock.clone()).await?);
        failpoint::at(Point::StartOpened).await;
        let leases: Arc<dyn LeaseStore> = store.clone();
        let issuers = config.issuers.iter().map(|issuer| issuer.tokens.clone()).collect();
        let authenticator = Authenticator::new(issuers, clock.clone(), &front.tasks, &front.stop)?;
        let servers = servers(&config, &lanes, &clock)?;
        let broker = Arc::new(Broker {
            store: leases.clone(),
            servers,
            policies: ArcSwapOption::empty(),
            policy_gate: RwLock::default(),
            bookings: RwLock::default(),
            authenticator: authenticator.clone(),
            clock: clock.clone(),
            rules: house_rules(&config),
            renewing: Mutex::default(),
            denials: Mutex::new((clock.now(), 0)),
        });
        let policies = Policies {
            folder: config.policies.clone(),
            issuers: config.issuer_facts(),
        };
        if let Err(error) = policies.activate(&broker).await {
            // Refuse to issue, keep reaping: users that are there must end whatever the policy is.
            tracing::error!("no policy is active, nothing is issued:\n{error:#}");
        }
        for server in broker.servers.values() {
            let reaper = Reaper {
                store: leases.clone(),
                server: server.clone(),
                clock: clock.clone(),
                metrics: metrics.clone(),
            };
            reapers.run("reaper", &failed, reaper.run(reapers.stop.clone()));
            let scanner = Scanner {
                broker: broker.clone(),
                server: server.clone(),
                metrics: metrics.clone(),
                every: config.scan.every,
                approved: config.scan.approved.clone(),
            };
            reapers.run("scanner", &failed, scanner.run(reapers.stop.clone()));
        }
        reapers.run(
            "metrics",
            &failed,
            watch(broker.clone(), store.clone(), metrics.clone(), reapers.stop.clone()),
        );

        let use_cases = TaskTracker::new();
        let (tls, trusted) = protection(&config)?;
        let limits = http::Limits {
            requests: usize::try_from(config.limits.requests)?,
            request_time: config.limits.request_time,
            drain_time: config.shutdown,
            ..http::Limits::default()
        };
        let http = Http::new(Parts {
            service: broker.clone(),
            authenticator: Arc::new(authenticator),
            metrics,
            tasks: use_cases.clone(),
            public_url: config.public_url.clone(),
            trusted_proxies: trusted,
            limits: limits.clone(),
        });
        let address = config.listen.address;
        let api = http::Server::bind(address, http.router(), tls.clone(), limits.clone()).await;
        let api = api.with_context(|| format!("cannot listen on {address}"))?;
        let management = http::Server::bind(config.management, http.management_router(), None, limits).await;
        let management = management.with_context(|| format!("cannot listen on {}", config.management))?;
        tracing::info!(
            api = %api.local_addr()?,
            management = %management.local_addr()?,
            installation = %config.installation,
            version = env!("CARGO_PKG_VERSION"),
            "listening"
        );
        failpoint::at(Point::StartListening).await;
        front.run("api", &failed, api.serve(front.stop.clone()));
        front.run("management", &failed, management.serve(front.stop.clone()));
        Ok(Self {
            broker,
            store,
            policies,
            tls,
            front,
            use_cases,
            reapers,
            lanes,
            failed,
            drain: config.shutdown,
        })
    }

    /// Until a signal says stop, reloading policies and the TLS pair whenever one says so.
    async fn until_stopped(&self, signals: &mut Signals) -> anyhow::Result<()> {
        loop {
            tokio::select! {
                () = self.failed.cancelled() => anyhow::bail!("a task that must not end has ended"),
                _ = signals.terminate.recv() => return Ok(()),
                _ = signals.interrupt.recv() => return Ok(()),
                _ = signals.hangup.recv() => self.reload().await,
            }
        }
    }

    async fn reload(&self) {
        if let Err(error) = self.policies.activate(&self.broker).await {
            tracing::error!("the running policy stays:\n{error:#}");
        }
        if let Some(Err(error)) = self.tls.as_ref().map(|tls| tls.reload()) {
            let error: &dyn std::error::Error = &error;
            tracing::error!(error, "the running TLS certificate stays");
        }
    }

    /// Requests first, then the reapers after their current step, then the lanes, the store last.
    async fn stop(self) -> anyhow::Result<()> {
        tracing::info!("stopping");
        self.front.finish_within(self.drain + FRONT_GRACE).await;
        self.use_cases.close();
        let rest = async {
            self.use_cases.wait().await;
            self.reapers.finish().await;
            self.lanes.finish().await;
        };
        tokio::time::timeout(LAST_STEP, rest)
            .await
            .context("the last steps did not finish in time")?;
        if tokio::time::timeout(LAST_STEP, log_head(&self.store)).await.is_err() {
            tracing::error!("the audit head could not be read in time");
        }
        tracing::info!("stopped");
        Ok(())
    }
}

async fn open_store(config: &Config, clock: SharedClock) -> anyhow::Result<SqliteStore> {
    let mut options = SqliteOptions::new(config.installation.clone());
    options.audit_key = audit_key(config)?;
    let path = config.store.clone();
    let opened = tokio::task::spawn_blocking(move || SqliteStore::open(&path, options, clock)).await?;
    opened.context("the store cannot be opened")
}

/// The key of the audit chain, if one is configured.
pub fn audit_key(config: &Config) -> anyhow::Result<Option<AuditKey>> {
    let bytes = |key: &SecretString| SecretSlice::from(key.expose_secret().as_bytes().to_vec());
    let key = config.audit_key.as_ref().map(|key| AuditKey::new(&bytes(key)));
    key.transpose().context("audit.key")
}

/// The driver's settings of one server.
#[must_use]
pub fn postgres(config: &Config, name: &ServerName, server: &config::PostgresServer) -> PostgresConfig {
    let connect = &server.connect;
    let password = connect.password.clone().unwrap_or_else(|| SecretString::from(""));
    let mut settings = PostgresConfig::new(
        name.clone(),
        config.installation.clone(),
        connect.host.clone(),
        connect.user.clone(),
        password,
    );
    settings.port = connect.port;
    settings.database = connect.database.to_string();
    settings.accept_createrole = server.accept_createrole;
    settings.leases_per_target = config.limits.leases_per_target;
    if server.insecure_transport {
        settings.tls = Tls::Plain;
    } else {
        settings.tls = Tls::VerifyFull {
            ca_pem: connect.ca_pem.clone(),
        };
    }
    settings
}

/// The driver of one account.
pub fn snowflake(
    config: &Config,
    name: &ServerName,
    server: &config::SnowflakeServer,
    clock: SharedClock,
) -> anyhow::Result<SnowflakeWarehouse> {
    let connect = &server.connect;
    // Neither text is quoted by its error: the configuration's lines never are.
    let account = connect.account.parse().ok().context("`connect.account`")?;
    let mut settings = SnowflakeConfig::new(
        name.clone(),
        config.installation.clone(),
        account,
        connect.user.clone(),
        connect.role.to_string(),
        connect.private_key.secret().clone(),
    );
    settings.base_url.clone_from(&connect.base_url);
    settings.ca_pem.clone_from(&connect.ca_pem);
    settings.hard_expiry = server.hard_expiry;
    settings.issue_calls = server.calls.into();
    if let Some(policy) = &server.session_policy {
        settings.session_policy = Some(policy.parse().context("`session_policy`")?);
    }
    Ok(SnowflakeWarehouse::new(settings, clock)?)
}

fn servers(config: &Config, lanes: &Stage, clock: &SharedClock) -> anyhow::Result<BTreeMap<ServerName, Arc<Server>>> {
    let one = |(name, server): (&ServerName, &config::Server)| {
        let (warehouse, public, sweep_every): (Arc<dyn Warehouse>, _, _) = match server {
            config::Server::Postgres(server) => {
                let settings = postgres(config, name, server);
                let warehouse = PostgresWarehouse::new(settings, &lanes.tasks, lanes.stop.clone());
                let public = PublicAddress::Postgres {
                    host: server.public.host.clone(),
                    port: server.public.port,
                    sslmode: if server.insecure_transport {
                        SslMode::Disable
                    } else {
                        SslMode::VerifyFull
                    },
                    ca_pem: server.public.ca_pem.clone(),
                };
                (Arc::new(warehouse), public, SWEEP_EVERY)
            }
            config::Server::Snowflake(server) => {
                let warehouse = snowflake(config, name, server, clock.clone());
                let public = PublicAddress::Snowflake {
                    account: server.public_account.clone(),
                    address: server.public_address.clone(),
                };
                let warehouse = warehouse.with_context(|| format!("server `{name}`"))?;
                (Arc::new(warehouse), public, SWEEP_ACCOUNT_EVERY)
            }
        };
        let server = Server::new(name.clone(), warehouse, public, sweep_every, clock.clone());
        Ok((name.clone(), Arc::new(server)))
    };
    config.servers.iter().map(one).collect()
}

fn house_rules(config: &Config) -> HouseRules {
    let issuer = |issuer: &config::Issuer| ClientIssuer {
        issuer: issuer.tokens.issuer.clone(),
        client_id: issuer.client_id.clone(),
        audiences: issuer.tokens.audiences.clone(),
        scopes: issuer.scopes.clone(),
    };
    HouseRules {
        admins: config.admins.clone(),
        limits: Limits {
            per_person: u16::try_from(config.limits.leases_per_person).unwrap_or(u16::MAX),
            per_rule: config.limits.leases_per_rule,
            per_target: config.limits.leases_per_target,
        },
        broker_made_secrets: config.broker_made_secrets,
        iterations: config.scram_iterations,
        client_config: ClientConfig {
            installation: config.installation.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            issuers: config.issuers.iter().map(issuer).collect(),
            scram_iterations: config.scram_iterations.count().get(),
        },
    }
}

fn protection(config: &Config) -> anyhow::Result<(Option<Arc<http::Tls>>, TrustedProxies)> {
    match &config.listen.protection {
        Protection::Tls { cert, key } => {
            let tls = http::Tls::load(cert.clone(), key.clone())?;
            Ok((Some(Arc::new(tls)), TrustedProxies::default()))
        }
        Protection::BehindProxy { trusted } => {
            let networks = trusted.iter().map(|address| http::Network::from(*address)).collect();
            Ok((None, TrustedProxies::new(networks)))
        }
        Protection::Loopback => Ok((None, TrustedProxies::default())),
    }
}

/// Where the policies are, and what they may read.
struct Policies {
    folder: PathBuf,
    issuers: Vec<IssuerFacts>,
}

impl Policies {
    /// Loads, checks and swaps in the policies, or leaves the running ones as they are.
    async fn activate(&self, broker: &Broker) -> anyhow::Result<()> {
        let (folder, issuers) = (self.folder.clone(), self.issuers.clone());
        let loaded = tokio::task::spawn_blocking(move || PolicySet::load(&folder, &issuers)).await?;
        let loaded = loaded.map_err(|mistakes| anyhow::anyhow!("{mistakes}"))?;
        for warning in loaded.warnings {
            tracing::warn!("{warning}");
        }
        let set = Arc::new(loaded.set);
        let servers = broker.servers.values();
        let engines = servers
            .map(|server| (server.name.clone(), server.public.engine()))
            .collect();
        set.check_servers(&engines)
            .map_err(|mistakes| anyhow::anyhow!("{mistakes}"))?;
        let hash = set.hash().to_string();
        failpoint::at(Point::PolicyLoaded).await;
        // What stands in the audit after this row was given by this policy.
        let _alone = broker.policy_gate.write().await;
        broker.store.audit(activated(broker.clock.now(), &hash)).await?;
        failpoint::at(Point::PolicyRecorded).await;
        broker.policies.store(Some(set));
        failpoint::at(Point::PolicyActive).await;
        tracing::info!(policy = hash, "policy activated");
        Ok(())
    }
}

fn activated(at: Timestamp, hash: &str) -> AuditEvent {
    AuditEvent {
        at,
        action: "policy-activated".into(),
        actor: Actor::Operator,
        lease: None,
        username: None,
        server: None,
        target: None,
        details: [("policy".to_owned(), hash.into())].into_iter().collect(),
    }
}

/// Reads what nobody pushes: lease counts, server health, the audit's head. Forgets what ended long ago.
async fn watch(broker: Arc<Broker>, store: Arc<SqliteStore>, metrics: Arc<Metrics>, stop: CancellationToken) {
    let mut head_logged = broker.clock.elapsed();
    while stop
        .run_until_cancelled(tokio::time::sleep(METRICS_EVERY))
        .await
        .is_some()
    {
        match broker.store.health().await {
            Ok(health) => {
                metrics.leases(&health.live);
                if let Some((number, hash)) = &health.audit_head {
                    metrics.audit_head(*number, hash);
                }
            }
            Err(error) => tracing::error!(error = &error as &dyn std::error::Error, "the store is not well"),
        }
        for (name, server) in &broker.servers {
            metrics.issuing_stopped(name, server.may_issue().is_err());
        }
        if broker.clock.elapsed().saturating_sub(head_logged) >= HEAD_EVERY {
            head_logged = broker.clock.elapsed();
            log_head(&store).await;
            failpoint::at(Point::PurgeDue).await;
            let now = broker.clock.now();
            let forget = store.purge_all(now - ENDED_KEPT, now);
            if let Some(Err(error)) = stop.run_until_cancelled(forget).await {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "old leases could not be forgotten"
                );
            }
            failpoint::at(Point::PurgeDone).await;
        }
    }
}

async fn log_head(store: &SqliteStore) {
    match store.audit_head().await {
        Ok(head) => tracing::info!("audit head {}:{}", head.row, head.hash),
        Err(error) => tracing::error!(
            error = &error as &dyn std::error::Error,
            "the audit head cannot be read"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_does_not_stop_holds_up_the_next_stage_for_its_limit_only() {
        let stage = Stage::default();
        stage.run("deaf", &CancellationToken::new(), std::future::pending());
        let stopped = stage.finish_within(Duration::from_millis(20));
        assert!(tokio::time::timeout(Duration::from_secs(5), stopped).await.is_ok());
        assert_eq!(stage.tasks.len(), 1, "it still runs");
    }
}
