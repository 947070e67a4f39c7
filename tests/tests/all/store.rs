//! The SQLite store against its contract, against a model, and against what happens to files and processes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use kdbt_api::lease::LeaseId;
use kdbt_broker::audit::AuditEvent;
use kdbt_broker::audit::verify::Expected;
use kdbt_broker::clock::ManualClock;
use kdbt_broker::store::LeaseStore;
use kdbt_broker::store::sqlite::{AuditFilter, OpenError, SqliteOptions, SqliteStore, audit_rows, verify_store};
use kdbt_e2e::contract::store::{StoreUnderTest, at};
use kdbt_e2e::store_contract;

#[path = "store/faults.rs"]
mod faults;
#[path = "store/model.rs"]
mod model;

/// A store file in a folder of its own.
struct SqliteFile {
    folder: tempfile::TempDir,
}

impl SqliteFile {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("kdbt.db")
    }

    fn store(&self) -> SqliteStore {
        open(&self.path()).unwrap()
    }
}

fn options() -> SqliteOptions {
    SqliteOptions::new("acme".parse().unwrap())
}

fn open(path: &Path) -> Result<SqliteStore, OpenError> {
    SqliteStore::open(path, options(), ManualClock::at(at(0)))
}

/// All audit events, of a chain that must hold.
fn audit(path: &Path) -> Vec<AuditEvent> {
    let report = verify_store(path, None, &Expected::default()).unwrap();
    assert_eq!(report.findings, []);
    audit_rows(path, AuditFilter::default())
        .unwrap()
        .map(|row| row.unwrap().1)
        .collect()
}

#[async_trait]
impl StoreUnderTest for SqliteFile {
    async fn open(&self) -> Box<dyn LeaseStore> {
        Box::new(self.store())
    }

    async fn audit(&self) -> Vec<AuditEvent> {
        audit(&self.path())
    }

    async fn damage(&self, lease: LeaseId) {
        let db = rusqlite::Connection::open(self.path()).unwrap();
        let sql = "UPDATE leases SET access = '{}' WHERE id = ?1";
        assert_eq!(db.execute(sql, [lease.to_string()]).unwrap(), 1);
    }
}

mod contract {
    super::store_contract!(super::SqliteFile::new);
}

/// Says how many leases a second get through, each two commits; run it in a release build to learn anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, not a test"]
async fn leases_per_second_at_sixteen_bookers() {
    use kdbt_e2e::contract::store::{book, booking, created};
    let file = SqliteFile::new();
    let store = Arc::new(file.store());
    let started = std::time::Instant::now();
    let mut bookers = tokio::task::JoinSet::new();
    for booker in 0..16 {
        let store = store.clone();
        bookers.spawn(async move {
            for n in 0..200 {
                let mut order = booking(&format!("b{booker}x{n}"), 0);
                order.limits.per_rule = u32::MAX;
                order.limits.per_target = u32::MAX;
                let lease = book(&*store, order).await;
                let by = kdbt_broker::audit::Actor::Broker;
                let change = kdbt_broker::store::Change::new(&lease, created(n), by, at(1));
                store.record(change).await.unwrap();
            }
        });
    }
    bookers.join_all().await;
    println!("{:.0} leases/s", 3200.0 / started.elapsed().as_secs_f64());
}
