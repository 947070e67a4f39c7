//! The port to the store of leases. Its doc comments are its contract; the contract suite in `tests/` holds every
//! implementation to them.

pub mod sqlite;

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use kdbt_api::Timestamp;
use kdbt_api::credential::ProofHash;
use kdbt_api::lease::{LeaseId, LeaseStatus};
use kdbt_api::name::{DatabaseName, DbUsername, RuleId, ServerName, TargetName};

use crate::audit::{Actor, AuditEvent};
use crate::grant::Grant;
use crate::lease::{EngineId, Holder, Lease, LeaseEvent};
use crate::residue::Difference;
use crate::warehouse::MarkedUser;

/// A lease to be written down, before the warehouse is touched.
#[derive(Debug, Clone)]
pub struct Booking {
    /// The new lease's id.
    pub id: LeaseId,
    /// Who asks.
    pub holder: Holder,
    /// What the policy gives; rendered with the person's slug in the same commit.
    pub grant: Grant,
    /// When, in the server's time.
    pub now: Timestamp,
    /// The end, in the server's time, whole seconds.
    pub ends_at: Timestamp,
    /// Past this no renewal goes.
    pub max_ends_at: Timestamp,
    /// The reason given.
    pub reason: Option<String>,
    /// For callers without a session.
    pub owner_proof: Option<ProofHash>,
    /// How many leases may be live (not ended) with this one.
    pub limits: Limits,
    /// To recognise a repeated request.
    pub idempotency: Option<Idempotency>,
}

/// How many live leases there may be; quarantined ones count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Of one person on one server: the slots.
    pub per_person: u16,
    /// That one rule joined, over all servers.
    pub per_rule: u32,
    /// On one target.
    pub per_target: u32,
}

/// `Idempotency-Key`: unique per (issuer, subject, azp), kept until 24 h after the lease's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idempotency {
    /// As the caller sent it, 1 to 255 visible ASCII characters.
    pub key: String,
    /// SHA-256 over the parsed body in one canonical form.
    pub body: [u8; 32],
}

/// What booking came to.
#[derive(Debug)]
pub enum Booked {
    /// A new lease in `provisioning`.
    New(Lease),
    /// The lease of the same key and body, wherever it stands by now. A lease whose issue failed has freed its key.
    Replay(Lease),
}

/// Why nothing was booked. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum BookError {
    /// The person has all slots in use.
    #[error("you hold {0} leases on this server, which is the limit")]
    PersonLimit(u16),
    /// The rule has as many leases as it may.
    #[error("rule `{0}` has as many leases as it may")]
    RuleLimit(RuleId),
    /// The target has as many leases as it may.
    #[error("the target has as many leases as it may")]
    TargetLimit,
    /// The idempotency key was used with another body.
    #[error("the idempotency key was used for another request")]
    KeyReused,
    /// With this person's slug a name of the grant is no valid identifier.
    #[error("the policy makes an invalid name for this person: {0}")]
    Name(#[from] kdbt_api::name::NameError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A transition of one lease.
#[derive(Debug, Clone)]
pub struct Change {
    /// The lease.
    pub lease: LeaseId,
    /// What happens to it.
    pub event: LeaseEvent,
    /// By whom, for the audit row.
    pub by: Actor,
    /// When, in the server's time.
    pub now: Timestamp,
    /// The claim under which it is done, if it is the reaper's work. A stale one is [`StoreError::ClaimLost`].
    pub claim: Option<ClaimToken>,
    /// When to look at it again, if it is still live: the backoff of ending and quarantine.
    pub not_before: Option<Timestamp>,
    /// Until when the name is not booked again (S26, and names that a foreign role holds).
    pub rest_until: Option<Timestamp>,
}

impl Change {
    /// A plain change: no claim, no backoff, no rest.
    #[must_use]
    pub fn new(lease: &Lease, event: LeaseEvent, by: Actor, now: Timestamp) -> Self {
        Self {
            lease: lease.id,
            event,
            by,
            now,
            claim: None,
            not_before: None,
            rest_until: None,
        }
    }
}

/// Shows that a row is claimed by us and not by another broker, or by us before a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClaimToken(pub uuid::Uuid);

/// Which leases are due.
#[derive(Debug, Clone, Copy)]
pub struct Due<'a> {
    /// On this server.
    pub server: &'a ServerName,
    /// By this time of the server's clock.
    pub now: Timestamp,
    /// At most so many.
    pub limit: usize,
    /// For how long nobody else may claim them.
    pub hold: Duration,
    /// How long a lease may stand in `provisioning` before it counts as abandoned.
    pub provisioning_for: Duration,
}

/// A lease that is ours to end.
#[derive(Debug, Clone)]
pub struct Claimed {
    /// Already moved to `ending` (by `end_due` or `retry`), with its audit row, in the claiming commit.
    pub lease: Lease,
    /// To be handed back with the outcome.
    pub claim: ClaimToken,
}

/// What became of a marked user that the sweep met.
#[derive(Debug)]
pub enum Adopted {
    /// A new lease, made from the mark.
    New(Lease),
    /// There is a row for that lease already (an issue that was under way, or one that has ended).
    Known(Lease),
}

/// Which leases to list.
#[derive(Debug, Clone, Default)]
pub struct LeaseFilter {
    /// Of this person: (issuer, subject).
    pub holder: Option<(String, String)>,
    /// Of this subject, whatever the issuer.
    pub subject: Option<String>,
    /// On this server.
    pub server: Option<ServerName>,
    /// On this target.
    pub target: Option<TargetName>,
    /// Joined by this rule.
    pub rule: Option<RuleId>,
    /// In one of these states; empty for all.
    pub states: Vec<LeaseStatus>,
    /// Not ended before this.
    pub live_since: Option<Timestamp>,
}

