//! The broker and the client that are tested: built by cargo just now, found by what cargo says, never by guessing a path.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// The paths of the programs under test. The broker has the feature `testkit`, which this crate asks for.
#[derive(Debug, Clone)]
pub struct Binaries {
    /// `kdbt-broker`.
    pub broker: PathBuf,
    /// `kdbt-client`.
    pub client: PathBuf,
}

static SHARED: OnceLock<Binaries> = OnceLock::new();

impl Binaries {
    /// Names the broker that `cargo verify` has built.
    pub const BROKER_VARIABLE: &str = "KDBT_TEST_BROKER";
    /// Names the client that `cargo verify` has built.
    pub const CLIENT_VARIABLE: &str = "KDBT_TEST_CLIENT";

    /// Builds every program of the workspace; cargo's messages go to standard error.
    pub fn build() -> Result<Self> {
        Self::build_with(&["--workspace", "--bins"])
    }

    /// Builds broker and client as they are shipped: optimised, and without `testkit`, which must not be measured.
    pub fn build_release() -> Result<Self> {
        let built = Self::build_with(&["--release", "-p", "kdbt-broker", "-p", "kdbt-client"])?;
        ensure!(
            !built.broker_version()?.contains("testkit"),
            "the release build has the feature `testkit`"
        );
        Ok(built)
    }

    fn build_with(arguments: &[&str]) -> Result<Self> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let built = Command::new(cargo)
            .arg("build")
            .args(arguments)
            .arg("--message-format=json-render-diagnostics")
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
            .stderr(Stdio::inherit())
            .output()
            .context("run cargo build")?;
        ensure!(built.status.success(), "the workspace does not build, see above");
        let messages = String::from_utf8(built.stdout).context("cargo's messages are no text")?;
        let path = |program: &str| {
            let found = messages
                .lines()
                .filter_map(|line| serde_json::from_str::<Artifact>(line).ok());
            let mut found = found
                .filter(|artifact| artifact.target.name == program)
                .filter_map(|built| built.executable);
            found.next().with_context(|| format!("cargo has built no {program}"))
        };
        Ok(Self {
            broker: path("kdbt-broker")?,
            client: path("kdbt-client")?,
        })
    }

    /// What the broker says of itself.
    pub fn broker_version(&self) -> Result<String> {
        let said = Command::new(&self.broker).arg("--version").output();
        let said = said.with_context(|| format!("run {}", self.broker.display()))?;
        Ok(String::from_utf8_lossy(&said.stdout).trim().to_owned())
    }

    /// Lets everything in this process use these, if nothing has asked for [`Self::shared`] yet.
    pub fn share(self) -> Result<()> {
        let taken = SHARED.set(self);
        taken.map_err(|_| anyhow::anyhow!("other programs are in use already"))
    }

    /// What the tests of this run use: what `cargo verify` has built, else built at the first call.
    pub fn shared() -> &'static Self {
        SHARED.get_or_init(|| {
            let given = |name| std::env::var_os(name).map(PathBuf::from);
            match (given(Self::BROKER_VARIABLE), given(Self::CLIENT_VARIABLE)) {
                (Some(broker), Some(client)) => Self { broker, client },
                _ => Self::build().expect("build the programs under test"),
            }
        })
    }
}

/// The broker under test.
pub fn broker_bin() -> &'static PathBuf {
    &Binaries::shared().broker
}

/// The client under test.
pub fn client_bin() -> &'static PathBuf {
    &Binaries::shared().client
}

/// The part of cargo's `compiler-artifact` messages that counts here.
#[derive(Deserialize)]
struct Artifact {
    target: Target,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}
