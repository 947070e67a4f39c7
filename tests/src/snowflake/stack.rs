//! All of it together on Snowflake: a simulated account, an identity provider, a broker, and where dbt builds a gate.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use kdbt_api::credential::PrivateKey;
use secrecy::ExposeSecret as _;

use super::Simulator;
use super::gate::Gate;
use crate::broker::{Broker, BrokerOptions};
use crate::client::Workstation;
use crate::dbt::{Dbt, Project};
use crate::identity::IdentityProvider;
use crate::process::Finished;

/// The simulated account, as profiles spell it.
pub const ACCOUNT: &str = "myorg-myacct";
/// The broker's role there, which owns the users that it makes.
pub const BROKER_ROLE: &str = "KDBT_BROKER";

/// What a stack is made of.
#[derive(Debug, Clone)]
pub struct SnowflakeOptions {
    /// The folder of the broker's policies. They build as the role `OWNER`, in the server `sf`'s target `lake`.
    pub policies: PathBuf,
    /// A real Keycloak instead of the realm that this process plays.
    pub keycloak: bool,
    /// The broker's `RUST_LOG`.
    pub log: String,
    /// With a gate and a fakesnow, so that dbt can build.
    pub gate: bool,
}

/// A stack. Dropping it stops and removes everything.
pub struct SnowflakeStack {
    /// The broker: it goes first.
    pub broker: Broker,
    /// Where people log in.
    pub identity: IdentityProvider,
    /// The account.
    pub simulator: Simulator,
    /// The account's address for dbt, if it was asked for.
    pub gate: Option<Gate>,
    /// The broker's own private key.
    pub key: String,
}

impl SnowflakeStack {
    /// Starts everything, with a broker that was made ready by the bootstrap of its own configuration.
    pub async fn start(options: &SnowflakeOptions) -> Result<Self> {
        let mut stack = Self::prepare(options, |_| {}).await?;
        stack.run_as_dba(&stack.bootstrap_sql().await?)?;
        stack.broker.start().await?;
        Ok(stack)
    }

    /// Starts the account and the identity provider, and configures a broker that does not run yet; `step` hears what has just
    /// been done.
    pub async fn prepare(options: &SnowflakeOptions, step: impl Fn(&str)) -> Result<Self> {
        let simulator = Simulator::start(&ACCOUNT.to_uppercase()).await?;
        let gate = if options.gate {
            Some(Gate::open(simulator.clone()).await?)
        } else {
            None
        };
        let url = gate.as_ref().map_or_else(|| simulator.url(), Gate::url);
        step(&format!("a simulated account `{ACCOUNT}` answers on {url}"));
        let identity = if options.keycloak {
            IdentityProvider::keycloak().await?
        } else {
            IdentityProvider::play()?
        };
        step(&format!("people log in at {}", identity.issuer()));

        let (key, _) = PrivateKey::generate().map_err(|error| anyhow!("{error}"))?;
        let key = key.secret().expose_secret().to_owned();
        let mut broker = BrokerOptions::new(&options.policies);
        broker.servers = format!(
            "  sf:\n    engine: snowflake\n    connect: {{ account: {ACCOUNT}, user: KDBT_SVC, role: {BROKER_ROLE}, \
             private_key: {{ file: sf.p8 }}, base_url: \"{url}\" }}\n"
        );
        broker.files = vec![("sf.p8".to_owned(), format!("{key}\n"))];
        broker.log.clone_from(&options.log);
        let stack = Self {
            broker: Broker::prepare_alone(&broker, &identity.issuer())?,
            identity,
            simulator,
            gate,
            key,
        };
        stack.run_as_dba("USE ROLE SECURITYADMIN; CREATE ROLE OWNER")?;
        Ok(stack)
    }

    /// What `kdbt-broker doctor lake --bootstrap` prints.
    pub async fn bootstrap_sql(&self) -> Result<String> {
        let command = self.broker.command(&["doctor", "lake", "--bootstrap"])?;
        let printed = Finished::of(command).await?;
        Ok(printed.expect(0).context("kdbt-broker doctor --bootstrap")?.stdout)
    }

    /// Runs a script as an account administrator does in a worksheet.
    pub fn run_as_dba(&self, script: &str) -> Result<()> {
        let refused = |(statement, refusal): (String, super::Refusal)| {
            anyhow!("{statement}: {} {}", refusal.code, refusal.message)
        };
        self.simulator.run_script(script).map_err(refused)
    }

    /// The gate.
    pub fn gate(&self) -> Result<&Gate> {
        self.gate.as_ref().context("this stack has no gate")
    }

    /// A machine with a person logged in on it.
    pub async fn log_in(&self, username: &str) -> Result<Workstation> {
        let machine = Workstation::new(&self.broker.url())?.with("PATH", &Dbt::Snowflake.path([])?);
        machine.login(&self.identity, username).await?;
        Ok(machine)
    }

    /// A fresh copy of the demo's project.
    pub fn project(dbt: Dbt) -> Result<Project> {
        let source = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/demo/snowflake/project"));
        Project::copy_of(source, dbt)
    }

    /// The users that carry a lease's mark.
    pub fn lease_users(&self) -> Vec<String> {
        self.simulator.look(|account| {
            let marked = |name: &String| {
                let comment = account.user(name).and_then(|user| user.comment.as_deref());
                comment.is_some_and(|comment| comment.starts_with("kdbt/1 "))
            };
            account.user_names().into_iter().filter(marked).collect()
        })
    }

    /// Keeps what everything has logged.
    pub fn keep_logs(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("make the folder {}", folder.display()))?;
        fs::write(folder.join("broker.log"), self.broker.log()?)?;
        if let Some(gate) = &self.gate {
            fs::write(folder.join("fakesnow.log"), gate.log())?;
        }
        if let IdentityProvider::Keycloak(keycloak) = &self.identity {
            fs::write(folder.join("keycloak.log"), keycloak.log()?)?;
        }
        Ok(())
    }
}

/// The policies that the demo's Snowflake side runs with.
pub fn demo_policies() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/demo/snowflake/policies"))
}
