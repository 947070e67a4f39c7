//! What happened, to whom, by whom: the events that the store chains and keeps. Pure, and never a secret.
//!
//! A lease's state move and its audit row are one commit, so neither can be without the other (I6).

pub mod chain;
pub mod verify;

use kdbt_api::Timestamp;
use kdbt_api::lease::LeaseId;
use kdbt_api::name::{DbUsername, ServerName, TargetName};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::lease::Holder;

/// Who did it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Actor {
    /// A verified identity.
    Identity(Holder),
    /// The broker itself, by clock and catalog.
    Broker,
    /// An operator at the broker's own command line.
    Operator,
}

/// One event. Joined to the warehouse's own logs by lease id and user name, both in clear.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuditEvent {
    /// When, by the broker's clock.
    pub at: Timestamp,
    /// A stable kebab-case code: `lease-booked`, `lease-created`, `sessions-cancelled`, `denied`, `policy-activated`, `slug-registered`.
    pub action: String,
    /// Who.
    pub actor: Actor,
    /// Which lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<LeaseId>,
    /// Which user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<DbUsername>,
    /// Where.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<ServerName>,
    /// What was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<TargetName>,
    /// What else there is to say: rules, policy hash, reason, end reason, error code.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub details: Map<String, Value>,
}
