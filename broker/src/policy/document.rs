//! What stands in the policy files, typed, each value with its place; nothing is resolved or judged here.

mod read;
mod snowflake;

use std::collections::{BTreeMap, BTreeSet};

use kdbt_api::lease::Engine;
use kdbt_api::name::{RoleName, RuleId, TargetName, WarehouseName};
use kdbt_api::{Timestamp, Ttl};
use serde_json::Value as Json;

use crate::diagnostics::Span;
use crate::grant::{SchemaTemplate, Target};
use crate::yaml::Spanned;

/// All files together.
#[derive(Debug, Default)]
pub(super) struct Document {
    pub(super) targets: Vec<Place>,
    pub(super) grants: Vec<GrantSet>,
    pub(super) rules: Vec<Rule>,
    pub(super) tiers: Vec<Tier>,
    pub(super) guards: Vec<Guard>,
    pub(super) tests: Vec<Case>,
}

/// A target, and what rules may choose there.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) value: Target,
    pub(super) span: Span,
    /// The virtual warehouses; at least one on Snowflake, none on PostgreSQL.
    pub(super) warehouses: Vec<WarehouseName>,
}

/// Rights with a name, for one engine or for both.
#[derive(Debug)]
pub(super) struct GrantSet {
    pub(super) name: String,
    pub(super) span: Span,
    pub(super) postgres: Option<Membership>,
    pub(super) snowflake: Option<Wrapper>,
}

impl GrantSet {
    pub(super) fn fits(&self, engine: Engine) -> bool {
        match engine {
            Engine::Postgres => self.postgres.is_some(),
            Engine::Snowflake => self.snowflake.is_some(),
        }
    }

    /// Whether its roles can write there; then `max_ttl_write` holds.
    pub(super) fn writes(&self, engine: Engine) -> bool {
        match engine {
            Engine::Postgres => self.postgres.as_ref().is_some_and(|groups| groups.write),
            Engine::Snowflake => self.snowflake.as_ref().is_some_and(|wrapper| wrapper.write),
        }
    }
}

/// On PostgreSQL: the DBA's group roles.
#[derive(Debug)]
pub(super) struct Membership {
    pub(super) roles: BTreeSet<RoleName>,
    pub(super) write: bool,
}

/// On Snowflake: the DBA's role, in a wrapper that the broker may grant.
#[derive(Debug)]
pub(super) struct Wrapper {
    pub(super) pair: RolePair,
    pub(super) write: bool,
}

/// What a Snowflake user is granted, and what its sessions use.
#[derive(Debug)]
pub(super) struct RolePair {
    pub(super) span: Span,
    /// The role that the broker owns.
    pub(super) grant_role: RoleName,
    /// The DBA's role, which the other one holds.
    pub(super) session_role: RoleName,
}

/// Who owns what dbt makes, for one engine or for both.
#[derive(Debug)]
pub(super) struct CreateAs {
    pub(super) span: Span,
    pub(super) postgres: Option<Spanned<RoleName>>,
    pub(super) snowflake: Option<RolePair>,
}

impl CreateAs {
    pub(super) fn fits(&self, engine: Engine) -> bool {
        match engine {
            Engine::Postgres => self.postgres.is_some(),
            Engine::Snowflake => self.snowflake.is_some(),
        }
    }
}

/// A key of `session` or `profile` that means something on one engine only.
#[derive(Debug)]
pub(super) struct OnlyOn {
    pub(super) key: &'static str,
    pub(super) span: Span,
    pub(super) engine: Engine,
}

/// Who gets what, where, how long; or who gets nothing.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a key of the language, and any of them may be set"
)]
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) id: RuleId,
    pub(super) span: Span,
    pub(super) deny: bool,
    pub(super) why: Option<String>,
    pub(super) everyone: bool,
    pub(super) when: Condition,
    pub(super) unless: Vec<Condition>,
    pub(super) targets: Vec<Spanned<TargetName>>,
    pub(super) grants: Vec<Spanned<String>>,
    pub(super) create_as: Option<CreateAs>,
    pub(super) own_schema: Option<OwnSchema>,
    pub(super) ttl: Option<RuleTtl>,
    pub(super) session: RuleSession,
    pub(super) profile: RuleProfile,
    pub(super) opt_in: bool,
    pub(super) reason_required: bool,
    pub(super) rank: i32,
}

impl Rule {
    pub(super) fn on(&self, target: &TargetName) -> bool {
        self.targets.iter().any(|listed| listed.value == *target)
    }

    /// Whether it holds without being asked for: such rules make up what a person's own role can do.
    pub(super) fn standing(&self) -> bool {
        !self.deny && !self.opt_in && !self.reason_required && self.create_as.is_none()
    }
}

