//! The command line: every command, flag and variable.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::FalseyValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use kdbt_api::Ttl;
use kdbt_api::lease::{Engine, LeaseId};
use kdbt_api::name::{ProfileName, RuleId, TargetName};

const AFTER_HELP: &str = "\
Machines need no login: KDBT_TOKEN holds an access token, or KDBT_CLIENT_ID and KDBT_CLIENT_SECRET_FILE
(or KDBT_CLIENT_SECRET) the credentials of a client of their own.

Exit codes: 0 done, 1 failed, 2 usage, 3 login needed, 4 denied by policy, 6 broker or Keycloak
unreachable, 7 warehouse refused, 8 lease gone. exec and psql end with the code of what they run, else
with 125 (could not start), 126 (not executable), 127 (not found) or 128 and the signal's number.";

/// Runs dbt as a warehouse user that lives as long as the run.
///
/// Login is by Keycloak; what you may do where is decided by your organisation's reviewed policies.
#[derive(Debug, Parser)]
#[command(name = "kdbt-client", version, max_term_width = 100, disable_help_subcommand = true, after_long_help = AFTER_HELP)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Everywhere")]
pub(crate) struct Global {
    /// The broker's URL
    #[arg(long, global = true, value_name = "URL", env = "KDBT_BROKER", hide_env_values = true)]
    pub(crate) broker: Option<String>,
    /// Use the access token in this file
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "KDBT_TOKEN_FILE",
        hide_env_values = true
    )]
    pub(crate) token_file: Option<PathBuf>,
    /// Trust the certificate authorities in this PEM file, and no others
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "KDBT_CA_FILE",
        hide_env_values = true
    )]
    pub(crate) ca_file: Option<PathBuf>,
    /// Accept warehouses without TLS or without a check of their certificate
    #[arg(long, global = true, value_parser = FalseyValueParser::new(), env = "KDBT_ALLOW_INSECURE", hide_env_values = true)]
    pub(crate) allow_insecure: bool,
    /// Only say what needs an answer or went wrong
    #[arg(long, short, global = true, value_parser = FalseyValueParser::new(), env = "KDBT_QUIET", hide_env_values = true)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Log in
    Login(Login),
    /// End your leases, your session at Keycloak and the stored login
    Logout,
    /// Show who you are to the broker
    Whoami(Json),
    /// List the targets that you may ask for
    Targets(Json),
    /// Run a command with a lease: `kdbt-client exec -- dbt build`
    Exec(Exec),
    /// Take a lease and write its dbt profile to standard output
    Profile(Profile),
    /// Take a lease and print it as shell commands: `eval "$(kdbt-client env)"`
    Env(Env),
    /// Take a lease and open psql with it (PostgreSQL only)
    Psql(Psql),
    /// List your leases
    Leases(Json),
    /// Move the end of a lease
    Renew(Renew),
    /// End a lease, or all of yours
    Revoke(Revoke),
    /// Say whether an order would be filled, and why (not)
    Explain(Explain),
    /// Check the broker, the login and the clock
    Doctor,
    /// Print the completion script for a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub(crate) struct Login {
    /// Enter a code on another device instead of opening a browser here
    #[arg(
        long,
        visible_alias = "no-browser",
        conflicts_with = "browser",
        value_parser = FalseyValueParser::new(), env = "KDBT_DEVICE",
        hide_env_values = true
    )]
    pub(crate) device: bool,
    /// Log in with a browser on this machine
    #[arg(long, value_parser = FalseyValueParser::new(), env = "KDBT_LOGIN_BROWSER", hide_env_values = true)]
    pub(crate) browser: bool,
    /// Print the address for the browser instead of opening it
    #[arg(long, conflicts_with = "device", value_parser = FalseyValueParser::new(), env = "KDBT_NO_OPEN", hide_env_values = true)]
    pub(crate) no_open: bool,
    /// Accept that the broker names another issuer than before
    #[arg(long)]
    pub(crate) trust_issuer: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Json {
    /// JSON for programs
    #[arg(long)]
    pub(crate) json: bool,
}

