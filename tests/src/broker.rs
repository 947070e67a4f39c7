//! The real `kdbt-broker`: its configuration in a folder of its own, its log in a file, its process to signal, kill and restart.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rand::RngExt;
use rustix::process::Signal;

use crate::binaries;
use crate::postgres::{PgVersion, Postgres};
use crate::watchdog::{Watchdog, Watched};

/// The server that the policies of demo and tests name.
pub const SERVER: &str = "dwh";
/// The broker's login there.
pub const LOGIN: &str = "kdbt__login_1";

/// What a broker is started with.
#[derive(Debug, Clone)]
pub struct BrokerOptions {
    /// The folder of the policies, which are copied.
    pub policies: PathBuf,
    /// Its installation.
    pub installation: String,
    /// `RUST_LOG`.
    pub log: String,
    /// More issuers, as items of the configuration's list.
    pub issuers: String,
    /// More servers, as entries of the configuration's map.
    pub servers: String,
    /// Files beside the configuration: their names and texts, readable by their owner only.
    pub files: Vec<(String, String)>,
    /// More lines of its configuration.
    pub more: String,
    /// The port at which it dials its server, if something stands in between.
    pub dials: Option<u16>,
    /// The program, if not the one that was built just now.
    pub program: Option<PathBuf>,
}

impl BrokerOptions {
    /// With these policies.
    pub fn new(policies: impl Into<PathBuf>) -> Self {
        Self {
            policies: policies.into(),
            installation: "demo".to_owned(),
            log: "info".to_owned(),
            issuers: String::new(),
            servers: String::new(),
            files: Vec::new(),
            more: String::new(),
            dials: None,
            program: None,
        }
    }
}

/// A broker of our own. Dropping it kills it and removes its folder.
#[derive(Debug)]
pub struct Broker {
    /// None while it does not run.
    process: Option<Watchdog>,
    folder: PathBuf,
    port: u16,
    management_port: u16,
    log: String,
    program: PathBuf,
    password: String,
    http: reqwest::Client,
}

impl Broker {
    /// Writes its configuration, and starts nothing: the server may still need the bootstrap that is made from it.
    pub fn prepare(options: &BrokerOptions, postgres: &Postgres, issuer: &str) -> Result<Self> {
        let server = postgres_server(postgres, options.dials);
        Self::write(options, &server, issuer, random_password())
    }

    /// The same with no server but those of the options.
    pub fn prepare_alone(options: &BrokerOptions, issuer: &str) -> Result<Self> {
        Self::write(options, "", issuer, random_password())
    }

    /// Another one with the same login at the server, and a folder, a store and ports of its own.
    pub fn beside(&self, options: &BrokerOptions, postgres: &Postgres, issuer: &str) -> Result<Self> {
        let server = postgres_server(postgres, options.dials);
        Self::write(options, &server, issuer, self.password.clone())
    }

