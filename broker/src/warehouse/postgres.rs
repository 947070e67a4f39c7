//! The PostgreSQL driver, 15 and later: a non-superuser with CREATEROLE makes login roles and ends them again.
//!
//! Two lanes on connections that stay open: *issue* (one writer, `writer`) and *end* (a small pool, `ending`), so
//! that a storm on one never stops the other. Nothing that a lease holder can create, set or hold changes what our
//! statements mean: see `connect`.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use kdbt_api::Timestamp;
use kdbt_api::name::{DatabaseName, InstallationName, ServerName};
use secrecy::SecretString;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::connect::Connector;
use self::pool::Pool;
use self::writer::{Job, Writer};
use crate::grant::Access;
use crate::lease::{EngineId, UserRef};
use crate::residue::{DefaultPrivilege, Residue};
use crate::warehouse::{
    CreateError, Credential, EndOutcome, Finding, MarkedUser, Needs, NewUser, Sweep, Warehouse, WarehouseError,
};

pub mod bootstrap;
mod clean;
mod connect;
mod doctor;
mod ending;
mod plan;
mod pool;
mod residue;
mod sql;
mod sweep;
mod writer;

pub use plan::{BROKER, DatabaseRoles};
pub use sql::{Era, ident, literal};

/// How the connection is protected.
#[derive(Debug, Clone)]
pub enum Tls {
    /// TLS; the certificate is signed by this authority, and for this host.
    VerifyFull {
        /// The authority's certificates.
        ca_pem: Option<String>,
    },
    /// None. For loopback, or where the config accepts it.
    Plain,
}

/// One server and how the broker reaches it.
#[derive(Debug, Clone)]
pub struct PostgresConfig {
    /// Its name in config and policies.
    pub server: ServerName,
    /// Whose users are ours.
    pub installation: InstallationName,
    /// What the broker dials.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// A login that acts as [`BROKER`].
    pub user: String,
    /// Its password.
    pub password: SecretString,
    /// The database that both lanes stay connected to; usually `postgres`.
    pub database: String,
    /// How the connection is protected.
    pub tls: Tls,
    /// Before PostgreSQL 16, CREATEROLE may do nearly all that a superuser may; without this, nothing is issued there.
    pub accept_createrole: bool,
    /// How many leases of one target may live at once, for the doctor.
    pub leases_per_target: u32,
    /// Users per message, at most.
    pub issue_batch_max: usize,
    /// Connections of the end lane.
    pub end_connections: usize,
    /// For a connection to stand, login included.
    pub connect_timeout: Duration,
    /// For one message of the issue lane, on the server.
    pub issue_timeout: Duration,
    /// For one lock in the issue lane.
    pub issue_lock_timeout: Duration,
    /// For one message of the end lane, on the server.
    pub end_timeout: Duration,
    /// For one lock in the end lane. Short: readers queue behind a waiting REASSIGN.
    pub end_lock_timeout: Duration,
    /// For one user to be locked out with all sessions gone; then it is reported with what is left.
    pub fence_timeout: Duration,
}

impl PostgresConfig {
    /// With the limits that are right for most servers.
    #[must_use]
    pub fn new(
        server: ServerName,
        installation: InstallationName,
        host: String,
        user: String,
        password: SecretString,
    ) -> Self {
        Self {
            server,
            installation,
            host,
            port: 5432,
            user,
            password,
            database: "postgres".to_owned(),
            tls: Tls::VerifyFull { ca_pem: None },
            accept_createrole: false,
            leases_per_target: 1,
            issue_batch_max: 50,
            end_connections: 2,
            connect_timeout: Duration::from_secs(5),
            issue_timeout: Duration::from_secs(8),
            issue_lock_timeout: Duration::from_secs(2),
            end_timeout: Duration::from_secs(15),
            end_lock_timeout: Duration::from_millis(300),
            fence_timeout: Duration::from_secs(6),
        }
    }
}

/// One PostgreSQL server.
pub struct PostgresWarehouse {
    config: Arc<PostgresConfig>,
    connector: Connector,
    issue: mpsc::Sender<Job>,
    end: Pool,
    /// Users with sessions that the last sweep has seen, by OID: the broker may end those.
    busy: Mutex<HashMap<u32, String>>,
}

/// Jobs that may stand in front of the writer; more wait in their callers, which have deadlines.
const QUEUE: usize = 256;

