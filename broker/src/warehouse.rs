//! The port to a warehouse: one value per server. Its doc comments are its contract; the contract suite in
//! `tests/` holds every implementation to them.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use kdbt_api::Timestamp;
use kdbt_api::credential::{PublicKey, ScramVerifier};
use kdbt_api::lease::LeaseId;
use kdbt_api::name::{DatabaseName, DbUsername, RoleName, WarehouseName};

use crate::grant::{Access, Profile, Session, SnowflakeRoles};
use crate::lease::{EngineId, SubjectHash, UserRef};
use crate::mark::Mark;
use crate::residue::{DefaultPrivilege, Residue};

pub mod postgres;
pub mod snowflake;

/// All that is needed to make a user, and no secret.
#[derive(Debug, Clone)]
pub struct NewUser {
    /// The lease, for the mark.
    pub lease: LeaseId,
    /// Whose, for the mark and the personal owner role.
    pub subject: SubjectHash,
    /// The name.
    pub username: DbUsername,
    /// What the server stores of the secret.
    pub credential: Credential,
    /// The database of the target.
    pub database: DatabaseName,
    /// The rights.
    pub access: Access,
    /// Settings of the login.
    pub session: Session,
    /// For `search_path`.
    pub profile: Profile,
    /// The native expiry.
    pub ends_at: Timestamp,
    /// For the mark: past this no renewal goes.
    pub max_ends_at: Timestamp,
    /// Nothing is sent after this: the reaper may take the lease for abandoned soon after.
    pub deadline: tokio::time::Instant,
}

/// What a server stores of a secret, and all that it needs to recognise its holder.
#[derive(Debug, Clone)]
pub enum Credential {
    /// PostgreSQL: of a password.
    Verifier(ScramVerifier),
    /// Snowflake: of a key pair.
    PublicKey(PublicKey),
}

/// Why a user was not made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// A role of that name exists. Nothing was made; that role must not be touched.
    #[error("the user name is taken on the server")]
    NameTaken,
    /// The server or a check of ours refused. Nothing was made.
    #[error("the warehouse refused to make the user")]
    Refused(#[source] WarehouseError),
    /// The user may exist, whole or in part: the caller records that its end is due.
    #[error("the user may exist on the warehouse, and is ended")]
    Unknown(#[source] WarehouseError),
}

/// Something failed between us and the server. For operators: `Display` may name roles and objects, never a secret.
#[derive(Debug, thiserror::Error)]
pub enum WarehouseError {
    /// No connection, or it was lost, or it took too long.
    #[error("the server cannot be reached: {0}")]
    Unreachable(String),
    /// The server said no.
    #[error("{what}: {code}{}", hint.as_deref().map(|hint| format!(" ({hint})")).unwrap_or_default())]
    Server {
        /// What was being done.
        what: &'static str,
        /// SQLSTATE or vendor code.
        code: String,
        /// The missing grant or the like, for operators.
        hint: Option<String>,
    },
    /// A guard of ours: the server is not as the design needs it.
    #[error("{0}")]
    Unsafe(String),
    /// The user is not there, or is not the one that is meant.
    #[error("the user is not there any more")]
    Gone,
}

impl WarehouseError {
    /// A stable code for rows, audit and metrics; never message text.
    #[must_use]
    pub fn code(&self) -> &str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::Server { code, .. } => code,
            Self::Unsafe(_) => "unsafe",
            Self::Gone => "gone",
        }
    }
}

/// How ending a user went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndOutcome {
    /// No role of that id, no session and no prepared transaction of it is left.
    Dropped,
    /// It cannot log in and holds no membership, but what is named here keeps it from being dropped.
    Blocked(Vec<String>),
}

/// A user that bears our installation's mark, as one scan of the catalog saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarkedUser {
    /// The name; `None` if it is no lease name (somebody renamed it, or commented a role of their own).
    pub username: Option<DbUsername>,
    /// The role's or user's name as the catalog has it.
    pub rolname: String,
    /// The engine's id.
    pub engine_id: EngineId,
    /// The mark, or the reason why it cannot be read.
    pub mark: Result<Mark, String>,
    /// The native expiry; on Snowflake, which counts days, the mark's end if that is nearer.
    pub native_end: Option<Timestamp>,
    /// Whether it can log in.
    pub can_login: bool,
    /// How many sessions it has; 0 where the engine does not say.
    pub sessions: u32,
    /// Known to have no membership left while its sessions are the broker's to end: its own end is under way, and works
    /// but for what the server takes its time for.
    pub powerless: bool,
}