    fn write(options: &BrokerOptions, server: &str, issuer: &str, password: String) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("kdbt-broker-").tempdir()?;
        copy(&options.policies, &folder.path().join("policies"))?;
        let (port, management_port) = free_ports()?;
        let secret = folder.path().join("dwh.password");
        private(&secret, &password)?;
        for (name, text) in &options.files {
            private(&folder.path().join(name), text)?;
        }
        let text = configuration(options, server, issuer, port, management_port);
        fs::write(folder.path().join("broker.yaml"), text)?;
        let http = reqwest::Client::builder()
            .timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(0)
            .build()?;
        Ok(Self {
            process: None,
            // From here on the watchdog removes it, or else our own end.
            folder: folder.keep(),
            port,
            management_port,
            log: options.log.clone(),
            program: options
                .program
                .clone()
                .unwrap_or_else(|| binaries::broker_bin().clone()),
            password,
            http,
        })
    }

    /// Starts it and waits until it takes requests.
    pub async fn start(&mut self) -> Result<()> {
        self.spawn()?;
        self.wait_until_ready().await
    }

    /// Starts it and does not wait.
    pub fn spawn(&mut self) -> Result<()> {
        let mut command = self.command(&["serve"])?;
        command
            .env("RUST_LOG", &self.log)
            .env("KDBT_TESTKIT_FAILPOINTS", self.failpoints_file());
        let log = self.log_file();
        let watched = Watched {
            stop_signal: "TERM",
            log: &log,
            folder: &self.folder,
        };
        self.process = Some(Watchdog::start(&command, &watched)?);
        Ok(())
    }

    /// Waits until it takes requests and may issue on its server, for half a minute at most.
    pub async fn wait_until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if self.is_ready().await {
                return Ok(());
            }
            let ended = match &mut self.process {
                Some(process) => process.ended()?.map(|status| status.to_string()),
                None => Some("not started".to_owned()),
            };
            if ended.is_some() || Instant::now() > deadline {
                bail!(
                    "the broker is not ready ({}). Its log:\n{}",
                    ended.unwrap_or_else(|| "half a minute has passed".to_owned()),
                    self.log_tail(40)
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Whether it takes requests, and every check of its own is fine.
    async fn is_ready(&self) -> bool {
        let detail = async {
            let answer = self
                .http
                .get(format!("{}/readyz", self.management_url()))
                .send()
                .await?;
            answer.error_for_status()?.json::<serde_json::Value>().await
        };
        let fine = |check: &serde_json::Value| check["ok"] == true;
        let checks = detail
            .await
            .ok()
            .and_then(|detail| detail["checks"].as_array().cloned());
        checks.is_some_and(|checks| checks.iter().all(fine))
    }

    /// Where its clients reach it, without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Where its operators reach it, without a slash at the end.
    pub fn management_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.management_port)
    }

    /// `kdbt-broker <arguments>` with this broker's configuration.
    pub fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .arg("--config")
            .arg(self.config_file())
            .env("KDBT_TESTKIT_CLOCK_OFFSET_FILE", self.clock_file())
            .current_dir(&self.folder);
        Ok(command)
    }

    /// Sets its clock against the machine's, by so many milliseconds; what is ahead has passed. Test builds only.
    pub fn set_clock_ahead(&self, millis: i64) -> Result<()> {
        Ok(fs::write(self.clock_file(), millis.to_string())?)
    }

    /// Its configuration.
    pub fn config_file(&self) -> PathBuf {
        self.folder.join("broker.yaml")
    }

    /// The folder of its policies: its own copy, to be edited.
    pub fn policies(&self) -> PathBuf {
        self.folder.join("policies")
    }

    /// Its store's file.
    pub fn store_file(&self) -> PathBuf {
        self.folder.join("kdbt.db")
    }

    /// Says at which steps it dies or waits, while it exists.
    pub fn failpoints_file(&self) -> PathBuf {
        self.folder.join("failpoints")
    }

    /// Holds the milliseconds that its clock is ahead.
    fn clock_file(&self) -> PathBuf {
        self.folder.join("clock")
    }

    /// Where its log goes, through all restarts.
    pub fn log_file(&self) -> PathBuf {
        self.folder.join("broker.log")
    }

    /// All that it has logged so far. What a secret must never stand in.
    pub fn log(&self) -> Result<String> {
        let log = fs::read(self.log_file()).context("read the broker's log")?;
        Ok(String::from_utf8_lossy(&log).into_owned())
    }

    /// The last lines of its log, for error messages.
    pub fn log_tail(&self, lines: usize) -> String {
        let log = self.log().unwrap_or_default();
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Its password at the server.
    pub fn password(&self) -> &str {
        &self.password
    }

    /// Its process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Watchdog::pid)
    }

    /// Freezes it, and waits until it is: the signal stops a thread only when that thread is next at the kernel's door, and
    /// on a busy machine the others go on for a while.
    pub async fn freeze(&self) -> Result<()> {
        self.signal(Signal::STOP)?;
        let tasks = format!("/proc/{}/task", self.pid().context("the broker does not run")?);
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let mut frozen = true;
            for task in fs::read_dir(&tasks)? {
                let stat = fs::read_to_string(task?.path().join("stat")).unwrap_or_default();
                // `1234 (name) T …`, where the name may hold anything.
                let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
                frozen &= matches!(state, None | Some('T'));
            }
            if frozen {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the broker does not freeze");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Sends it a signal: HUP to reload, CONT to wake it, TERM to stop.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.as_ref().context("the broker does not run")?.signal(signal)
    }

    /// Waits until it has ended by itself, for `patience` at most. A signal `n` that ended it shows as the code 128 + n.
    pub async fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + patience;
        let process = self.process.as_mut().context("the broker does not run")?;
        loop {
            if let Some(status) = process.ended()? {
                self.process = None;
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!(
                    "the broker still runs after {patience:?}. Its log:\n{}",
                    self.log_tail(40)
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends it as a power cut does.
    pub async fn kill(&mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.wait(Duration::from_secs(10)).await.map(drop)
    }

    /// Stops it in good order.
    pub async fn stop(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait(Duration::from_secs(30)).await
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // A running broker's folder goes with its watchdog.
        if self.process.is_none() {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// Where the tests of this crate keep their policies.
pub fn test_policies() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/policies"))
}

/// The policies that the repository shows and the demo runs with.
pub fn demo_policies() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../policies"))
}

fn configuration(options: &BrokerOptions, server: &str, issuer: &str, port: u16, management_port: u16) -> String {
    let mut text = format!(
        r#"kdbt: 1
installation: {installation}
listen: {{ address: "127.0.0.1:{port}" }}
management: {{ address: "127.0.0.1:{management_port}" }}
public_url: http://127.0.0.1:{port}
issuers:
  - issuer: {issuer}
    audiences: [kdbt-broker]
    authorized_parties: [kdbt-cli]
    service_clients: [kdbt-ci]
    provides: [realm_roles, client_roles, groups, claims.azp]
{issuers}admins: ["client:kdbt-broker:admin"]
store: {{ sqlite: kdbt.db }}
servers:
{server}{servers}"#,
        installation = options.installation,
        issuers = options.issuers,
        servers = options.servers,
    );
    text.push_str("policies: policies\n");
    text.push_str(&options.more);
    text
}

/// The server that policies call [`SERVER`]; people are always told its own port.
fn postgres_server(postgres: &Postgres, dials: Option<u16>) -> String {
    let mut text = format!(
        "  {SERVER}:\n    engine: postgres\n    insecure_transport: true\n    \
         connect: {{ host: 127.0.0.1, port: {}, user: {LOGIN}, password: {{ file: dwh.password }} }}\n    \
         public: {{ host: 127.0.0.1, port: {} }}\n",
        dials.unwrap_or(postgres.port()),
        postgres.port()
    );
    if postgres.version() == PgVersion::Pg15 {
        text.push_str("    accept_createrole: true\n");
    }
    text
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    crate::provision::run(Command::new("cp").arg("-r").arg(from).arg(to)).map(drop)
}

fn private(file: &Path, text: &str) -> Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)?;
    Ok(file.write_all(text.as_bytes())?)
}

fn random_password() -> String {
    let letters = rand::rng().sample_iter(rand::distr::Alphanumeric);
    letters.take(24).map(char::from).collect()
}

/// Two ports that nobody listens on.
fn free_ports() -> Result<(u16, u16)> {
    Ok((free_port()?, free_port()?))
}

/// Below the ports that the system gives to whoever asks for any: else a connection of another test may take it before
/// the broker does. Each is given once by a process.
fn free_port() -> Result<u16> {
    const FIRST: u16 = 20_000;
    const COUNT: u16 = 12_000;
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| AtomicU16::new(rand::rng().random_range(0..COUNT)));
    let ports = std::iter::repeat_with(|| FIRST + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT);
    let mut free = ports
        .take(usize::from(COUNT))
        .filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
    free.next().context("no port is free")
}
