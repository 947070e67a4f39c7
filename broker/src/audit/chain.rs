//! How audit rows hang together: each row's hash covers the row before, so that no row can be changed, taken out or
//! put in between without a trace (S21). Pure.
//!
//! Every run of a writer has a chain of its own, and the first row of a chain quotes the head before it. Without a
//! key whoever can write the store can compute a whole new chain; then only a head kept elsewhere shows it.

use aws_lc_rs::{digest, hmac};
use kdbt_api::Timestamp;
use kdbt_api::name::InstallationName;
use secrecy::{ExposeSecret, SecretSlice};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Actor, AuditEvent};

/// The action of the first row of every chain.
pub const OPENED: &str = "audit-chain-opened";

/// The key of the chain's MAC, at least 32 bytes. Whoever writes the store but lacks it can forge no row.
#[derive(Clone)]
pub struct AuditKey(hmac::Key);

/// The key is too short to be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the audit key has {0} bytes, at least 32 are needed")]
pub struct AuditKeyTooShort(pub usize);

impl AuditKey {
    /// From its bytes.
    pub fn new(secret: &SecretSlice<u8>) -> Result<Self, AuditKeyTooShort> {
        match secret.expose_secret() {
            bytes if bytes.len() >= 32 => Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, bytes))),
            bytes => Err(AuditKeyTooShort(bytes.len())),
        }
    }
}

impl std::fmt::Debug for AuditKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AuditKey(..)")
    }
}

/// The last row of the audit, by number and hash; kept elsewhere, it shows that the tail was cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The number of the row, from 1, over all chains.
    pub row: i64,
    /// Its hash, 64 hex digits.
    pub hash: String,
}

/// An audit row as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRow {
    /// Its number, from 1, over all chains.
    pub row: i64,
    /// The chain: one per run of a writer.
    pub chain: String,
    /// Its number in the chain, from 1.
    pub n: i64,
    /// The hash of the row before in this chain; empty for the first.
    pub prev: String,
    /// Over chain, number, `prev` and body: 64 hex digits.
    pub hash: String,
    /// The [`AuditEvent`] as JSON, byte for byte as it was hashed.
    pub body: String,
}

impl AuditRow {
    /// What the hash must be, under this key or without one.
    #[must_use]
    pub fn seal(&self, key: Option<&AuditKey>) -> String {
        let Self {
            chain, n, prev, body, ..
        } = self;
        // The body goes last: no other part can hold a newline, so two rows never read as the same text.
        let text = format!("kdbt-audit/1\n{chain}\n{n}\n{prev}\n{body}");
        match key {
            Some(key) => hex(hmac::sign(&key.0, text.as_bytes()).as_ref()),
            None => hex(digest::digest(&digest::SHA256, text.as_bytes()).as_ref()),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(64), |hex, byte| hex + &format!("{byte:02x}"))
}

/// What the first row of a chain says in its details.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Opening {
    /// Whose store it is.
    pub(super) installation: InstallationName,
    /// Whether the rows of this chain bear a MAC or a plain hash.
    pub(super) keyed: bool,
    /// The heads that the writer saw.
    pub(super) heads: Vec<Head>,
}

/// A chain that is being written.
#[derive(Debug)]
pub struct Chain {
    id: String,
    key: Option<AuditKey>,
    end: End,
}

/// How far a chain has come: taken before a commit and put back if that fails.
#[derive(Debug, Clone)]
pub struct End {
    row: i64,
    n: i64,
    hash: String,
}

impl Chain {
    /// A new chain behind `last`, and the event that must be its first row.
    #[must_use]
    pub fn open(
        id: uuid::Uuid,
        key: Option<AuditKey>,
        last: Option<Head>,
        installation: &InstallationName,
        at: Timestamp,
    ) -> (Self, AuditEvent) {
        let end = End {
            row: last.as_ref().map_or(0, |head| head.row),
            n: 0,
            hash: String::new(),
        };
        let opening = Opening {
            installation: installation.clone(),
            keyed: key.is_some(),
            heads: last.into_iter().collect(),
        };
        let event = AuditEvent {
            at,
            action: OPENED.to_owned(),
            actor: Actor::Broker,
            lease: None,
            username: None,
            server: None,
            target: None,
            details: match serde_json::to_value(opening) {
                Ok(Value::Object(details)) => details,
                Ok(_) | Err(_) => Map::new(),
            },
        };
        let chain = Self {
            id: id.simple().to_string(),
            key,
            end,
        };
        (chain, event)
    }

    /// The next row. It counts as written from here on, unless [`Chain::rewind`] takes it back.
    pub fn append(&mut self, event: &AuditEvent) -> Result<AuditRow, serde_json::Error> {
        let mut row = AuditRow {
            row: self.end.row.saturating_add(1),
            chain: self.id.clone(),
            n: self.end.n.saturating_add(1),
            prev: self.end.hash.clone(),
            hash: String::new(),
            body: serde_json::to_string(event)?,
        };
        row.hash = row.seal(self.key.as_ref());
        self.end = End {
            row: row.row,
            n: row.n,
            hash: row.hash.clone(),
        };
        Ok(row)
    }

    /// How far it has come.
    #[must_use]
    pub fn end(&self) -> End {
        self.end.clone()
    }

    /// Takes back what was appended since `end`, because it was not committed.
    pub fn rewind(&mut self, end: End) {
        self.end = end;
    }

    /// The last row, for log and metrics.
    #[must_use]
    pub fn head(&self) -> Head {
        Head {
            row: self.end.row,
            hash: self.end.hash.clone(),
        }
    }
}
