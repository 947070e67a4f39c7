//! `kdbt-broker doctor`: looks at servers and issuers live, changes nothing, and names what is missing: a grant as SQL
//! to copy, a setting with its place.

mod issuer;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use kdbt_api::name::{DatabaseName, ServerName, TargetName};

use super::{ConfigFile, output};
use crate::app;
use crate::clock::system_clock;
use crate::config::{self, Config};
use crate::policy::PolicySet;
use crate::residue::{Approved, Difference, Kind, compare};
use crate::warehouse::postgres::{Era, PostgresWarehouse, bootstrap};
use crate::warehouse::{Finding, Severity, Warehouse as _};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Looks at the servers and issuers of the config as the policies need them. Exit code 1 if anything is an error.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(crate) struct Doctor {
    /// Only the server of this target, and no issuer.
    target: Option<TargetName>,
    #[command(flatten)]
    config: ConfigFile,
    /// Print the SQL that a DBA runs to make the server ready (with `psql`, or in a worksheet as SECURITYADMIN), and
    /// connect to nothing.
    #[arg(long, conflicts_with = "probe")]
    bootstrap: bool,
    /// On Snowflake: also make a user without any role, and drop it.
    #[arg(long)]
    probe: bool,
    /// Print what leases may have left behind besides data, as the file that `scan.approved` of the configuration names.
    #[arg(long, conflicts_with_all = ["bootstrap", "probe"])]
    residue: bool,
    /// For `--bootstrap`: the PostgreSQL server's major version.
    #[arg(long, value_name = "MAJOR", default_value_t = 18, value_parser = clap::value_parser!(u32).range(15..=99))]
    postgres: u32,
    /// Print what is as it should be, too.
    #[arg(long, short)]
    verbose: bool,
    #[command(flatten)]
    keycloak: issuer::KeycloakOptions,
}

impl Doctor {
    pub(crate) async fn run(self) -> ExitCode {
        let config = match self.config.load() {
            Ok(config) => config,
            Err(code) => return code,
        };
        let policies = match PolicySet::load(&config.policies, &config.issuer_facts()) {
            Ok(loaded) => loaded.set,
            Err(mistakes) => {
                output::error(&mistakes.to_string());
                return ExitCode::from(2);
            }
        };
        let servers = match self.servers(&config, &policies) {
            Ok(servers) => servers,
            Err(error) => {
                output::error(&error);
                return ExitCode::from(2);
            }
        };
        if self.bootstrap {
            for (name, server) in servers {
                match self.script(&config, &policies, name, server) {
                    Ok(script) => output::text(&script),
                    Err(error) => {
                        output::error(&format!("{error:#}"));
                        return ExitCode::from(2);
                    }
                }
            }
            return ExitCode::SUCCESS;
        }
        let access = match self.keycloak.access(&config) {
            Ok(access) => access,
            Err(error) => {
                output::error(&error);
                return ExitCode::from(2);
            }
        };
        let approved = match config.scan.approved.as_deref().map(Approved::load).transpose() {
            Ok(approved) => approved.unwrap_or_default(),
            // The file is what is asked for: it may not be there yet.
            Err(_) if self.residue => Approved::default(),
            Err(mistakes) => {
                output::error(&mistakes.to_string());
                return ExitCode::from(2);
            }
        };
        if self.residue {
            return self.print_residue(&config, &policies, &servers).await;
        }
        let mut worst = Severity::Ok;
        for (name, server) in servers {
            for finding in self.examine(&config, &policies, name, server, &approved).await {
                worst = worst.max(finding.severity);
                self.print(name.as_str(), &finding);
            }
        }
        let issuers = config.issuers.iter().filter(|_| self.target.is_none());
        for issuer in issuers.map(|issuer| &issuer.tokens) {
            for finding in issuer::examine(issuer, &policies, access.as_ref()).await {
                worst = worst.max(finding.severity);
                self.print(&issuer.issuer, &finding);
            }
        }
        if worst == Severity::Error {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        }
    }