/// A page: newest first, at most `limit` (1 to 500), behind `after`.
#[derive(Debug, Clone, Copy)]
pub struct Page {
    /// The last lease of the page before.
    pub after: Option<LeaseId>,
    /// How many.
    pub limit: usize,
}

/// What `leases` found.
#[derive(Debug, Clone)]
pub struct LeasePage {
    /// Newest first.
    pub leases: Vec<Lease>,
    /// Rows among them that cannot be read as a lease: they keep nobody else from being listed.
    pub unreadable: Vec<UnreadableLease>,
    /// Where the next page starts, if there is one.
    pub next: Option<LeaseId>,
}

/// A row that cannot be read as a lease, and what of it can be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnreadableLease {
    /// Its key: the lease's id, as far as that can be read.
    pub row: String,
    /// What is wrong with it, for operators.
    pub what: String,
    /// Its user's name.
    pub username: Option<DbUsername>,
    /// What its user is for the server.
    pub engine_id: Option<EngineId>,
    /// Where in its life it stands.
    pub status: Option<LeaseStatus>,
}

impl From<&UnreadableLease> for StoreError {
    fn from(unreadable: &UnreadableLease) -> Self {
        Self::Corrupt {
            table: "leases",
            row: unreadable.row.clone(),
            what: unreadable.what.clone(),
        }
    }
}

/// What a scan of one database found to differ from what is approved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scan {
    /// The server.
    pub server: ServerName,
    /// The database.
    pub database: DatabaseName,
    /// When it began, in the server's time.
    pub at: Timestamp,
    /// All differences, old and new.
    pub differences: BTreeSet<Difference>,
}

/// How the store is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoreHealth {
    /// Live leases per server and state, for metrics.
    pub live: Vec<(ServerName, LeaseStatus, u64)>,
    /// The number of the last audit row and its hash in hex: the head that goes to log and metrics.
    pub audit_head: Option<(i64, String)>,
}

/// Why the store did not do it. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No such lease.
    #[error("there is no lease `{0}`")]
    NotFound(LeaseId),
    /// The life of a lease does not have this move.
    #[error(transparent)]
    Illegal(#[from] crate::lease::IllegalTransition),
    /// Somebody else has claimed the lease since.
    #[error("the claim on the lease was lost")]
    ClaimLost,
    /// A row cannot be read. For operators.
    #[error("table `{table}`, row `{row}`: {what}")]
    Corrupt {
        /// The table.
        table: &'static str,
        /// Its key.
        row: String,
        /// What is wrong with it.
        what: String,
    },
    /// Too much is waiting.
    #[error("the store has more waiting than it can take")]
    Busy,
    /// The disk, the file or the database behind it. For operators.
    #[error("the store failed: {0}")]
    Unavailable(String),
}

/// The store of leases.
#[async_trait]
pub trait LeaseStore: Send + Sync {
    /// Slug, slot, limits, idempotency key, `provisioning` row and audit row: one commit. `Err`: nothing was written.
    ///
    /// The slug that `grant.slug` suggests is bound to (issuer, subject) at first use, for ever; a second comer
    /// gets it with a suffix. The slot is the lowest whose name is not live and does not rest.
    async fn book(&self, booking: Booking) -> Result<Booked, BookError>;

    /// A lease's transition and its audit row: one commit. An end asked twice is `Ok` and writes no second row.
    async fn record(&self, change: Change) -> Result<Lease, StoreError>;

    /// Claims the leases that are due: past their end (`expired`), too long in `provisioning` (`issue-abandoned`),
    /// or already `ending` or `quarantined` and past their backoff. Soonest first.
    async fn claim_due(&self, due: Due<'_>) -> Result<Vec<Claimed>, StoreError>;

    /// When the next lease becomes due, in the server's time; a claimed one when its claim runs out.
    async fn next_due(&self, server: &ServerName, provisioning_for: Duration) -> Result<Option<Timestamp>, StoreError>;

    /// A user that the sweep found and the caller has no live lease for: a new row in `active` that ends at
    /// `ends_at` and cannot be renewed, unless there is a row of that lease. Only for readable marks on a lease's
    /// name; its slug is then the person's whom the mark names. [`StoreError::Corrupt`] if another lease holds the
    /// name: that one's user is gone, and once it has ended this one can be adopted.
    async fn adopt(
        &self,
        server: &ServerName,
        found: &MarkedUser,
        ends_at: Timestamp,
        now: Timestamp,
    ) -> Result<Adopted, StoreError>;

    /// One lease.
    async fn lease(&self, id: LeaseId) -> Result<Lease, StoreError>;

    /// A page of leases. A row that cannot be read stands in the page as such, and the others are there all the same.
    async fn leases(&self, filter: &LeaseFilter, page: Page) -> Result<LeasePage, StoreError>;

    /// An event that belongs to no lease.
    async fn audit(&self, event: AuditEvent) -> Result<(), StoreError>;

    /// The scan of this database that was noted last.
    async fn last_scan(&self, server: &ServerName, database: &DatabaseName) -> Result<Option<Scan>, StoreError>;

    /// Notes a scan in place of the last one, and what it found that is new: one commit.
    async fn note_scan(&self, scan: Scan, audit: Vec<AuditEvent>) -> Result<(), StoreError>;

    /// Whether it can write, and some numbers.
    async fn health(&self) -> Result<StoreHealth, StoreError>;
}
