//! Leases as rows and rows as leases. A row that does not read as a lease is an error that names it.

use std::str::FromStr;

use kdbt_api::Timestamp;
use kdbt_api::credential::ProofHash;
use kdbt_api::lease::{LeaseId, LeaseStatus};
use kdbt_api::name::DbUsername;
use rusqlite::types::FromSql;
use rusqlite::{OptionalExtension, Row, named_params};
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::{Error as ValueError, StrDeserializer};

use super::writer::Session;
use crate::lease::{EndReason, Holder, Issue, Lease, LeaseState, Origin};
use crate::store::{ClaimToken, StoreError, UnreadableLease};

/// A lease and what the store alone needs to know of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) lease: Lease,
    /// When the reaper must look; `None` while provisioning and once ended.
    pub(super) wake_at: Option<Timestamp>,
    pub(super) claim: Option<ClaimToken>,
    pub(super) rest_until: Option<Timestamp>,
}

impl Session {
    /// One row.
    pub(super) fn find(&self, id: LeaseId) -> Result<Option<Stored>, StoreError> {
        let mut query = self.db.prepare_cached("SELECT * FROM leases WHERE id = ?1")?;
        let mut rows = query.query([id.to_string()])?;
        rows.next()?.map(stored).transpose()
    }

    /// One row that must be there.
    pub(super) fn get(&self, id: LeaseId) -> Result<Stored, StoreError> {
        self.find(id)?.ok_or(StoreError::NotFound(id))
    }

    /// A new row, with the rules that joined.
    pub(super) fn insert(&self, row: &Stored) -> Result<(), StoreError> {
        let lease = &row.lease;
        let issue = lease.issue();
        let holder = issue.map(|issue| &issue.holder);
        let owner = match &lease.origin {
            Origin::Issued(_) => None,
            Origin::Adopted { owner, .. } => owner.as_ref().map(ToString::to_string),
        };
        self.db
            .prepare_cached(
                "INSERT INTO leases (id, server, target, username, slug, slot, engine_id, subject_hash, issuer, subject, \
                 session, display_name, azp, access, reason, owner_proof, owner, issued_at, ends_at, max_ends_at, state, \
                 wake_at) VALUES (:id, :server, :target, :username, :slug, :slot, :engine_id, :subject_hash, :issuer, \
                 :subject, :session, :display_name, :azp, :access, :reason, :owner_proof, :owner, :issued_at, :ends_at, \
                 :max_ends_at, :state, :wake_at)",
            )?
            .execute(named_params! {
                ":id": lease.id.to_string(),
                ":server": lease.server.as_str(),
                ":target": lease.target.as_ref().map(AsRef::<str>::as_ref),
                ":username": lease.username.as_str(),
                ":slug": lease.username.slug().as_str(),
                ":slot": lease.username.slot(),
                ":engine_id": lease.engine_id.as_ref().map(json).transpose()?,
                ":subject_hash": lease.subject_hash().as_str(),
                ":issuer": holder.map(|holder| &holder.issuer),
                ":subject": holder.map(|holder| &holder.subject),
                ":session": holder.and_then(|holder| holder.session.as_ref()),
                ":display_name": holder.map(|holder| &holder.display_name),
                ":azp": holder.map(|holder| &holder.azp),
                ":access": issue.map(|issue| json(&issue.grant)).transpose()?,
                ":reason": issue.and_then(|issue| issue.reason.as_ref()),
                ":owner_proof": issue.and_then(|issue| issue.owner_proof.as_ref()).map(ProofHash::as_bytes),
                ":owner": owner,
                ":issued_at": lease.issued_at.as_unix_millis(),
                ":ends_at": lease.ends_at.as_unix_millis(),
                ":max_ends_at": lease.max_ends_at.as_unix_millis(),
                ":state": lease.state.status_str(),
                ":wake_at": millis(row.wake_at),
            })?;
        let mut rules = self
            .db
            .prepare_cached("INSERT OR IGNORE INTO lease_rules (lease, rule) VALUES (?1, ?2)")?;
        for rule in issue.iter().flat_map(|issue| &issue.grant.rules) {
            rules.execute((lease.id.to_string(), rule.as_str()))?;
        }
        Ok(())
    }

