//! The Snowflake driver: a role with CREATE USER makes service users that log in by a key, and ends them again.
//!
//! Two lanes of calls to the SQL API, *issue* and *end*, so that a storm on one never stops the other. Snowflake has no
//! transaction around users and no id that outlives a name: a user is known by the mark in its comment, and nothing
//! is done to a name unless it bore our mark a few seconds before (S5).

use std::time::Duration;

use async_trait::async_trait;
use kdbt_api::Timestamp;
use kdbt_api::name::{InstallationName, ServerName};
use secrecy::SecretString;
use url::Url;

use self::api::{Api, Lane};
use self::sql::Statement;
use crate::clock::SharedClock;
use crate::lease::{EngineId, UserRef};
use crate::warehouse::{
    CreateError, END_WITHIN, EndOutcome, Finding, MarkedUser, Needs, NewUser, Sweep, Warehouse, WarehouseError,
};

pub use self::account::{Account, AccountError};
pub use self::sql::{PolicyName, PolicyNameError, ident, literal};
pub use self::token::KeyError;

mod account;
mod api;
mod bootstrap;
mod create;
mod doctor;
mod ending;
mod error;
mod listing;
mod sql;
mod sweep;
mod token;

/// One account and how the broker reaches it.
#[derive(Debug, Clone)]
pub struct SnowflakeConfig {
    /// Its name in config and policies.
    pub server: ServerName,
    /// Whose users are ours.
    pub installation: InstallationName,
    /// The account.
    pub account: Account,
    /// The `LOGIN_NAME` of the broker's user.
    pub user: String,
    /// The role that the broker acts as, in the case that SHOW ROLES prints.
    pub role: String,
    /// The key of the broker's user: PKCS#8, as PEM or as the base64 of its DER.
    pub private_key: SecretString,
    /// Dialled instead of the account's own address: a private link, a proxy, a simulator. Plain http on loopback only.
    pub base_url: Option<Url>,
    /// More authorities to trust than the system's, as PEM.
    pub ca_pem: Option<String>,
    /// Let the key of a lease itself expire, some hours after its last possible end. Two more round trips per lease;
    /// never tried on a live account.
    pub hard_expiry: bool,
    /// A session policy that a DBA made, for every lease. One more round trip per lease; never tried on a live account.
    pub session_policy: Option<PolicyName>,
    /// Calls of the issue lane at once.
    pub issue_calls: usize,
    /// Calls of the end lane at once, and so users that are ended at once.
    pub end_calls: usize,
    /// Users per page of a listing, at most 10 000.
    pub page: u32,
    /// For a connection to stand.
    pub connect_timeout: Duration,
    /// For one exchange, from the first byte sent to the last read.
    pub request_timeout: Duration,
    /// For one look at the account, or one statement beside making users and ending them, with all its repetitions.
    pub call_timeout: Duration,
    /// For one call that ends users, however many; no statement of it is answered later.
    pub end_timeout: Duration,
}

impl SnowflakeConfig {
    /// With the limits that are right for most accounts.
    #[must_use]
    pub fn new(
        server: ServerName,
        installation: InstallationName,
        account: Account,
        user: String,
        role: String,
        private_key: SecretString,
    ) -> Self {
        Self {
            server,
            installation,
            account,
            user,
            role,
            private_key,
            base_url: None,
            ca_pem: None,
            hard_expiry: false,
            session_policy: None,
            issue_calls: 64,
            end_calls: 32,
            page: 10_000,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(15),
            call_timeout: Duration::from_secs(20),
            end_timeout: END_WITHIN,
        }
    }
}

/// Why an account cannot be used as it is configured.
#[derive(Debug, thiserror::Error)]
pub enum SnowflakeError {
    /// The key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The authorities, or the TLS library.
    #[error("the authorities for the account cannot be used")]
    Certificates(#[source] reqwest::Error),
    /// The address is none.
    #[error("the account's address must be `https://host` with at most a port")]
    Address,
    /// Plain http to another machine.
    #[error("{0} is not https; plain http is for loopback addresses only")]
    Insecure(Url),
}

/// One Snowflake account.
pub struct SnowflakeWarehouse {
    config: SnowflakeConfig,
    api: Api,
}

impl SnowflakeWarehouse {
    /// Checks key, authorities and address; connects at the first use.
    pub fn new(config: SnowflakeConfig, clock: SharedClock) -> Result<Self, SnowflakeError> {
        let api = Api::new(&config, clock)?;
        Ok(Self { config, api })
    }

    /// What a SECURITYADMIN runs once, before anything can connect.
    #[must_use]
    pub fn bootstrap(&self, needs: &Needs) -> String {
        let login = bootstrap::Login {
            role: &self.config.role,
            user: &self.config.user,
            key: self.api.public_key(),
            session_policy: self.config.session_policy.as_ref(),
        };
        bootstrap::script(needs, &self.config.installation, &login)
    }

    /// Whoever ends users now may send statements until then: the last answer comes before the caller's claim is over.
    fn last_act(&self) -> tokio::time::Instant {
        let config = &self.config;
        tokio::time::Instant::now() + config.end_timeout.saturating_sub(config.request_timeout)
    }

    /// A call that has no deadline of its own may be sent until then.
    fn patience(&self) -> tokio::time::Instant {
        tokio::time::Instant::now() + self.config.call_timeout
    }

    /// Runs a statement that changes nothing but what it names, and needs no rows of it.
    async fn act(&self, lane: Lane, statement: &Statement, until: tokio::time::Instant) -> Result<(), WarehouseError> {
        let done = self.api.run(lane, statement, until).await;
        done.map(drop)
            .map_err(|failure| failure.of(statement, &self.config.role))
    }
}

#[async_trait]
impl Warehouse for SnowflakeWarehouse {
    async fn create_user(&self, user: NewUser) -> Result<EngineId, CreateError> {
        self.create(&user).await.map(|()| EngineId::Mark)
    }

    async fn extend_user(&self, user: &UserRef, ends_at: Timestamp) -> Result<(), WarehouseError> {
        self.extend(user, ends_at).await
    }

    async fn end_sessions(&self, user: &UserRef) -> Result<Option<u32>, WarehouseError> {
        self.abort_queries(user).await.map(|()| None)
    }

    async fn end_users(&self, users: &[UserRef]) -> Vec<Result<EndOutcome, WarehouseError>> {
        self.end(users).await
    }

    async fn marked_users(&self) -> Result<Sweep, WarehouseError> {
        self.sweep().await
    }

    async fn end_marked(&self, user: &MarkedUser) -> Result<EndOutcome, WarehouseError> {
        self.end_stray(user).await
    }

    async fn check(&self, needs: &Needs) -> Vec<Finding> {
        self.examine(needs).await
    }
}

#[cfg(test)]
mod tests;
