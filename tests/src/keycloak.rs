//! A real Keycloak with the realm `kdbt`: the file that compose and demo import too.

pub mod admin;
pub mod browser;
pub mod tokens;

use std::fs;
use std::net::TcpListener;
use std::ops::Deref;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;

use crate::provision::{self, install_beside, run};
use crate::watchdog::{Watchdog, Watched};

/// The release that is fetched and that compose runs.
pub const VERSION: &str = "26.7.3";

/// The realm that every user of this module meets.
pub const REALM: &str = "kdbt";

/// The realm file.
pub const REALM_FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/keycloak/kdbt-realm.json");

/// Names the Keycloak that `cargo verify` has started for every test of a run, or says `none` after `--no-keycloak`.
pub const VARIABLE: &str = "KDBT_TEST_KEYCLOAK";

/// The unpacked and built distribution, if it has been fetched.
pub fn home() -> Option<PathBuf> {
    Some(place()).filter(|home| home.exists())
}

fn place() -> PathBuf {
    provision::cache().join(format!("keycloak-{VERSION}"))
}

/// Fetches the distribution and does the one-time build, so that a start takes seconds.
pub(crate) fn fetch() -> Result<()> {
    let name = format!("keycloak-{VERSION}");
    let unpacked = provision::cache().join("keycloak.unpacked");
    install_beside(&unpacked, |folder| {
        let mut maven = Command::new("mvn");
        maven
            .args(["--quiet", "--batch-mode", "dependency:copy"])
            .arg(format!("-Dartifact=org.keycloak:keycloak-quarkus-dist:{VERSION}:zip"))
            .arg(format!("-DoutputDirectory={}", folder.display()))
            .current_dir(folder);
        run(&mut maven)?;
        let archive = folder.join(format!("keycloak-quarkus-dist-{VERSION}.zip"));
        run(Command::new("unzip").arg("-q").arg(&archive).arg("-d").arg(folder))?;
        // The build notes where it lies, so it is moved before.
        if place().exists() {
            fs::remove_dir_all(place())?;
        }
        let building = place().with_extension("building");
        if building.exists() {
            fs::remove_dir_all(&building)?;
        }
        fs::rename(folder.join(&name), &building)?;
        run(Command::new(building.join("bin/kc.sh")).args(["build", "--db=dev-mem", "--health-enabled=true"]))?;
        fs::rename(&building, place())?;
        Ok(())
    })?;
    Ok(fs::remove_dir_all(unpacked)?)
}

/// Where a Keycloak is, and the secrets that its realm was imported with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Keycloak {
    port: u16,
    folder: PathBuf,
    admin_password: String,
    people_password: String,
    broker_secret: String,
    ci_secret: String,
}

impl Keycloak {
    /// The Keycloak that all tests of this run share: the one `cargo verify` started, else one of this process's own.
    ///
    /// None where it cannot be had: the test then says so and passes, except in CI (`CI=true`), where it fails.
    pub async fn shared() -> Option<&'static Self> {
        static SHARED: OnceCell<Option<(Keycloak, Option<KeycloakServer>)>> = OnceCell::const_new();
        let start = async || match std::env::var(VARIABLE).as_deref() {
            Ok("none") => None,
            Ok(given) => Some((
                serde_json::from_str(given).expect("an address that cargo verify wrote"),
                None,
            )),
            Err(_) if home().is_none() => None,
            Err(_) => {
                let server = KeycloakServer::start(&KeycloakOptions::default())
                    .await
                    .expect("start the shared Keycloak");
                Some((server.address.clone(), Some(server)))
            }
        };
        let shared = SHARED
            .get_or_init(start)
            .await
            .as_ref()
            .map(|(address, _server)| address);
        if shared.is_none() {
            assert_ne!(
                std::env::var("CI").as_deref(),
                Ok("true"),
                "there is no Keycloak, and in CI there must be one"
            );
            eprintln!("NOT RUN: this test needs Keycloak; `cargo verify` fetches and starts it");
        }
        shared
    }

    /// The value of the environment variable [`VARIABLE`] that leads another process here.
    pub fn to_variable(&self) -> Result<String> {
        Ok(serde_json::to_string(self)?)
    }

    /// The root of all its URLs, without a slash at the end.
    pub fn base_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The realm's issuer, as its tokens spell it.
    pub fn issuer(&self) -> String {
        format!("{}/realms/{REALM}", self.base_url())
    }

    /// The password of every person in the realm.
    pub fn people_password(&self) -> &str {
        &self.people_password
    }

    /// The secret of `kdbt-broker`.
    pub fn broker_secret(&self) -> &str {
        &self.broker_secret
    }

    /// The secret of `kdbt-ci`.
    pub fn ci_secret(&self) -> &str {
        &self.ci_secret
    }

    /// All that it has logged so far.
    pub fn log(&self) -> Result<String> {
        let log = fs::read(self.folder.join("log")).context("read Keycloak's log")?;
        Ok(String::from_utf8_lossy(&log).into_owned())
    }

    /// One of the realm's `OpenID` Connect endpoints, such as `token` or `auth`.
    fn endpoint(&self, name: &str) -> String {
        format!("{}/protocol/openid-connect/{name}", self.issuer())
    }
}

