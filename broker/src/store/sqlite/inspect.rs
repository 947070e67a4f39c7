//! The audit for operators: read-only, next to a running broker or on a copy of the file.

use std::collections::VecDeque;
use std::path::Path;

use kdbt_api::Timestamp;
use kdbt_api::lease::LeaseId;
use rusqlite::{Connection, Row};

use super::schema::{self, OpenError};
use crate::audit::AuditEvent;
use crate::audit::chain::{AuditKey, AuditRow, Head};
use crate::audit::verify::{Expected, Report, verify};
use crate::store::StoreError;

/// How many rows are read at a time.
const CHUNK: i64 = 500;

/// Why the audit cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The file.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The rows.
    #[error(transparent)]
    Read(#[from] StoreError),
}

/// Checks the whole audit of a store: `kdbt-broker audit verify`.
pub fn verify_store(path: &Path, key: Option<&AuditKey>, expected: &Expected) -> Result<Report, InspectError> {
    Ok(verify(Rows::open(path)?, key, expected)?)
}

/// Which audit rows to show.
#[derive(Debug, Clone, Default)]
pub struct AuditFilter {
    /// About this lease.
    pub lease: Option<LeaseId>,
    /// With this action.
    pub action: Option<String>,
    /// Not before this time.
    pub since: Option<Timestamp>,
    /// Behind the row of this number.
    pub after: Option<i64>,
}

impl AuditFilter {
    fn shows(&self, event: &AuditEvent) -> bool {
        self.lease.is_none_or(|lease| event.lease == Some(lease))
            && self.action.as_ref().is_none_or(|action| event.action == *action)
            && self.since.is_none_or(|since| event.at >= since)
    }
}

/// The audit rows that a filter lets through, oldest first, with their events: `kdbt-broker audit show`.
pub fn audit_rows(
    path: &Path,
    filter: AuditFilter,
) -> Result<impl Iterator<Item = Result<(Head, AuditEvent), StoreError>>, InspectError> {
    let mut rows = Rows::open(path)?;
    rows.after = filter.after.unwrap_or_default();
    let events = rows.map(|row| {
        let row = row?;
        match serde_json::from_str::<AuditEvent>(&row.body) {
            Ok(event) => Ok((
                Head {
                    row: row.row,
                    hash: row.hash,
                },
                event,
            )),
            Err(error) => Err(StoreError::Corrupt {
                table: "audit",
                row: row.row.to_string(),
                what: format!("`body`: {error}"),
            }),
        }
    });
    Ok(events.filter(move |row| row.as_ref().map_or(true, |(_, event)| filter.shows(event))))
}

/// All audit rows in the order of their numbers, a chunk at a time.
struct Rows {
    db: Connection,
    after: i64,
    read: VecDeque<AuditRow>,
}

impl Rows {
    fn open(path: &Path) -> Result<Self, OpenError> {
        Ok(Self {
            db: schema::open_read_only(path)?,
            after: 0,
            read: VecDeque::new(),
        })
    }

    fn chunk(&self) -> rusqlite::Result<VecDeque<AuditRow>> {
        let mut query = self
            .db
            .prepare_cached("SELECT * FROM audit WHERE row > ?1 ORDER BY row LIMIT ?2")?;
        query.query_map([self.after, CHUNK], audit_row)?.collect()
    }
}

impl Iterator for Rows {
    type Item = Result<AuditRow, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.read.is_empty() {
            match self.chunk() {
                Ok(rows) => self.read = rows,
                Err(error) => return Some(Err(error.into())),
            }
        }
        let row = self.read.pop_front()?;
        self.after = row.row;
        Some(Ok(row))
    }
}

fn audit_row(row: &Row<'_>) -> rusqlite::Result<AuditRow> {
    Ok(AuditRow {
        row: row.get("row")?,
        chain: row.get("chain")?,
        n: row.get("n")?,
        prev: row.get("prev")?,
        hash: row.get("hash")?,
        body: row.get("body")?,
    })
}

/// The last row, for the next chain to quote.
pub(super) fn head(db: &Connection) -> rusqlite::Result<Option<Head>> {
    let mut query = db.prepare("SELECT row, hash FROM audit ORDER BY row DESC LIMIT 1")?;
    let mut rows = query.query([])?;
    match rows.next()? {
        Some(row) => Ok(Some(Head {
            row: row.get(0)?,
            hash: row.get(1)?,
        })),
        None => Ok(None),
    }
}
