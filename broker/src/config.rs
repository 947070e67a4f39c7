//! What the operator sets: one YAML file, read once at start, with every mistake reported at its place.
//!
//! No secret stands in it, only references to files and variables; and because somebody will write one there all
//! the same, no line of the file is ever quoted in an error.

mod issuers;
mod parts;
mod secret;
mod servers;
mod snowflake;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kdbt_api::credential::{Iterations, PrivateKey};
use kdbt_api::lease::{Engine, SnowflakeAddress};
use kdbt_api::name::{DatabaseName, InstallationName, RoleName, ServerName};
use secrecy::SecretString;
use url::Url;

pub use self::secret::secret_of;

use crate::diagnostics::{Diagnostic, Diagnostics};
use crate::identity::IssuerConfig;
use crate::policy::IssuerFacts;
use crate::yaml;

/// The whole configuration, checked.
#[derive(Debug)]
pub struct Config {
    /// The file it was read from.
    pub path: PathBuf,
    /// Which users are ours: it stands in every mark.
    pub installation: InstallationName,
    /// Where the API is served.
    pub listen: Listen,
    /// Where health details and metrics are served; loopback port 8701 if not set.
    pub management: SocketAddr,
    /// How clients reach the API; https, unless it is loopback.
    pub public_url: Url,
    /// Whose tokens are taken; at least one, no two alike.
    pub issuers: Vec<Issuer>,
    /// Who sees and ends the leases of others.
    pub admins: Vec<Admin>,
    /// The embedded store's file.
    pub store: PathBuf,
    /// The key of the audit chain's MAC, if one is configured.
    pub audit_key: Option<SecretString>,
    /// The servers that policies may name.
    pub servers: BTreeMap<ServerName, Server>,
    /// The folder of the policies.
    pub policies: PathBuf,
    /// How servers are scanned for what leases leave behind.
    pub scan: Scan,
    /// How much anybody may take.
    pub limits: Limits,
    /// Whether the broker makes a secret for callers that bring no verifier.
    pub broker_made_secrets: bool,
    /// How often a password is hashed: 1, or 4096 for clients that do not use libpq.
    pub scram_iterations: Iterations,
    /// How long a stop waits for requests that run.
    pub shutdown: Duration,
    /// What works but should be looked at.
    pub warnings: Vec<Diagnostic>,
}

/// Where the API is served.
#[derive(Debug, Clone)]
pub struct Listen {
    /// The address; port 0 lets the system choose.
    pub address: SocketAddr,
    /// How the way there is protected.
    pub protection: Protection,
}

/// How tokens and secrets are protected on the way.
#[derive(Debug, Clone)]
pub enum Protection {
    /// The broker's own TLS.
    Tls {
        /// Certificate chain, PEM.
        cert: PathBuf,
        /// Private key, PEM.
        key: PathBuf,
    },
    /// A proxy ends TLS; forwarding headers are believed from these addresses only.
    BehindProxy {
        /// The proxies' addresses.
        trusted: Vec<IpAddr>,
    },
    /// None: the address is loopback.
    Loopback,
}

/// One issuer, and what clients need to know of it.
#[derive(Debug, Clone)]
pub struct Issuer {
    /// How its tokens are verified.
    pub tokens: IssuerConfig,
    /// The public client that people log in with.
    pub client_id: String,
    /// The scopes that they ask for.
    pub scopes: Vec<String>,
}

/// What makes somebody an admin. Read from verified claims of any issuer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admin {
    /// `realm:<role>`: a realm role.
    RealmRole(String),
    /// `client:<client>:<role>`: a role of a client.
    ClientRole {
        /// The client.
        client: String,
        /// The role.
        role: String,
    },
    /// `group:/<path>`: a group by its full path.
    Group(String),
}

/// One server.
#[derive(Debug)]
pub enum Server {
    /// A PostgreSQL cluster.
    Postgres(PostgresServer),
    /// A Snowflake account.
    Snowflake(SnowflakeServer),
}

impl Server {
    /// Of which engine it is.
    #[must_use]
    pub fn engine(&self) -> Engine {
        match self {
            Self::Postgres(_) => Engine::Postgres,
            Self::Snowflake(_) => Engine::Snowflake,
        }
    }
}

/// One Snowflake account.
#[derive(Debug)]
pub struct SnowflakeServer {
    /// What the broker dials.
    pub connect: Account,
    /// The account identifier that dbt gets.
    pub public_account: String,
    /// Where dbt finds the account, if not where its identifier says.
    pub public_address: Option<SnowflakeAddress>,
    /// The full name of a session policy that every lease's user gets.
    pub session_policy: Option<String>,
    /// Whether the key of a lease itself expires some hours after the lease's last possible end.
    pub hard_expiry: bool,
    /// How many calls that make users run at once.
    pub calls: u16,
}

