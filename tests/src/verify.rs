//! `cargo verify`: everything that the tests need, once; then the tests; then what ran and what could not be had.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use crate::binaries::Binaries;
use crate::contract::warehouse::snowflake::live::{self, Live};
use crate::dbt::Dbt;
use crate::keycloak::{self, KeycloakOptions, KeycloakServer};
use crate::mutations::mutations;
use crate::postgres::{PgOptions, PgServer, PgVersion};
use crate::provision::{self, Need, provision, run};
use crate::reproduce::reproduce;
use crate::sbom::{Bill, SHIPPED};

/// Fetches what the tests need, starts each server once, builds, and runs every test of the workspace.
///
/// It exits with 0 only if all tests passed; with CI=true also only if everything could be had. A live Snowflake account
/// is tested where variables lead to one: docs/snowflake.md.
///
/// Options go behind two dashes: `cargo verify -- --no-keycloak`, `cargo verify -- --long stack --nocapture`.
#[derive(Debug, Parser)]
#[command(
    name = "cargo verify",
    bin_name = "cargo verify",
    args_conflicts_with_subcommands = true
)]
pub struct Arguments {
    #[command(subcommand)]
    task: Option<Task>,

    /// Also run the tests that take minutes
    #[arg(long)]
    long: bool,

    /// Leave out the tests that need a real Keycloak
    #[arg(long)]
    no_keycloak: bool,

    /// Which tests to run, and whatever else `cargo test -- …` takes
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "FILTER")]
    filter: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Fetch what tests and demo need, and stop
    Provision,
    /// Check bans, licences, sources and advisories of all dependencies with cargo-deny, which is built at the first call
    Deny,
    /// Write the bills of materials of broker and client as `NAME.cdx.json` (`CycloneDX` 1.6)
    Sbom {
        /// Where to
        folder: PathBuf,
    },
    /// Feed everything that reads what strangers write with what strangers could write, all targets at the same time
    Fuzz {
        /// For how many minutes
        #[arg(long, default_value_t = 60)]
        minutes: u64,
        /// Only the targets of one file of `tests/tests/all/fuzz/`, such as `tokens`
        #[arg(default_value = "")]
        file: String,
    },
    /// Take one control of the broker away at a time, and want a test to fall for each: two minutes each on two cores
    Mutations {
        /// Only controls with this in their name, their file or their test
        #[arg(default_value = "")]
        name: String,
    },
    /// Build a release twice in different places and compare: some 20 minutes on two cores
    Reproduce,
}

impl Arguments {
    /// Does what was asked. True: all is well.
    pub fn run(self) -> Result<bool> {
        match self.task {
            None => self.verify(),
            Some(Task::Provision) => Ok(Missing::after(provision(&Need::FOR_TESTS)).is_tolerable()),
            Some(Task::Deny) => deny(),
            Some(Task::Sbom { folder }) => sbom(&folder).map(|()| true),
            Some(Task::Fuzz { minutes, file }) => fuzz(minutes, &file),
            Some(Task::Mutations { name }) => mutate(&name),
            Some(Task::Reproduce) => reproduce(),
        }
    }