/// An AND of its kinds; each list is an any-of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) realm_roles: Option<Vec<String>>,
    pub(super) client_roles: BTreeMap<String, Vec<String>>,
    pub(super) groups: Option<Vec<String>>,
    pub(super) claims: BTreeMap<String, Vec<ClaimValue>>,
}

impl Condition {
    pub(super) fn kinds(&self) -> usize {
        usize::from(self.realm_roles.is_some())
            + usize::from(self.groups.is_some())
            + self.client_roles.len()
            + self.claims.len()
    }
}

/// A value of a claim, in a policy or in a token.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ClaimValue {
    Text(String),
    Flag(bool),
}

#[derive(Debug, Clone)]
pub(super) struct OwnSchema {
    pub(super) span: Span,
    pub(super) name: SchemaTemplate,
    pub(super) also: Vec<String>,
    pub(super) extra: Vec<SchemaTemplate>,
    pub(super) create_schemas: bool,
}

impl OwnSchema {
    /// Every schema that it means, the main one first.
    pub(super) fn schemas(&self) -> Vec<SchemaTemplate> {
        let also = self
            .also
            .iter()
            .map(|suffix| SchemaTemplate(format!("{}_{suffix}", self.name.0)));
        let mut all = vec![self.name.clone()];
        all.extend(also);
        all.extend(self.extra.iter().cloned());
        all
    }

    pub(super) fn same_as(&self, other: &Self) -> bool {
        self.schemas() == other.schemas() && self.create_schemas == other.create_schemas
    }
}

#[derive(Debug, Clone)]
pub(super) struct RuleTtl {
    pub(super) span: Span,
    pub(super) min: Option<Ttl>,
    pub(super) default: Ttl,
    pub(super) max: Ttl,
}

impl RuleTtl {
    /// One minute, unless the rule says otherwise or gives less by default.
    pub(super) fn least(&self) -> Ttl {
        let minute = Ttl::from_secs(60).unwrap_or(Ttl::SHORTEST);
        self.min.unwrap_or_else(|| minute.min(self.default))
    }
}

#[derive(Debug, Default)]
pub(super) struct RuleSession {
    pub(super) connection_limit: Option<Spanned<u16>>,
    pub(super) statement_timeout: Option<Ttl>,
    pub(super) lock_timeout: Option<Ttl>,
    pub(super) idle_in_transaction_session_timeout: Option<Ttl>,
    pub(super) read_only: Option<Spanned<bool>>,
    pub(super) query_tag: Option<String>,
    pub(super) only: Vec<OnlyOn>,
}

#[derive(Debug, Default)]
pub(super) struct RuleProfile {
    pub(super) threads: Option<Spanned<u16>>,
    pub(super) schema: Option<Spanned<SchemaTemplate>>,
    pub(super) search_path: Option<Spanned<Vec<SchemaTemplate>>>,
    pub(super) keepalives_idle: Option<u32>,
    pub(super) connect_timeout: Option<u32>,
    pub(super) retries: Option<u32>,
    pub(super) connect_retries: Option<u32>,
    pub(super) warehouse: Option<Spanned<WarehouseName>>,
    pub(super) only: Vec<OnlyOn>,
}

/// Caps that hold for all targets of a tier.
#[derive(Debug)]
pub(super) struct Tier {
    pub(super) name: String,
    pub(super) span: Span,
    pub(super) max_ttl: Option<Ttl>,
    pub(super) max_ttl_write: Option<Ttl>,
}

/// Only these rules may bring these roles.
#[derive(Debug)]
pub(super) struct Guard {
    pub(super) roles: BTreeSet<RoleName>,
    pub(super) rules: Vec<Spanned<RuleId>>,
}

/// A test: an order and what must come of it.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) name: String,
    pub(super) span: Span,
    pub(super) claims: serde_json::Map<String, Json>,
    pub(super) target: TargetName,
    pub(super) rules: Vec<RuleId>,
    pub(super) ttl: Option<Ttl>,
    pub(super) reason: Option<String>,
    pub(super) at: Option<Timestamp>,
    pub(super) expect: Expectation,
}

/// What a test expects; what is `None` is not looked at.
#[derive(Debug, Default)]
pub(super) struct Expectation {
    pub(super) denied: Option<Spanned<String>>,
    pub(super) rules: Option<BTreeSet<RuleId>>,
    pub(super) member_of: Option<BTreeSet<RoleName>>,
    /// `none`, or a role.
    pub(super) create_as: Option<String>,
    pub(super) own_schema: Option<bool>,
    pub(super) grant_roles: Option<BTreeSet<RoleName>>,
    pub(super) session_role: Option<RoleName>,
    pub(super) warehouse: Option<WarehouseName>,
    pub(super) default_ttl: Option<Ttl>,
    pub(super) max_ttl: Option<Ttl>,
}
