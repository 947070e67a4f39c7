//! The last scan of each database.

use kdbt_api::Timestamp;
use kdbt_api::name::{DatabaseName, ServerName};
use rusqlite::{OptionalExtension as _, params};

use super::writer::Session;
use crate::audit::AuditEvent;
use crate::store::{Scan, StoreError};

pub(super) fn last(
    session: &Session,
    server: &ServerName,
    database: &DatabaseName,
) -> Result<Option<Scan>, StoreError> {
    let found: Option<(i64, String)> = session
        .db
        .prepare_cached("SELECT at, differences FROM scans WHERE server = ?1 AND database = ?2")?
        .query_row([server.as_str(), database.as_str()], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()?;
    let Some((at, differences)) = found else {
        return Ok(None);
    };
    let differences = serde_json::from_str(&differences).map_err(|error| StoreError::Corrupt {
        table: "scans",
        row: format!("{server}, {database}"),
        what: format!("`differences`: {error}"),
    })?;
    Ok(Some(Scan {
        server: server.clone(),
        database: database.clone(),
        at: Timestamp::from_unix_millis(at),
        differences,
    }))
}

pub(super) fn note(session: &mut Session, scan: &Scan, audit: &[AuditEvent]) -> Result<(), StoreError> {
    let differences = serde_json::to_string(&scan.differences)
        .map_err(|error| StoreError::Unavailable(format!("a scan has no JSON form: {error}")))?;
    session
        .db
        .prepare_cached(
            "INSERT INTO scans (server, database, at, differences) VALUES (?1, ?2, ?3, ?4) \
             ON CONFLICT (server, database) DO UPDATE SET at = excluded.at, differences = excluded.differences",
        )?
        .execute(params![
            scan.server.as_str(),
            scan.database.as_str(),
            scan.at.as_unix_millis(),
            differences
        ])?;
    audit.iter().try_for_each(|event| session.audit(event))
}