    fn verify(&self) -> Result<bool> {
        let start = Instant::now();
        let account = Live::from_environment()?;
        let needs = Need::FOR_TESTS
            .into_iter()
            .filter(|need| !(self.no_keycloak && *need == Need::Keycloak));
        let mut missing = Missing::after(provision(&needs.collect::<Vec<_>>()));
        missing.0.extend(stand_in());
        let ready = start.elapsed();

        let (binaries, servers) = thread::scope(|scope| {
            let servers = scope.spawn(|| Servers::start(!self.no_keycloak));
            (Binaries::build(), servers.join())
        });
        let binaries = binaries?;
        let servers = servers.map_err(|_| anyhow::anyhow!("starting the servers panicked, see above"))?;
        missing.0.extend(
            servers
                .failed
                .iter()
                .map(|(what, error)| (what.clone(), format!("{error:#}"))),
        );
        say(&format!(
            "ready after {:.0} s: {}",
            start.elapsed().as_secs_f32(),
            servers.names()
        ));

        let mut cargo = cargo_test();
        cargo
            .arg("--no-fail-fast")
            .envs(servers.variables()?)
            .env(Binaries::BROKER_VARIABLE, &binaries.broker)
            .env(Binaries::CLIENT_VARIABLE, &binaries.client);
        if self.no_keycloak {
            cargo.env(keycloak::VARIABLE, "none");
        }
        if self.long {
            cargo.env("KDBT_LONG", "1");
        }
        if !self.filter.is_empty() {
            cargo.arg("--").args(&self.filter);
        }
        let mut passed = cargo.status().context("run cargo test")?.success();
        if account.is_some() {
            passed &= live_run().status().context("run cargo test")?.success();
        }

        let mut line = format!("tests {}", if passed { "passed" } else { "FAILED" });
        let _ = write!(line, " on {}", servers.names());
        if account.is_some() {
            line.push_str(", a live Snowflake account");
        }
        let _ = write!(
            line,
            "; {:.0} s in all, {:.0} s of them to fetch",
            start.elapsed().as_secs_f32(),
            ready.as_secs_f32()
        );
        say(&line);
        if self.no_keycloak {
            say("NOT RUN as asked: the tests that need a real Keycloak");
        }
        if account.is_none() {
            say(&format!(
                "NOT RUN: the warehouse contract on a live Snowflake account, which needs {}",
                Live::NEEDED.join(", ")
            ));
        }
        missing.say();
        Ok(passed && missing.is_tolerable())
    }
}

fn cargo_test() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args(["test", "--workspace"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    cargo
}

/// More than there are targets: each has a thread, and an hour is an hour for all of them.
const FUZZ_THREADS: &str = "64";

/// Optimised, so that an hour is worth it, and with the checks of a test build.
fn fuzz(minutes: u64, file: &str) -> Result<bool> {
    let missing = Missing::after(provision(&[Need::Dbt(Dbt::Postgres)]));
    let mut cargo = cargo_test();
    cargo
        .args(["--profile", "fuzz", "--test", "all", "--"])
        .args([&format!("fuzz::{file}"), "--nocapture", "--test-threads", FUZZ_THREADS])
        .env("KDBT_LONG", minutes.to_string());
    let passed = cargo.status().context("run cargo test")?.success();
    missing.say();
    Ok(passed && missing.is_tolerable())
}

fn mutate(name: &str) -> Result<bool> {
    let needs = Need::FOR_TESTS.into_iter().filter(|need| *need != Need::Keycloak);
    let missing = Missing::after(provision(&needs.collect::<Vec<_>>()));
    let servers = Servers::start(false);
    let fell = mutations(name, &servers.variables()?)?;
    missing.say();
    Ok(fell && missing.is_tolerable())
}

/// The contract on the live account that the environment leads to.
fn live_run() -> Command {
    let mut cargo = cargo_test();
    cargo.args(["--test", "all", "--"]).args(live::RUN);
    cargo
}

/// Another version than 15 is what the system has: the tests run on that, but the oldest one is not covered.
fn stand_in() -> Option<(String, String)> {
    let bin = PgVersion::Pg15.bin_dir()?;
    let major = bin.parent()?.file_name()?.to_str()?.to_owned();
    (major != "15").then(|| {
        (
            "PostgreSQL 15".to_owned(),
            format!("the system's package is {major}, which stood in for it"),
        )
    })
}

fn deny() -> Result<bool> {
    let missing = Missing::after(provision(&[Need::Deny]));
    let Some(program) = provision::deny_program() else {
        missing.say();
        return Ok(missing.is_tolerable());
    };
    let deny = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command
            .args(arguments)
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        command
    };
    let check = |what: &[&str]| {
        let status = deny(&["check", "--deny", "warnings"]).args(what).status();
        Ok::<_, anyhow::Error>(status.context("run cargo-deny")?.success())
    };
    let passed = check(&["bans", "licenses", "sources"])?;
    // Known flaws stand in a git repository of their own, which closed networks do not reach.
    if let Err(error) = run(&mut deny(&["fetch", "db"])) {
        say(&format!("{error:#}"));
        say("NOT CHECKED: known flaws of the dependencies (advisories), since their list could not be had, see above");
        return Ok(passed);
    }
    Ok(check(&["advisories"])? && passed)
}

