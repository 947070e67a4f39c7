//! All of it together: a warehouse with data and roles, an identity provider, a broker with policies.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::broker::{Broker, BrokerOptions};
use crate::client::Workstation;
use crate::dbt::{Dbt, Project};
use crate::identity::IdentityProvider;
use crate::postgres::{PgOptions, PgServer, PgVersion};
use crate::process::Finished;

/// The database of the demo's warehouse.
pub const DATABASE: &str = "analytics";

/// What a stack is made of.
#[derive(Debug, Clone)]
pub struct StackOptions {
    /// The server's version.
    pub version: PgVersion,
    /// The server's own settings.
    pub postgres: PgOptions,
    /// A real Keycloak instead of the realm that this process plays.
    pub keycloak: bool,
    /// The broker's.
    pub broker: BrokerOptions,
}

/// A running stack. Dropping it stops and removes everything.
#[derive(Debug)]
pub struct Stack {
    /// The broker: it goes first.
    pub broker: Broker,
    /// Where people log in.
    pub identity: IdentityProvider,
    /// The warehouse's server.
    pub postgres: PgServer,
}

impl Stack {
    /// Starts everything; `step` hears what has just been done.
    pub async fn start(options: &StackOptions, step: impl Fn(&str)) -> Result<Self> {
        let stack = Self::prepare(options, &step).await?;
        let mut stack = stack.bootstrapped(&step).await?;
        stack.broker.start().await?;
        step(&format!("the broker serves {}", stack.broker.url()));
        Ok(stack)
    }

    /// Starts the server with its data and the identity provider, and configures a broker that does not run yet.
    pub async fn prepare(options: &StackOptions, step: impl Fn(&str)) -> Result<Self> {
        let postgres = PgServer::start(options.version, &options.postgres)?;
        postgres.create_database(DATABASE).await?;
        postgres
            .execute(DATABASE, include_str!("../demo/warehouse.sql"))
            .await?;
        let shown = postgres.execute("postgres", "SHOW server_version").await?;
        let version = shown.first().and_then(|row| row.first()?.clone()).unwrap_or_default();
        step(&format!(
            "PostgreSQL {version} runs on port {} with raw data in the database `{DATABASE}`",
            postgres.port()
        ));
        let identity = if options.keycloak {
            IdentityProvider::keycloak().await?
        } else {
            IdentityProvider::play()?
        };
        step(&format!("people log in at {}", identity.issuer()));
        let broker = Broker::prepare(&options.broker, &postgres, &identity.issuer())?;
        Ok(Self {
            broker,
            identity,
            postgres,
        })
    }

    /// Makes the durable roles as a DBA does: by the SQL that the broker prints from its policies, run by a superuser.
    pub async fn bootstrapped(self, step: impl Fn(&str)) -> Result<Self> {
        let script = self.bootstrap_sql().await?;
        self.run_as_dba(&script).await.context("kdbt's bootstrap SQL")?;
        let grants = include_str!("../demo/warehouse-grants.sql");
        self.postgres.execute(DATABASE, grants).await?;
        step(&format!(
            "the durable roles are there, by {} lines of bootstrap SQL",
            script.lines().count()
        ));
        Ok(self)
    }

    /// What `kdbt-broker doctor --bootstrap` prints.
    pub async fn bootstrap_sql(&self) -> Result<String> {
        let major = self.postgres.version().major().to_string();
        let command = self.broker.command(&["doctor", "--bootstrap", "--postgres", &major])?;
        let printed = Finished::of(command).await?;
        Ok(printed.expect(0).context("kdbt-broker doctor --bootstrap")?.stdout)
    }

    /// Runs a script with psql as the superuser, with the broker's password at hand.
    pub async fn run_as_dba(&self, script: &str) -> Result<()> {
        let mut psql = self.postgres.program("psql")?;
        psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-v"])
            .arg(format!("login_password={}", self.broker.password()))
            .args(["-f", "-", "postgres"]);
        let script = script.to_owned();
        let run = move || -> Result<()> {
            let mut child = psql
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()?;
            child
                .stdin
                .take()
                .context("no standard input")?
                .write_all(script.as_bytes())?;
            let output = child.wait_with_output()?;
            ensure!(
                output.status.success(),
                "psql: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            Ok(())
        };
        tokio::task::spawn_blocking(run).await?
    }

    /// A machine with a person logged in on it.
    pub async fn log_in(&self, username: &str) -> Result<Workstation> {
        let machine = Workstation::new(&self.broker.url())?.with("PATH", &self.path()?);
        machine.login(&self.identity, username).await?;
        Ok(machine)
    }

    /// A machine on which the pipeline runs.
    pub fn pipeline(&self) -> Result<Workstation> {
        let machine = Workstation::of_pipeline(&self.broker.url(), "kdbt-ci", self.identity.ci_secret())?;
        Ok(machine.with("PATH", &self.path()?))
    }

    /// Our PATH with dbt and the server's own programs before it.
    pub fn path(&self) -> Result<String> {
        Dbt::Postgres.path(self.postgres.version().bin_dir())
    }

    /// A fresh copy of the demo's project.
    pub fn project() -> Result<Project> {
        Project::copy_of(
            Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/demo/project")),
            Dbt::Postgres,
        )
    }

    /// Rows of a query in the warehouse, run by the superuser.
    pub async fn rows(&self, sql: &str) -> Result<Vec<Vec<String>>> {
        let rows = self.postgres.execute(DATABASE, sql).await?;
        let text = |row: Vec<Option<String>>| row.into_iter().map(Option::unwrap_or_default).collect();
        Ok(rows.into_iter().map(text).collect())
    }

    /// The lease users that exist, by their marks.
    pub async fn lease_users(&self) -> Result<Vec<String>> {
        let sql =
            "SELECT rolname FROM pg_roles WHERE shobj_description(oid, 'pg_authid') LIKE 'kdbt/1 % lse%' ORDER BY 1";
        Ok(self.rows(sql).await?.into_iter().flatten().collect())
    }

    /// Keeps what everything has logged.
    pub fn keep_logs(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("make the folder {}", folder.display()))?;
        fs::write(folder.join("postgres.log"), self.postgres.log()?)?;
        fs::write(folder.join("broker.log"), self.broker.log()?)?;
        if let IdentityProvider::Keycloak(keycloak) = &self.identity {
            fs::write(folder.join("keycloak.log"), keycloak.log()?)?;
        }
        Ok(())
    }

    /// A broker command, such as `audit show`.
    pub fn broker_command(&self, arguments: &[&str]) -> Result<Command> {
        self.broker.command(arguments)
    }
}