    /// The servers to look at: the target's, or all that the policy names.
    fn servers<'c>(
        &self,
        config: &'c Config,
        policies: &PolicySet,
    ) -> Result<Vec<(&'c ServerName, &'c config::Server)>, String> {
        let named = match &self.target {
            Some(target) => match policies.target(target).map(|target| &target.server) {
                Some(server) => vec![server.clone()],
                None => return Err(format!("the policy has no target `{target}`")),
            },
            None => policies.servers().into_keys().collect(),
        };
        let missing = |name| format!("the policy names server `{name}`, which the config does not have");
        named
            .iter()
            .map(|name| config.servers.get_key_value(name).ok_or_else(|| missing(name)))
            .collect()
    }

    fn script(
        &self,
        config: &Config,
        policies: &PolicySet,
        name: &ServerName,
        server: &config::Server,
    ) -> anyhow::Result<String> {
        let needs = policies.needs(name);
        match server {
            config::Server::Postgres(server) => {
                let era = Era::of(self.postgres * 10_000);
                Ok(bootstrap::script(
                    &needs,
                    era,
                    &config.installation,
                    &server.connect.user,
                ))
            }
            config::Server::Snowflake(server) => {
                let warehouse = app::snowflake(config, name, server, system_clock());
                let warehouse = warehouse.with_context(|| format!("server `{name}`"))?;
                Ok(warehouse.bootstrap(&needs))
            }
        }
    }

    async fn examine(
        &self,
        config: &Config,
        policies: &PolicySet,
        name: &ServerName,
        server: &config::Server,
        approved: &Approved,
    ) -> Vec<Finding> {
        let needs = policies.needs(name);
        match server {
            config::Server::Postgres(server) => {
                let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
                let warehouse = PostgresWarehouse::new(app::postgres(config, name, server), &tasks, stop.clone());
                let mut findings = warehouse.check(&needs).await;
                for needed in &needs.databases {
                    let database = &needed.database;
                    match warehouse.residue(database, &needs).await {
                        Ok(residue) => {
                            let differences = compare(&approved.of(name, database), &residue);
                            findings.extend(differences.iter().map(|difference| to_look_at(database, difference)));
                        }
                        Err(error) => findings.push(Finding {
                            severity: Severity::Error,
                            code: "residue-unknown",
                            message: format!("what leases left behind in {database} cannot be seen: {error}"),
                            remedy: None,
                        }),
                    }
                }
                stop.cancel();
                findings
            }
            config::Server::Snowflake(server) => match app::snowflake(config, name, server, system_clock()) {
                Ok(warehouse) => {
                    let mut findings = warehouse.check(&needs).await;
                    if self.probe {
                        findings.extend(warehouse.probe().await);
                    }
                    findings
                }
                Err(error) => vec![Finding {
                    severity: Severity::Error,
                    code: "configuration",
                    message: format!("{error:#}"),
                    remedy: None,
                }],
            },
        }
    }

    /// What is there now, for a reviewer to take lines out of.
    async fn print_residue(
        &self,
        config: &Config,
        policies: &PolicySet,
        servers: &[(&ServerName, &config::Server)],
    ) -> ExitCode {
        let mut all = Approved::default();
        for (name, server) in servers {
            // Accounts on Snowflake have no such file.
            let config::Server::Postgres(server) = server else {
                continue;
            };
            let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
            let warehouse = PostgresWarehouse::new(app::postgres(config, name, server), &tasks, stop.clone());
            let _stop = stop.drop_guard();
            let needs = policies.needs(name);
            for needed in &needs.databases {
                match warehouse.residue(&needed.database, &needs).await {
                    Ok(residue) => all.add((*name).clone(), needed.database.clone(), residue),
                    Err(error) => {
                        output::error(&format!("server `{name}`, database `{}`: {error}", needed.database));
                        return ExitCode::FAILURE;
                    }
                }
            }
        }
        output::text(&all.to_yaml());
        ExitCode::SUCCESS
    }

    fn print(&self, place: &str, finding: &Finding) {
        let word = match finding.severity {
            Severity::Ok | Severity::Info if !self.verbose => return,
            Severity::Ok => "ok     ",
            Severity::Info => "info   ",
            Severity::Warning => "warning",
            Severity::Error => "error  ",
        };
        output::line(&format!("{word}  {place}  {}: {}", finding.code, finding.message));
        for line in finding.remedy.iter().flat_map(|remedy| remedy.lines()) {
            output::line(&format!("           {line}"));
        }
    }
}

/// A difference in the words of the doctor.
fn to_look_at(database: &DatabaseName, difference: &Difference) -> Finding {
    let (code, message, remedy) = match difference {
        Difference::Unapproved(residue) => (
            "residue",
            format!("nobody has approved this in {database}: {residue}"),
            "drop it, or approve it: `kdbt-broker doctor --residue` prints the file that `scan.approved` names"
                .to_owned(),
        ),
        Difference::Lost(residue) => (
            "residue-lost",
            format!("this is approved and gone from {database}, or another one: {residue}"),
            if residue.kind == Kind::DefaultPrivilege && residue.name.is_ascii() {
                format!("{}; -- in {database}", residue.name)
            } else {
                "make it again, or take it out of the file that `scan.approved` names".to_owned()
            },
        ),
    };
    Finding {
        severity: Severity::Warning,
        code,
        message,
        remedy: Some(remedy),
    }
}