    /// All of a row that can change.
    pub(super) fn update(&self, row: &Stored) -> Result<(), StoreError> {
        let lease = &row.lease;
        let (attempts, blocked_by, ended_at) = match &lease.state {
            LeaseState::Provisioning | LeaseState::Active => (0, None, None),
            LeaseState::Ending { attempts } => (*attempts, None, None),
            LeaseState::Quarantined { attempts, blocked_by } => (*attempts, Some(json(blocked_by)?), None),
            LeaseState::Ended { at } => (0, None, Some(*at)),
        };
        self.db
            .prepare_cached(
                "UPDATE leases SET engine_id = :engine_id, ends_at = :ends_at, state = :state, attempts = :attempts, \
                 blocked_by = :blocked_by, ended_at = :ended_at, end_reason = :end_reason, last_error = :last_error, \
                 wake_at = :wake_at, claim = :claim, rest_until = :rest_until WHERE id = :id",
            )?
            .execute(named_params! {
                ":engine_id": lease.engine_id.as_ref().map(json).transpose()?,
                ":ends_at": lease.ends_at.as_unix_millis(),
                ":state": lease.state.status_str(),
                ":attempts": attempts,
                ":blocked_by": blocked_by,
                ":ended_at": millis(ended_at),
                ":end_reason": lease.end_reason.map(EndReason::as_str),
                ":last_error": lease.last_error,
                ":wake_at": millis(row.wake_at),
                ":claim": row.claim.map(|ClaimToken(token)| token.to_string()),
                ":rest_until": millis(row.rest_until),
                ":id": lease.id.to_string(),
            })?;
        if ended_at.is_some() {
            self.db
                .prepare_cached("UPDATE lease_rules SET live = 0 WHERE lease = ?1 AND live = 1")?
                .execute([lease.id.to_string()])?;
        }
        Ok(())
    }

    /// One value of one row, if there is one.
    pub(super) fn value<T: FromSql>(&self, sql: &str, params: impl rusqlite::Params) -> Result<Option<T>, StoreError> {
        let mut query = self.db.prepare_cached(sql)?;
        Ok(query.query_row(params, |row| row.get(0)).optional()?)
    }
}

fn json(value: &impl serde::Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::Unavailable(format!("a value has no JSON form: {error}")))
}

fn millis(at: Option<Timestamp>) -> Option<i64> {
    at.map(Timestamp::as_unix_millis)
}

/// Reads a row of `leases`, all columns.
pub(super) fn stored(row: &Row<'_>) -> Result<Stored, StoreError> {
    let id = row.get::<_, String>("id")?;
    let row = LeaseRow { row, id: &id };
    let username: DbUsername = row.parse("username")?;
    let lease = Lease {
        id: row.parse("id")?,
        server: row.parse("server")?,
        target: row.parse_opt("target")?,
        username,
        engine_id: row.json("engine_id")?,
        origin: origin(&row)?,
        issued_at: row.time("issued_at")?,
        ends_at: row.time("ends_at")?,
        max_ends_at: row.time("max_ends_at")?,
        state: state(&row)?,
        end_reason: row.word("end_reason")?,
        last_error: row.get("last_error")?,
    };
    Ok(Stored {
        lease,
        wake_at: row.get::<Option<i64>>("wake_at")?.map(Timestamp::from_unix_millis),
        claim: row.parse_opt("claim")?.map(ClaimToken),
        rest_until: row.get::<Option<i64>>("rest_until")?.map(Timestamp::from_unix_millis),
    })
}

/// What can be read of a row that [`stored`] refuses.
pub(super) fn remains(row: &Row<'_>, id: String, what: String) -> UnreadableLease {
    let part = LeaseRow { row, id: &id };
    UnreadableLease {
        username: part.parse_opt("username").ok().flatten(),
        engine_id: part.json("engine_id").ok().flatten(),
        status: part.word("state").ok().flatten(),
        row: id,
        what,
    }
}