/// What a lease is asked for.
#[derive(Debug, Args, Clone)]
#[command(next_help_heading = "Lease")]
pub(crate) struct Order {
    /// The target [default: dbt's own, else the only one you may ask for]
    #[arg(long, short, env = "KDBT_TARGET", hide_env_values = true)]
    pub(crate) target: Option<TargetName>,
    /// Join this rule, and no unnamed ones; may be repeated
    #[arg(
        long = "rule",
        value_name = "ID",
        env = "KDBT_RULE",
        hide_env_values = true,
        value_delimiter = ','
    )]
    pub(crate) rules: Vec<RuleId>,
    /// Why, for the audit log
    #[arg(long, env = "KDBT_REASON", hide_env_values = true)]
    pub(crate) reason: Option<String>,
    /// How long, such as 30m or 2h [default: the policy's]
    #[arg(long, env = "KDBT_TTL", hide_env_values = true)]
    pub(crate) ttl: Option<Ttl>,
    /// How long to wait while the broker has no room or no warehouse, such as 10m
    #[arg(long, value_name = "DURATION", env = "KDBT_WAIT", hide_env_values = true)]
    pub(crate) wait: Option<Ttl>,
}

impl Order {
    /// How long to go on trying.
    pub(crate) fn patience(&self) -> Duration {
        self.wait.map_or(Duration::ZERO, Ttl::as_duration)
    }
}

/// Where the dbt project is and what its profile is called.
#[derive(Debug, Args)]
#[command(next_help_heading = "dbt")]
pub(crate) struct Project {
    /// The profile's name [default: that of the dbt project, else kdbt]
    #[arg(long, env = "KDBT_PROFILE", hide_env_values = true)]
    pub(crate) profile: Option<ProfileName>,
    /// The folder of the dbt project [default: found as dbt finds it]
    #[arg(long, value_name = "DIR", env = "KDBT_PROJECT_DIR", hide_env_values = true)]
    pub(crate) project_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Exec {
    /// Leave our own tokens and client secrets in the command's environment
    #[arg(long, value_parser = FalseyValueParser::new(), env = "KDBT_KEEP_ENV", hide_env_values = true)]
    pub(crate) keep_env: bool,
    /// The command and its arguments, as they are
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(crate) command: Vec<OsString>,
    #[command(flatten)]
    pub(crate) order: Order,
    #[command(flatten)]
    pub(crate) project: Project,
}

#[derive(Debug, Args)]
pub(crate) struct Profile {
    /// Write profiles.yml into this folder instead of standard output
    #[arg(long, value_name = "DIR", conflicts_with_all = ["json", "template"])]
    pub(crate) write: Option<PathBuf>,
    /// JSON for programs: the lease, the connection, the password or private key, the profile
    #[arg(long, conflicts_with = "template")]
    pub(crate) json: bool,
    /// A profile to commit, which `exec` and `env` fill; takes no lease
    #[arg(long)]
    pub(crate) template: bool,
    /// For --template: the engine of the targets
    #[arg(long, value_enum, default_value = "postgres", requires = "template")]
    pub(crate) engine: EngineName,
    #[command(flatten)]
    pub(crate) order: Order,
    #[command(flatten)]
    pub(crate) project: Project,
}

/// The engines that a profile can be for.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum EngineName {
    /// PostgreSQL
    Postgres,
    /// Snowflake
    Snowflake,
}

impl From<EngineName> for Engine {
    fn from(name: EngineName) -> Self {
        match name {
            EngineName::Postgres => Self::Postgres,
            EngineName::Snowflake => Self::Snowflake,
        }
    }
}

/// The shells that `env` speaks.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Shell {
    /// bash, zsh, dash
    Sh,
    /// fish
    Fish,
    /// PowerShell
    Powershell,
}

#[derive(Debug, Args)]
pub(crate) struct Env {
    /// The shell that reads it
    #[arg(long, value_enum, default_value = "sh", env = "KDBT_SHELL", hide_env_values = true)]
    pub(crate) shell: Shell,
    #[command(flatten)]
    pub(crate) order: Order,
}

#[derive(Debug, Args)]
pub(crate) struct Psql {
    /// Arguments for psql
    #[arg(last = true, value_name = "ARG")]
    pub(crate) args: Vec<OsString>,
    #[command(flatten)]
    pub(crate) order: Order,
}

#[derive(Debug, Args)]
pub(crate) struct Renew {
    /// The lease, as `leases` lists it
    pub(crate) id: LeaseId,
    /// How long from now [default: the policy's]
    #[arg(long, env = "KDBT_TTL", hide_env_values = true)]
    pub(crate) ttl: Option<Ttl>,
}

#[derive(Debug, Args)]
#[group(id = "which", required = true, multiple = false)]
pub(crate) struct Revoke {
    /// The lease, as `leases` lists it
    #[arg(group = "which")]
    pub(crate) id: Option<LeaseId>,
    /// All of yours
    #[arg(long, group = "which")]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// JSON for programs
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) order: Order,
}
