//! The embedded store: one SQLite file, one thread that owns it, one broker that may open it.
//!
//! Every answer waits for the commit that it depends on, on disk (`synchronous = FULL`); what was acknowledged
//! outlives the process and the power.

mod book;
mod change;
mod inspect;
mod query;
mod rows;
mod scans;
mod schema;
mod writer;

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use kdbt_api::Timestamp;
use kdbt_api::lease::LeaseId;
use kdbt_api::name::{DatabaseName, InstallationName, ServerName};

pub use self::inspect::{AuditFilter, InspectError, audit_rows, verify_store};
pub use self::schema::OpenError;
use self::writer::{Session, Writer};
use super::{
    Adopted, BookError, Booked, Booking, Change, Claimed, Due, LeaseFilter, LeasePage, LeaseStore, Page, Scan,
    StoreError, StoreHealth,
};
use crate::audit::AuditEvent;
use crate::audit::chain::{AuditKey, Chain, Head};
use crate::clock::SharedClock;
use crate::lease::Lease;
use crate::warehouse::MarkedUser;

/// Between two rounds of forgetting.
const BETWEEN_PURGES: Duration = Duration::from_millis(100);

/// How to open a store.
#[derive(Debug, Clone)]
pub struct SqliteOptions {
    /// Whose store it is; another installation's is refused.
    pub installation: InstallationName,
    /// The key of the audit's MAC; without one the chain is hashed only.
    pub audit_key: Option<AuditKey>,
    /// The largest size of the file in pages of 4 KiB, as if the disk were full.
    #[cfg(any(test, feature = "testkit"))]
    pub max_pages: Option<u32>,
}

impl SqliteOptions {
    /// For this installation, without a key.
    #[must_use]
    pub fn new(installation: InstallationName) -> Self {
        Self {
            installation,
            audit_key: None,
            #[cfg(any(test, feature = "testkit"))]
            max_pages: None,
        }
    }
}

/// The store in an SQLite file. Dropping it finishes what waits and frees the file.
pub struct SqliteStore {
    writer: Writer,
}

impl SqliteStore {
    /// Opens the file, makes it if it is missing, and starts a new audit chain. Blocks.
    pub fn open(path: &Path, options: SqliteOptions, clock: SharedClock) -> Result<Self, OpenError> {
        let lock = schema::lock(path)?;
        let db = schema::open(path, &options.installation)?;
        #[cfg(any(test, feature = "testkit"))]
        if let Some(pages) = options.max_pages {
            db.pragma_update(None, "max_page_count", pages)
                .map_err(|error| OpenError::file(path, &error))?;
        }
        let last = inspect::head(&db).map_err(|error| OpenError::file(path, &error))?;
        let (chain, opening) = Chain::open(
            uuid::Uuid::now_v7(),
            options.audit_key,
            last,
            &options.installation,
            clock.now(),
        );
        let file = schema::Place::of(path).map_err(|error| OpenError::file(path, &error))?;
        let mut session = Session { db, chain, clock, file };
        session
            .savepoint(|session| session.audit(&opening))
            .map_err(|error| OpenError::file(path, &error))?;
        let writer = Writer::start(session, lock).map_err(|error| OpenError::file(path, &error))?;
        Ok(Self { writer })
    }

    /// Forgets up to 500 leases that ended before this time, their idempotency keys with them, and says how many. Names that still rest are kept, and everything for 24 h at least.
    /// The audit keeps its rows.
    pub async fn purge(&self, ended_before: Timestamp, now: Timestamp) -> Result<usize, StoreError> {
        let before = ended_before.min(now - book::KEY_KEPT);
        self.writer
            .run(move |session| -> Result<usize, StoreError> {
                let mut delete = session.db.prepare_cached(
                    "DELETE FROM leases WHERE id IN (SELECT id FROM leases WHERE ended_at IS NOT NULL \
                     AND ended_at < ?1 AND (rest_until IS NULL OR rest_until <= ?2) LIMIT 500)",
                )?;
                Ok(delete.execute([before.as_unix_millis(), now.as_unix_millis()])?)
            })
            .await
    }

    /// The same until nothing is left to forget, with pauses in which others write.
    pub async fn purge_all(&self, ended_before: Timestamp, now: Timestamp) -> Result<usize, StoreError> {
        let mut forgotten = 0;
        loop {
            match self.purge(ended_before, now).await? {
                0 => return Ok(forgotten),
                some => forgotten += some,
            }
            tokio::time::sleep(BETWEEN_PURGES).await;
        }
    }

    /// The audit's head: to be logged hourly and at exit, so that a cut tail shows.
    pub async fn audit_head(&self) -> Result<Head, StoreError> {
        self.writer
            .run(|session| Ok::<_, StoreError>(session.chain.head()))
            .await
    }
}

impl std::fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SqliteStore(..)")
    }
}

/// SQLite's messages name tables and columns, never values.
impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Unavailable(error.to_string())
    }
}

#[async_trait]
impl LeaseStore for SqliteStore {
    async fn book(&self, booking: Booking) -> Result<Booked, BookError> {
        self.writer
            .run(move |session| {
                session.in_place()?;
                book::book(session, booking)
            })
            .await
    }

    async fn record(&self, change: Change) -> Result<Lease, StoreError> {
        self.writer.run(move |session| change::record(session, &change)).await
    }

    async fn claim_due(&self, due: Due<'_>) -> Result<Vec<Claimed>, StoreError> {
        let due = change::Due {
            server: due.server.clone(),
            now: due.now,
            limit: due.limit,
            hold: due.hold,
            provisioning_for: due.provisioning_for,
        };
        self.writer.run(move |session| change::claim_due(session, &due)).await
    }

    async fn next_due(&self, server: &ServerName, provisioning_for: Duration) -> Result<Option<Timestamp>, StoreError> {
        let server = server.clone();
        self.writer
            .run(move |session| query::next_due(session, &server, provisioning_for))
            .await
    }

    async fn adopt(
        &self,
        server: &ServerName,
        found: &MarkedUser,
        ends_at: Timestamp,
        now: Timestamp,
    ) -> Result<Adopted, StoreError> {
        let (server, found) = (server.clone(), found.clone());
        self.writer
            .run(move |session| change::adopt(session, &server, &found, ends_at, now))
            .await
    }

    async fn lease(&self, id: LeaseId) -> Result<Lease, StoreError> {
        self.writer.run(move |session| Ok(session.get(id)?.lease)).await
    }

    async fn leases(&self, filter: &LeaseFilter, page: Page) -> Result<LeasePage, StoreError> {
        let filter = filter.clone();
        self.writer
            .run(move |session| query::leases(session, &filter, page))
            .await
    }

    async fn audit(&self, event: AuditEvent) -> Result<(), StoreError> {
        self.writer.run(move |session| session.audit(&event)).await
    }

    async fn last_scan(&self, server: &ServerName, database: &DatabaseName) -> Result<Option<Scan>, StoreError> {
        let (server, database) = (server.clone(), database.clone());
        self.writer
            .run(move |session| scans::last(session, &server, &database))
            .await
    }

    async fn note_scan(&self, scan: Scan, audit: Vec<AuditEvent>) -> Result<(), StoreError> {
        self.writer
            .run(move |session| scans::note(session, &scan, &audit))
            .await
    }

    async fn health(&self) -> Result<StoreHealth, StoreError> {
        self.writer.run(|session| query::health(session)).await
    }
}