fn sbom(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    for program in SHIPPED {
        let file = folder.join(format!("{program}.cdx.json"));
        fs::write(&file, Bill::of(program)?.to_json()?).with_context(|| format!("write {}", file.display()))?;
        say(&format!("wrote {}", file.display()));
    }
    Ok(())
}

/// What could not be had, with the reason.
struct Missing(Vec<(String, String)>);

impl Missing {
    fn after(provisioned: Vec<(Need, anyhow::Error)>) -> Self {
        let missing = provisioned
            .into_iter()
            .map(|(need, error)| (need.to_string(), format!("{error:#}")));
        Self(missing.collect())
    }

    fn say(&self) {
        for (what, why) in &self.0 {
            say(&format!("NOT HAD: {what}, and what needs it was not tested: {why}"));
        }
    }

    /// On a developer's machine something may be missing; in CI nothing.
    fn is_tolerable(&self) -> bool {
        self.0.is_empty() || std::env::var("CI").as_deref() != Ok("true")
    }
}

/// The servers that all tests share.
struct Servers {
    postgres: Vec<PgServer>,
    keycloak: Option<KeycloakServer>,
    failed: Vec<(String, anyhow::Error)>,
}

impl Servers {
    /// Starts what is on this machine, all at the same time.
    fn start(with_keycloak: bool) -> Self {
        let versions = PgVersion::ALL.into_iter().filter(|version| version.bin_dir().is_some());
        let (postgres, keycloak) = thread::scope(|scope| {
            let start = |version| scope.spawn(move || PgServer::start(version, &PgOptions::default()));
            let postgres: Vec<_> = versions.map(|version| (version, start(version))).collect();
            let keycloak = (with_keycloak && keycloak::home().is_some()).then(start_keycloak);
            let joined = |(version, server): (PgVersion, thread::ScopedJoinHandle<'_, Result<PgServer>>)| {
                (
                    version,
                    server
                        .join()
                        .unwrap_or_else(|_| Err(anyhow::anyhow!("its start panicked"))),
                )
            };
            (postgres.into_iter().map(joined).collect::<Vec<_>>(), keycloak)
        });

        let mut servers = Self {
            postgres: Vec::new(),
            keycloak: None,
            failed: Vec::new(),
        };
        for (version, server) in postgres {
            match server {
                Ok(server) => servers.postgres.push(server),
                Err(error) => servers.failed.push((format!("PostgreSQL {}", version.major()), error)),
            }
        }
        match keycloak.transpose() {
            Ok(server) => servers.keycloak = server,
            Err(error) => servers.failed.push(("Keycloak".to_owned(), error)),
        }
        servers
    }

    fn variables(&self) -> Result<Vec<(&'static str, String)>> {
        let mut variables = Vec::new();
        for server in &self.postgres {
            variables.push((server.version().variable(), server.to_variable()?));
        }
        if let Some(server) = &self.keycloak {
            variables.push((keycloak::VARIABLE, server.to_variable()?));
        }
        Ok(variables)
    }

    fn names(&self) -> String {
        // `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`
        let version = |server: &PgServer| {
            let said = run(server.program("postgres").ok()?.arg("--version")).ok()?;
            Some(format!("PostgreSQL {}", said.split_whitespace().nth(2)?))
        };
        let postgres = self.postgres.iter().filter_map(version);
        let keycloak = self.keycloak.iter().map(|_| format!("Keycloak {}", keycloak::VERSION));
        postgres.chain(keycloak).collect::<Vec<_>>().join(", ")
    }
}

fn start_keycloak() -> Result<KeycloakServer> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(KeycloakServer::start(&KeycloakOptions::default()))
}

fn say(line: &str) {
    eprintln!("verify: {line}");
}