/// A client without redirects, cookies and kept connections: those would belong to the async runtime of one test.
fn http() -> Result<reqwest::Client> {
    let client = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .pool_max_idle_per_host(0)
        .timeout(Duration::from_secs(20));
    Ok(client.build()?)
}

/// What a start wants otherwise than usual.
#[derive(Debug, Clone)]
pub struct KeycloakOptions {
    /// The broker's public URL, where logout calls go.
    pub broker_url: String,
    /// The password of every person in the realm; none: a random one.
    pub people_password: Option<String>,
}

impl Default for KeycloakOptions {
    fn default() -> Self {
        Self {
            broker_url: "http://127.0.0.1:8700".to_owned(),
            people_password: None,
        }
    }
}

/// A Keycloak of our own. Dropping it ends it; nothing of it is kept.
#[derive(Debug)]
pub struct KeycloakServer {
    address: Keycloak,
    _process: Watchdog,
}

impl Deref for KeycloakServer {
    type Target = Keycloak;

    fn deref(&self) -> &Keycloak {
        &self.address
    }
}

impl KeycloakServer {
    /// Starts it on a free port, imports the realm and waits until it takes logins: 15 to 20 seconds, 600 MB.
    pub async fn start(options: &KeycloakOptions) -> Result<Self> {
        let home = home().context("Keycloak is not on this machine; `cargo verify` fetches it")?;
        let folder = tempfile::Builder::new().prefix("kdbt-keycloak-").tempdir()?;
        lay_out(&home, folder.path())?;
        let address = Keycloak {
            port: free_port()?,
            folder: folder.path().to_owned(),
            admin_password: random(),
            people_password: options.people_password.clone().unwrap_or_else(random),
            broker_secret: random(),
            ci_secret: random(),
        };
        let management = free_port()?;
        let mut command = Command::new(home.join("bin/kc.sh"));
        command
            .arg(format!("-Dkc.home.dir={}", folder.path().display()))
            .args([
                "start",
                "--optimized",
                "--import-realm",
                "--cache=local",
                "--http-enabled=true",
            ])
            .args(["--http-host=127.0.0.1", &format!("--http-port={}", address.port)])
            .args([
                format!("--http-management-port={management}"),
                format!("--hostname={}", address.base_url()),
            ])
            .env("JAVA_OPTS_KC_HEAP", "-Xms64m -Xmx512m")
            .env("KC_BOOTSTRAP_ADMIN_USERNAME", "admin")
            .env("KC_BOOTSTRAP_ADMIN_PASSWORD", &address.admin_password)
            .env("KDBT_PEOPLE_PASSWORD", &address.people_password)
            .env("KDBT_BROKER_SECRET", &address.broker_secret)
            .env("KDBT_CI_SECRET", &address.ci_secret)
            .env("KDBT_BROKER_URL", &options.broker_url)
            .current_dir(folder.path());
        let log = folder.path().join("log");
        // Its database is in memory: there is nothing to put away before it goes.
        let watched = Watched {
            stop_signal: "KILL",
            log: &log,
            folder: folder.path(),
        };
        let mut process = Watchdog::start(&command, &watched)?;
        let folder = folder.keep();

        let ready = format!("http://127.0.0.1:{management}/health/ready");
        let deadline = Instant::now() + Duration::from_mins(3);
        let http = http()?;
        while !http
            .get(&ready)
            .send()
            .await
            .is_ok_and(|answer| answer.status().is_success())
        {
            if process.ended()?.is_some() || Instant::now() > deadline {
                let said = fs::read_to_string(&log).unwrap_or_default();
                drop(process);
                let _ = fs::remove_dir_all(folder);
                bail!("Keycloak did not start. Its log:\n{said}");
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(Self {
            address,
            _process: process,
        })
    }
}

/// A home of the instance's own: the distribution by links, its data and the realm file beside them.
fn lay_out(home: &Path, folder: &Path) -> Result<()> {
    for part in ["conf", "lib", "providers", "themes"] {
        symlink(home.join(part), folder.join(part))?;
    }
    let import = folder.join("data/import");
    fs::create_dir_all(&import)?;
    fs::copy(REALM_FILE, import.join("kdbt-realm.json")).with_context(|| format!("read {REALM_FILE}"))?;
    Ok(())
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn random() -> String {
    rand::rng()
        .sample_iter(rand::distr::Alphanumeric)
        .take(24)
        .map(char::from)
        .collect()
}

/// The answer's body, or an error with the status and all that the server said.
async fn successful(answer: reqwest::Response) -> Result<String> {
    let (status, url) = (answer.status(), answer.url().clone());
    let body = answer.text().await?;
    ensure!(status.is_success(), "{url} answered {status}: {body}");
    Ok(body)
}
