//! What the joined rules come to together: roles are united, limits are the strictest, and where only one can be, the
//! highest rank says which.

use std::collections::BTreeSet;

use kdbt_api::Ttl;
use kdbt_api::lease::Engine;
use kdbt_api::name::RoleName;

use super::PolicySet;
use super::decide::Denied;
use super::document::{OwnSchema, Rule, RuleProfile};
use super::facts::Facts;
use crate::grant::{AccessTemplate, ProfileTemplate, SchemaTemplate, Session, SnowflakeRoles, Target};

/// dbt's threads where no rule says how many.
const DEFAULT_THREADS: u16 = 4;

/// Who owns what the lease creates: one field, from the highest rank that sets it.
pub(super) enum Owner<'a> {
    /// `create_as`.
    Durable(&'a Rule),
    /// `own_schema`.
    Personal(&'a OwnSchema),
    None,
}

impl<'a> Owner<'a> {
    pub(super) fn of(joined: &[&'a Rule]) -> Self {
        let owner = |rule: &&&Rule| rule.create_as.is_some() || rule.own_schema.is_some();
        match highest(joined.iter().filter(owner).copied()) {
            Some(rule) if rule.create_as.is_some() => Self::Durable(rule),
            Some(Rule {
                own_schema: Some(own), ..
            }) => Self::Personal(own),
            Some(_) | None => Self::None,
        }
    }
}

/// The first rule of the highest rank.
fn highest<'a>(rules: impl Iterator<Item = &'a Rule>) -> Option<&'a Rule> {
    rules.reduce(|best, rule| if rule.rank > best.rank { rule } else { best })
}

impl PolicySet {
    /// With which rights. An error only for rules that do not fit the target, which no checked policy has.
    pub(super) fn access(
        &self,
        target: &Target,
        facts: &Facts,
        joined: &[&Rule],
        owner: &Owner<'_>,
    ) -> Result<AccessTemplate, Denied> {
        let access = match (target.engine, owner) {
            (Engine::Snowflake, _) => self.roles(joined, owner).map(AccessTemplate::Snowflake),
            (Engine::Postgres, Owner::Durable(rule)) => {
                let create_as = rule.create_as.as_ref().and_then(|create| create.postgres.as_ref());
                create_as.map(|role| AccessTemplate::Role(role.value.clone()))
            }
            (Engine::Postgres, Owner::Personal(own)) => Some(AccessTemplate::Personal {
                schemas: own.schemas(),
                create_schemas: own.create_schemas,
                groups: self.groups(self.standing(&target.server, facts)),
            }),
            (Engine::Postgres, Owner::None) => Some(AccessTemplate::Read(self.groups(joined.iter().copied()))),
        };
        access.ok_or_else(|| Denied::InvalidOrder(format!("none of these rules names a role on {}", target.engine)))
    }