/// How the broker reaches a Snowflake account.
#[derive(Debug)]
pub struct Account {
    /// The account identifier, as its owner writes it.
    pub account: String,
    /// The `LOGIN_NAME` of the broker's user.
    pub user: String,
    /// The role that the broker acts as, in capitals.
    pub role: RoleName,
    /// The key of the broker's user.
    pub private_key: PrivateKey,
    /// Dialled instead of the account's own address; https, or http on loopback.
    pub base_url: Option<Url>,
    /// More authorities to trust than the system's, PEM.
    pub ca_pem: Option<String>,
}

/// One PostgreSQL server.
#[derive(Debug)]
pub struct PostgresServer {
    /// What the broker dials.
    pub connect: Connect,
    /// What dbt gets.
    pub public: Public,
    /// Connections without verified TLS are accepted, for the broker and for dbt.
    pub insecure_transport: bool,
    /// On PostgreSQL 15, where CREATEROLE is nearly superuser: the operator accepts that.
    pub accept_createrole: bool,
}

/// What the broker dials.
#[derive(Debug)]
pub struct Connect {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// The broker's login.
    pub user: String,
    /// Its password; `None` where the server asks for none.
    pub password: Option<SecretString>,
    /// The database for what concerns roles only.
    pub database: DatabaseName,
    /// The certificate authority, PEM.
    pub ca_pem: Option<String>,
}

/// What dbt gets.
#[derive(Debug, Clone)]
pub struct Public {
    /// Host name or address as users reach it.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// The certificate authority, PEM.
    pub ca_pem: Option<String>,
}

/// How servers are scanned for what leases leave behind besides data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scan {
    /// How often; a look takes a moment in each database.
    pub every: Duration,
    /// The file of what is approved; nothing is without one. Read at every scan.
    pub approved: Option<PathBuf>,
}

impl Default for Scan {
    fn default() -> Self {
        Self {
            every: Duration::from_hours(1),
            approved: None,
        }
    }
}

/// How much anybody may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Live leases of one person.
    pub leases_per_person: u32,
    /// Live leases that one rule joined.
    pub leases_per_rule: u32,
    /// Live leases on one target.
    pub leases_per_target: u32,
    /// Requests in work at once.
    pub requests: u32,
    /// How long one request may take.
    pub request_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            leases_per_person: 8,
            leases_per_rule: 500,
            leases_per_target: 1000,
            requests: 256,
            request_time: Duration::from_secs(30),
        }
    }
}

impl Config {
    /// Reads and checks the file and what it refers to. Relative paths are relative to its folder.
    pub fn load(path: &Path) -> Result<Self, Diagnostics> {
        let bytes = yaml::read_file(path)?;
        let source = yaml::source_of(&path.display().to_string(), bytes, false)?;
        let mut found = Diagnostics::none();
        let config = yaml::parse(&source, &mut found).and_then(|root| parts::config(&root, path, &mut found));
        match config {
            Some(config) if !found.has_errors() => Ok(Self {
                warnings: found.sorted().into_vec(),
                ..config
            }),
            Some(_) | None => Err(found.sorted()),
        }
    }

    /// What the policies need to know of the issuers, in the order of the file.
    #[must_use]
    pub fn issuer_facts(&self) -> Vec<IssuerFacts> {
        let facts = |issuer: &Issuer| IssuerFacts {
            issuer: issuer.tokens.issuer.as_str().into(),
            provides: Arc::new(issuer.tokens.provides.clone()),
        };
        self.issuers.iter().map(facts).collect()
    }

    /// The engine of each server.
    #[must_use]
    pub fn engines(&self) -> BTreeMap<ServerName, Engine> {
        let servers = self.servers.iter();
        servers.map(|(name, server)| (name.clone(), server.engine())).collect()
    }

    /// The same from the file alone: a check in CI has no secrets and no certificates.
    pub fn engines_of(path: &Path) -> Result<BTreeMap<ServerName, Engine>, Diagnostics> {
        let bytes = yaml::read_file(path)?;
        let source = yaml::source_of(&path.display().to_string(), bytes, false)?;
        let mut found = Diagnostics::none();
        let engines = yaml::parse(&source, &mut found).and_then(|root| servers::engines(&root, &mut found));
        match engines {
            Some(engines) if !found.has_errors() => Ok(engines),
            Some(_) | None => Err(found.sorted()),
        }
    }

    /// What the policies need of the issuers, from the file alone.
    pub fn issuer_facts_of(path: &Path) -> Result<Vec<IssuerFacts>, Diagnostics> {
        let bytes = yaml::read_file(path)?;
        let source = yaml::source_of(&path.display().to_string(), bytes, false)?;
        let mut found = Diagnostics::none();
        let facts = yaml::parse(&source, &mut found).and_then(|root| issuers::issuer_facts(&root, &mut found));
        match facts {
            Some(facts) if !found.has_errors() => Ok(facts),
            Some(_) | None => Err(found.sorted()),
        }
    }
}

#[cfg(test)]
mod tests;