fn origin(row: &LeaseRow<'_>) -> Result<Origin, StoreError> {
    let Some(grant) = row.json("access")? else {
        return Ok(Origin::Adopted {
            subject: row.parse("subject_hash")?,
            owner: row.parse_opt("owner")?,
        });
    };
    let proof = row.get::<Option<[u8; 32]>>("owner_proof")?;
    Ok(Origin::Issued(Box::new(Issue {
        holder: Holder {
            issuer: row.get("issuer")?,
            subject: row.get("subject")?,
            session: row.get("session")?,
            display_name: row.get("display_name")?,
            azp: row.get("azp")?,
        },
        grant,
        reason: row.get("reason")?,
        owner_proof: proof.map(ProofHash::from_bytes),
    })))
}

fn state(row: &LeaseRow<'_>) -> Result<LeaseState, StoreError> {
    let status = row.word("state")?.ok_or_else(|| row.corrupt("state", "is missing"))?;
    Ok(match status {
        LeaseStatus::Provisioning => LeaseState::Provisioning,
        LeaseStatus::Active => LeaseState::Active,
        LeaseStatus::Ending => LeaseState::Ending {
            attempts: row.get("attempts")?,
        },
        LeaseStatus::Quarantined => LeaseState::Quarantined {
            attempts: row.get("attempts")?,
            blocked_by: row.json("blocked_by")?.unwrap_or_default(),
        },
        LeaseStatus::Ended => LeaseState::Ended {
            at: row.time("ended_at")?,
        },
    })
}

/// A word of one of our enums, as serde and SQL both write it.
pub(super) fn word<T: for<'de> Deserialize<'de>>(text: &str) -> Result<T, ValueError> {
    let text: StrDeserializer<'_, ValueError> = text.into_deserializer();
    T::deserialize(text)
}

/// The word of a state in rows.
pub(super) fn status_word(status: LeaseStatus) -> &'static str {
    match status {
        LeaseStatus::Provisioning => "provisioning",
        LeaseStatus::Active => "active",
        LeaseStatus::Ending => "ending",
        LeaseStatus::Quarantined => "quarantined",
        LeaseStatus::Ended => "ended",
    }
}

/// A row of `leases` whose columns are read with errors that name it. The values themselves are not told: some are
/// what people wrote.
struct LeaseRow<'a> {
    row: &'a Row<'a>,
    id: &'a str,
}

impl LeaseRow<'_> {
    fn corrupt(&self, column: &str, why: impl std::fmt::Display) -> StoreError {
        StoreError::Corrupt {
            table: "leases",
            row: self.id.to_owned(),
            what: format!("`{column}`: {why}"),
        }
    }

    fn get<T: FromSql>(&self, column: &str) -> Result<T, StoreError> {
        self.row.get(column).map_err(|error| self.corrupt(column, error))
    }

    fn parse_opt<T: FromStr<Err: std::fmt::Display>>(&self, column: &str) -> Result<Option<T>, StoreError> {
        let text = self.get::<Option<String>>(column)?;
        text.map(|text| text.parse().map_err(|error| self.corrupt(column, error)))
            .transpose()
    }

    fn parse<T: FromStr<Err: std::fmt::Display>>(&self, column: &str) -> Result<T, StoreError> {
        self.parse_opt(column)?
            .ok_or_else(|| self.corrupt(column, "is missing"))
    }

    fn json<T: for<'de> Deserialize<'de>>(&self, column: &str) -> Result<Option<T>, StoreError> {
        let text = self.get::<Option<String>>(column)?;
        text.map(|text| serde_json::from_str(&text).map_err(|error| self.corrupt(column, error)))
            .transpose()
    }

    fn word<T: for<'de> Deserialize<'de>>(&self, column: &str) -> Result<Option<T>, StoreError> {
        let text = self.get::<Option<String>>(column)?;
        text.map(|text| word(&text).map_err(|error| self.corrupt(column, error)))
            .transpose()
    }

    fn time(&self, column: &str) -> Result<Timestamp, StoreError> {
        self.get(column).map(Timestamp::from_unix_millis)
    }
}