    fn groups<'a>(&'a self, rules: impl Iterator<Item = &'a Rule>) -> BTreeSet<RoleName> {
        let groups = rules
            .flat_map(|rule| self.sets_of(rule))
            .filter_map(|set| set.postgres.as_ref());
        groups.flat_map(|groups| groups.roles.iter().cloned()).collect()
    }

    /// All wrappers, and the session role of the rule that says who owns what dbt makes, or else of the highest rank.
    fn roles(&self, joined: &[&Rule], owner: &Owner<'_>) -> Option<SnowflakeRoles> {
        let leading = match owner {
            Owner::Durable(rule) => Some(*rule),
            Owner::Personal(_) | Owner::None => {
                highest(joined.iter().copied().filter(|rule| self.session_role(rule).is_some()))
            }
        };
        let pairs = joined.iter().flat_map(|rule| self.pairs_of(rule));
        Some(SnowflakeRoles {
            grants: pairs.map(|pair| pair.grant_role.clone()).collect(),
            session_role: self.session_role(leading?)?.clone(),
        })
    }

    /// What sessions of a rule's leases use on Snowflake.
    pub(super) fn session_role<'a>(&'a self, rule: &'a Rule) -> Option<&'a RoleName> {
        self.pairs_of(rule).next().map(|pair| &pair.session_role)
    }

    pub(super) fn profile(
        &self,
        target: &Target,
        joined: &[&Rule],
        owner: &Owner<'_>,
    ) -> Result<ProfileTemplate, Denied> {
        let threads = joined.iter().filter_map(|rule| rule.profile.threads.as_ref());
        let threads = threads.map(|threads| threads.value).min().unwrap_or(DEFAULT_THREADS);
        let own = match owner {
            Owner::Personal(own) => Some(own.name.clone()),
            Owner::Durable(_) | Owner::None => None,
        };
        let schema: Option<SchemaTemplate> = field(joined, |profile| profile.schema.as_ref())
            .map(|schema| schema.value.clone())
            .or(own);
        let schema =
            schema.ok_or_else(|| Denied::InvalidOrder("none of these rules names a schema for dbt".to_owned()))?;
        let template = ProfileTemplate {
            threads,
            schema,
            search_path: Vec::new(),
            keepalives_idle: None,
            connect_timeout: field(joined, |profile| profile.connect_timeout),
            retries: None,
            warehouse: None,
        };
        Ok(match target.engine {
            Engine::Postgres => {
                let limits = joined.iter().filter_map(|rule| rule.session.connection_limit.as_ref());
                let room = limits.map(|limit| (limit.value / 2).saturating_sub(3).max(1)).min();
                let search_path = field(joined, |profile| profile.search_path.as_ref());
                ProfileTemplate {
                    threads: room.map_or(threads, |room| threads.min(room)),
                    search_path: search_path.map(|path| path.value.clone()).unwrap_or_default(),
                    keepalives_idle: field(joined, |profile| profile.keepalives_idle),
                    retries: field(joined, |profile| profile.retries),
                    ..template
                }
            }
            Engine::Snowflake => {
                let chosen = field(joined, |profile| profile.warehouse.as_ref()).map(|name| &name.value);
                let place = self.document.targets.iter().find(|place| place.value == *target);
                let only = place.and_then(|place| place.warehouses.first());
                ProfileTemplate {
                    retries: field(joined, |profile| profile.connect_retries),
                    warehouse: chosen.or(only).cloned(),
                    ..template
                }
            }
        })
    }
}

/// A field of the profile, from the highest rank that sets it.
fn field<'a, T>(joined: &[&'a Rule], of: impl Fn(&'a RuleProfile) -> Option<T>) -> Option<T> {
    let setting = joined.iter().copied().filter(|rule| of(&rule.profile).is_some());
    highest(setting).and_then(|rule| of(&rule.profile))
}

/// Settings of the login; only those that the engine has.
pub(super) fn session(engine: Engine, joined: &[&Rule], owner: &Owner<'_>, threads: u16) -> Session {
    let least = |field: fn(&Rule) -> Option<Ttl>| joined.iter().filter_map(|rule| field(rule)).min();
    let session = Session {
        connection_limit: connections_for(threads),
        statement_timeout: least(|rule| rule.session.statement_timeout),
        lock_timeout: least(|rule| rule.session.lock_timeout),
        idle_in_transaction_session_timeout: None,
        read_only: false,
        query_tag: None,
    };
    match engine {
        Engine::Postgres => {
            let limits = joined.iter().filter_map(|rule| rule.session.connection_limit.as_ref());
            let read_only = |rule: &&Rule| rule.session.read_only.as_ref().is_some_and(|flag| flag.value);
            Session {
                connection_limit: limits
                    .map(|limit| limit.value)
                    .min()
                    .unwrap_or(session.connection_limit),
                idle_in_transaction_session_timeout: least(|rule| rule.session.idle_in_transaction_session_timeout),
                read_only: matches!(owner, Owner::None) && joined.iter().all(read_only),
                ..session
            }
        }
        Engine::Snowflake => {
            let tagged = highest(joined.iter().copied().filter(|rule| rule.session.query_tag.is_some()));
            Session {
                query_tag: tagged.and_then(|rule| rule.session.query_tag.clone()),
                ..session
            }
        }
    }
}

/// What two dbt runs at once need: a connection per thread and three more, each.
pub(super) fn connections_for(threads: u16) -> u16 {
    threads.saturating_add(3).saturating_mul(2)
}