/// One full look at the catalog.
#[derive(Debug, Clone)]
pub struct Sweep {
    /// Every user of this installation.
    pub users: Vec<MarkedUser>,
    /// The server's clock.
    pub server_time: Timestamp,
    /// How long the answer took; half of it is the doubt in `server_time`.
    pub round_trip: Duration,
    /// The longest that a login may take which has begun: so long after a user's end, one with its secret may still
    /// come to its end, and is then known by the name alone.
    pub login_within: Duration,
}

/// What a policy needs of a server, for `check` and for bootstrap.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Needs {
    /// What each database is needed for.
    pub databases: Vec<DatabaseNeeds>,
}

/// What the policy needs in one database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseNeeds {
    /// The database.
    pub database: DatabaseName,
    /// Roles that leases act as.
    pub owners: Vec<RoleName>,
    /// Group roles that leases or personal roles are members of.
    pub groups: Vec<RoleName>,
    /// Roles that a guard of the policy reserves, guard by guard. Those of one guard trust one another, and no others.
    pub zones: Vec<BTreeSet<RoleName>>,
    /// Whether persons have schemas of their own here.
    pub own_schemas: bool,
    /// Whether personal roles may create schemas themselves.
    pub create_schemas: bool,
    /// The most connections that one lease may hold, for the check against `max_connections`.
    pub connections: u32,
    /// How many targets lead here: each may have as many leases as the configuration allows.
    pub targets: u32,
    /// On Snowflake: the pairs of roles that leases get and use.
    pub roles: Vec<SnowflakeRoles>,
    /// On Snowflake: the virtual warehouses that leases compute with.
    pub warehouses: Vec<WarehouseName>,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// As it should be.
    Ok,
    /// For information.
    Info,
    /// Works, but should be looked at.
    Warning,
    /// Leases here fail, or the promises do not hold.
    Error,
}

/// One line of the doctor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad.
    pub severity: Severity,
    /// A stable kebab-case code.
    pub code: &'static str,
    /// What was seen.
    pub message: String,
    /// What to do, best as SQL to copy.
    pub remedy: Option<String>,
}

/// One call of [`Warehouse::end_users`] acts for no longer where the engine knows users by their names alone (Snowflake):
/// a claim outlasts it, so nobody acts on a name that another claim may have ended and given away meanwhile.
pub const END_WITHIN: Duration = Duration::from_secs(55);

/// One server.
#[async_trait]
pub trait Warehouse: Send + Sync {
    /// Makes the user with all memberships, or nothing. An engine without transactions around users (Snowflake) may
    /// leave one in part: that is `Unknown`, and the caller ends it.
    async fn create_user(&self, user: NewUser) -> Result<EngineId, CreateError>;

    /// Moves the native expiry. `Gone` if the user is not there or is another one.
    async fn extend_user(&self, user: &UserRef, ends_at: Timestamp) -> Result<(), WarehouseError>;

    /// Ends the user's sessions and says how many there were; the user lives on. Where an engine ends only what runs
    /// in them (Snowflake), it does not know how many: `None`.
    async fn end_sessions(&self, user: &UserRef) -> Result<Option<u32>, WarehouseError>;

    /// Ends users: one outcome per user, in order, and one that fails never stops the next. A missing user is
    /// `Dropped`; one whose mark or engine id differs is never touched, and counts as dropped. One that hides its mark
    /// from us (on Snowflake one that another role owns) is not touched either, but is an error: it may be the one.
    async fn end_users(&self, users: &[UserRef]) -> Vec<Result<EndOutcome, WarehouseError>>;

    /// Every user that bears this installation's mark, and the server's time.
    async fn marked_users(&self) -> Result<Sweep, WarehouseError>;

    /// Ends a user that the catalog shows and no lease explains: mark unreadable, or name changed.
    /// Known by engine id and mark; never by name.
    async fn end_marked(&self, user: &MarkedUser) -> Result<EndOutcome, WarehouseError>;

    /// Looks at everything that the policy's needs depend on. Changes nothing.
    async fn check(&self, needs: &Needs) -> Vec<Finding>;

    /// What the roles that leases act as or inherit from own or gave in one of the databases, besides data. Changes
    /// nothing. An engine without such a scan knows of nothing: on Snowflake, look yourself.
    async fn residue(&self, _database: &DatabaseName, _needs: &Needs) -> Result<BTreeSet<Residue>, WarehouseError> {
        Ok(BTreeSet::new())
    }

    /// Gives default privileges again that somebody dropped (S7), all or none. Only those of roles whose rights the
    /// driver has.
    async fn restore(&self, _database: &DatabaseName, _lost: &[DefaultPrivilege]) -> Result<(), WarehouseError> {
        Ok(())
    }
}
