//! The command line: the service, and what DBAs and operators do beside it.

mod audit;
mod doctor;
pub mod output;
pub mod policy;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, Parser, Subcommand};

use crate::app;
use crate::clock::system_clock;
use crate::config::Config;
use crate::telemetry::{self, LogFormat};

/// Ephemeral warehouse users for dbt, by Keycloak identity and reviewed policy.
#[derive(Debug, Parser)]
#[command(name = "kdbt-broker", version = VERSION, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// Tells a test build from a release: only the former reads a clock offset and failpoints.
const VERSION: &str = if cfg!(feature = "testkit") {
    concat!(env!("CARGO_PKG_VERSION"), "+testkit")
} else {
    env!("CARGO_PKG_VERSION")
};

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the broker: HTTP API and reaper.
    Serve(Serve),
    /// Check, test and explain policies. Reads files only, so it runs in a pull request.
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// Look at a server live, and print what a DBA must run.
    Doctor(doctor::Doctor),
    /// Read and verify the audit log of a store.
    #[command(subcommand)]
    Audit(audit::Command),
    /// Print a completion script.
    Completion {
        /// For this shell.
        shell: clap_complete::Shell,
    },
}

/// Where the configuration is.
#[derive(Debug, Args)]
pub(crate) struct ConfigFile {
    /// The configuration file.
    #[arg(
        long,
        short,
        env = "KDBT_CONFIG",
        value_name = "FILE",
        default_value = "/etc/kdbt/broker.yaml"
    )]
    config: PathBuf,
}

impl ConfigFile {
    /// Loads it; on mistakes prints them all. A bad config is exit code 2.
    pub(crate) fn load(&self) -> Result<Config, ExitCode> {
        match Config::load(&self.config) {
            Ok(config) => {
                for warning in &config.warnings {
                    output::note(&warning.to_string());
                }
                Ok(config)
            }
            Err(mistakes) => {
                output::error(&mistakes.to_string());
                Err(ExitCode::from(2))
            }
        }
    }
}

#[derive(Debug, Args)]
struct Serve {
    #[command(flatten)]
    config: ConfigFile,
    /// What to log, such as `info` or `kdbt_broker=debug`. Other crates never log below `info`.
    #[arg(long, env = "RUST_LOG", default_value = "info", value_name = "FILTER")]
    log: String,
    /// How to log.
    #[arg(long, env = "KDBT_LOG_FORMAT", default_value = "text", value_name = "text|json")]
    log_format: LogFormat,
}

impl Serve {
    async fn run(self) -> ExitCode {
        let config = match self.config.load() {
            Ok(config) => config,
            Err(code) => return code,
        };
        if let Err(error) = telemetry::init(&self.log, self.log_format) {
            output::error(&error.to_string());
            return ExitCode::from(2);
        }
        match app::serve(config).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                let error: &dyn std::error::Error = error.as_ref();
                tracing::error!(error, "the broker stops");
                ExitCode::FAILURE
            }
        }
    }
}

impl Cli {
    /// Runs the command.
    pub async fn run(self) -> ExitCode {
        match self.command {
            Command::Serve(serve) => serve.run().await,
            Command::Policy(command) => {
                let now = system_clock().now();
                let (mut found, mut stopped) = (Vec::new(), Vec::new());
                let code = policy::run(&command, now, &mut found, &mut stopped);
                output::text(&String::from_utf8_lossy(&found));
                if !stopped.is_empty() {
                    output::note(String::from_utf8_lossy(&stopped).trim_end());
                }
                // Memory takes whatever is written.
                code.map_or(ExitCode::FAILURE, ExitCode::from)
            }
            Command::Doctor(doctor) => doctor.run().await,
            Command::Audit(command) => command.run(),
            Command::Completion { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Self::command(), "kdbt-broker", &mut script);
                output::script(&String::from_utf8_lossy(&script));
                ExitCode::SUCCESS
            }
        }
    }
}

/// Secrets pass through memory, so memory must not reach a disk (I7).
pub fn forbid_core_dumps() -> std::io::Result<()> {
    use rustix::process::{DumpableBehavior, Resource, Rlimit};
    rustix::process::setrlimit(
        Resource::Core,
        Rlimit {
            current: Some(0),
            maximum: Some(0),
        },
    )?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}