impl PostgresWarehouse {
    /// Connects at the first use, and stays connected. `stop` ends both lanes, after what stands in the issue queue is
    /// done: it is cancelled when nothing uses this value any more.
    #[must_use]
    pub fn new(config: PostgresConfig, tasks: &TaskTracker, stop: CancellationToken) -> Self {
        let config = Arc::new(config);
        let closed = CancellationToken::new();
        let connector = Connector::new(Arc::clone(&config), tasks.clone(), closed.clone());
        let (issue, queue) = mpsc::channel(QUEUE);
        let writer = Writer::new(Arc::clone(&config), connector.clone());
        tasks.spawn(async move {
            writer.run(queue, stop).await;
            closed.cancel();
        });
        let end = Pool::new(connector.clone(), config.end_connections);
        Self {
            config,
            connector,
            issue,
            end,
            busy: Mutex::default(),
        }
    }

    /// Gives the order to the issue lane, and waits for the answer.
    async fn order(&self, user: NewUser) -> Result<EngineId, CreateError> {
        let stopping = || CreateError::Refused(WarehouseError::Unreachable("the broker is stopping".into()));
        let deadline = user.deadline;
        let (answer, answered) = oneshot::channel();
        // A full queue until the deadline: nothing was sent.
        match tokio::time::timeout_at(deadline, self.issue.send(Job { user, answer })).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(stopping()),
            Err(_) => {
                return Err(CreateError::Refused(WarehouseError::Unreachable(
                    "the issue lane is full".into(),
                )));
            }
        }
        match answered.await {
            Ok(result) => result,
            Err(_) => Err(CreateError::Unknown(WarehouseError::Unreachable(
                "the issue lane has stopped".into(),
            ))),
        }
    }
}

#[async_trait]
impl Warehouse for PostgresWarehouse {
    async fn create_user(&self, user: NewUser) -> Result<EngineId, CreateError> {
        if !matches!(user.credential, Credential::Verifier(_)) || matches!(user.access, Access::Snowflake(_)) {
            return Err(CreateError::Refused(WarehouseError::Unsafe(
                "a PostgreSQL user has a verifier and PostgreSQL's roles".into(),
            )));
        }
        match self.order(user.clone()).await {
            // A lease that leaves others no room in the lock table has its session ended, and the order its turn (S4).
            Err(CreateError::Refused(WarehouseError::Server { code, .. }))
                if code == ending::NO_LOCKS && self.ending().end_the_greediest().await =>
            {
                self.order(user).await
            }
            result => result,
        }
    }

    async fn extend_user(&self, user: &UserRef, ends_at: Timestamp) -> Result<(), WarehouseError> {
        self.ending().extend(user, ends_at).await
    }

    async fn end_sessions(&self, user: &UserRef) -> Result<Option<u32>, WarehouseError> {
        self.ending().end_sessions(user).await.map(Some)
    }

    async fn end_users(&self, users: &[UserRef]) -> Vec<Result<EndOutcome, WarehouseError>> {
        let ends: Vec<_> = users
            .iter()
            .map(|user| async move { self.ending().end(user).await })
            .collect();
        futures_util::stream::iter(ends)
            .buffered(self.config.end_connections.max(1))
            .collect()
            .await
    }

    async fn marked_users(&self) -> Result<Sweep, WarehouseError> {
        self.end.warm().await?;
        let link = self.end.take().await?;
        let sweep = sweep::look(&link, &self.config.installation).await?;
        self.ending().join_busy(&link, &sweep.users).await;
        let busy = sweep.users.iter().filter(|user| user.sessions > 0);
        let busy = busy.filter_map(|user| Some((user.engine_id.oid()?, user.rolname.clone())));
        *self.busy.lock().unwrap_or_else(PoisonError::into_inner) = busy.collect();
        Ok(sweep)
    }

    async fn end_marked(&self, user: &MarkedUser) -> Result<EndOutcome, WarehouseError> {
        self.ending().end_marked(user).await
    }

    async fn check(&self, needs: &Needs) -> Vec<Finding> {
        doctor::check(&self.connector, &self.config, needs).await
    }

    async fn residue(&self, database: &DatabaseName, needs: &Needs) -> Result<BTreeSet<Residue>, WarehouseError> {
        Ok(residue::look(&self.connector, database, needs).await?)
    }

    async fn restore(&self, database: &DatabaseName, lost: &[DefaultPrivilege]) -> Result<(), WarehouseError> {
        Ok(residue::restore(&self.connector, database, lost).await?)
    }
}
