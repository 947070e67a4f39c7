//! What the policy needs of a server, and what a person may ask for: the policy seen from outside a decision.

use std::collections::BTreeSet;

use kdbt_api::Timestamp;
use kdbt_api::lease::{Engine, TargetView, TtlRange};
use kdbt_api::name::{DatabaseName, RuleId, ServerName};

use super::decide::Denied;
use super::document::{Place, Rule};
use super::facts::Facts;
use super::unite::connections_for;
use super::{Order, PolicySet};
use crate::grant::{AccessTemplate, Grant, SnowflakeRoles, Target};
use crate::identity::Claims;
use crate::warehouse::{DatabaseNeeds, Needs};

impl PolicySet {
    /// What leases need of a server: for doctor, and for the SQL that a DBA runs once. `connections` is the most
    /// that a single lease may hold there; how many leases a target may have, the configuration says.
    #[must_use]
    pub fn needs(&self, server: &ServerName) -> Needs {
        let places = self.document.targets.iter();
        let places: Vec<&Place> = places.filter(|place| place.value.server == *server).collect();
        let databases: BTreeSet<_> = places
            .iter()
            .map(|place| (place.value.engine, &place.value.database))
            .collect();
        let needs = databases.into_iter().map(|(engine, database)| match engine {
            Engine::Postgres => self.postgres_needs(&places, database),
            Engine::Snowflake => self.snowflake_needs(&places, database),
        });
        Needs {
            databases: needs.collect(),
        }
    }

    /// The allow rules that lead to a database, each with the target.
    fn leading<'a>(
        &'a self,
        places: &'a [&'a Place],
        database: &'a DatabaseName,
    ) -> impl Iterator<Item = (&'a Rule, &'a Place)> {
        let rules = self.document.rules.iter().filter(|rule| !rule.deny);
        rules.flat_map(move |rule| {
            let here = move |place: &&Place| place.value.database == *database && rule.on(&place.value.name);
            places.iter().copied().filter(here).map(move |place| (rule, place))
        })
    }

    fn postgres_needs(&self, places: &[&Place], database: &DatabaseName) -> DatabaseNeeds {
        let here = || self.leading(places, database).map(|(rule, _)| rule);
        let owners: BTreeSet<_> = here()
            .filter_map(|rule| rule.create_as.as_ref()?.postgres.as_ref())
            .map(|role| role.value.clone())
            .collect();
        let groups: BTreeSet<_> = here()
            .flat_map(|rule| self.sets_of(rule))
            .flat_map(|set| set.postgres.iter().flat_map(|groups| groups.roles.iter().cloned()))
            .collect();
        let connections = |rule: &Rule| match &rule.session.connection_limit {
            Some(limit) => limit.value,
            None => connections_for(rule.profile.threads.as_ref().map_or(4, |threads| threads.value)),
        };
        DatabaseNeeds {
            database: database.clone(),
            zones: self.document.guards.iter().map(|guard| guard.roles.clone()).collect(),
            owners: owners.into_iter().collect(),
            groups: groups.into_iter().collect(),
            own_schemas: here().any(|rule| rule.own_schema.is_some()),
            create_schemas: here().any(|rule| rule.own_schema.as_ref().is_some_and(|own| own.create_schemas)),
            connections: here().map(connections).max().unwrap_or(0).into(),
            targets: targets_of(places, database),
            roles: Vec::new(),
            warehouses: Vec::new(),
        }
    }

    /// Connections are not counted there.
    fn snowflake_needs(&self, places: &[&Place], database: &DatabaseName) -> DatabaseNeeds {
        let pairs = self.leading(places, database).flat_map(|(rule, _)| self.pairs_of(rule));
        let pairs: BTreeSet<_> = pairs.map(|pair| (&pair.grant_role, &pair.session_role)).collect();
        let warehouses: BTreeSet<_> = self
            .leading(places, database)
            .filter_map(|(rule, place)| match &rule.profile.warehouse {
                Some(chosen) => Some(&chosen.value),
                None => place.warehouses.first(),
            })
            .collect();
        let roles = pairs.into_iter().map(|(grant_role, session_role)| SnowflakeRoles {
            grants: BTreeSet::from([grant_role.clone()]),
            session_role: session_role.clone(),
        });
        DatabaseNeeds {
            database: database.clone(),
            owners: Vec::new(),
            groups: Vec::new(),
            zones: Vec::new(),
            own_schemas: false,
            create_schemas: false,
            connections: 0,
            targets: targets_of(places, database),
            roles: roles.collect(),
            warehouses: warehouses.into_iter().cloned().collect(),
        }
    }

    /// What these claims may ask for, by the name of the target. Nothing about other targets.
    #[must_use]
    pub fn targets_for(&self, claims: &Claims) -> Vec<TargetView> {
        let Ok(facts) = Facts::read(claims, &self.claim_types) else {
            return Vec::new();
        };
        let mut targets: Vec<&Target> = self.document.targets.iter().map(|target| &target.value).collect();
        targets.sort_by_key(|target| &target.name);
        targets
            .into_iter()
            .filter_map(|target| self.view(claims, &facts, target))
            .collect()
    }

    fn view(&self, claims: &Claims, facts: &Facts, target: &Target) -> Option<TargetView> {
        let order = Order {
            target: target.name.clone(),
            rules: Vec::new(),
            ttl: None,
            // The question is what there is to ask for, so a reason counts as given.
            reason: Some("?".to_owned()),
            at: Timestamp::from_unix(0),
        };
        let opt_in: Vec<RuleId> = self
            .matching(target, facts)
            .filter(|rule| rule.opt_in)
            .map(|rule| rule.id.clone())
            .collect();
        let (rules, ttl, access): (Vec<RuleId>, Option<TtlRange>, String) = match self.decide(claims, &order) {
            Ok(grant) => (grant.rules.clone(), Some(grant.ttl_range), access(&grant)),
            Err(Denied::NoMatchingRule { .. }) if !opt_in.is_empty() => {
                (Vec::new(), None, "only by rules that you name".to_owned())
            }
            Err(_) => return None,
        };
        Some(TargetView {
            target: target.name.clone(),
            engine: target.engine,
            tier: target.tier.clone(),
            rules,
            opt_in,
            ttl,
            access,
        })
    }
}

fn targets_of(places: &[&Place], database: &DatabaseName) -> u32 {
    let here = places.iter().filter(|place| place.value.database == *database);
    u32::try_from(here.count()).unwrap_or(u32::MAX)
}

/// What a grant gives, in words.
pub(super) fn access(grant: &Grant) -> String {
    let members = |groups: &BTreeSet<kdbt_api::name::RoleName>| {
        let names: Vec<String> = groups.iter().map(ToString::to_string).collect();
        names.join(", ")
    };
    match &grant.access {
        AccessTemplate::Role(role) => format!("builds as {role}"),
        AccessTemplate::Personal { schemas, groups, .. } => {
            let names: Vec<String> = schemas
                .iter()
                .map(|schema| schema.0.replace("{{username}}", grant.slug.as_str()))
                .collect();
            let reads = if groups.is_empty() {
                String::new()
            } else {
                format!(", member of {}", members(groups))
            };
            format!("owns {}{reads}", names.join(", "))
        }
        AccessTemplate::Read(groups) => format!("member of {}", members(groups)),
        AccessTemplate::Snowflake(roles) => {
            let warehouse = grant.profile.warehouse.as_ref();
            let on = warehouse.map_or_else(String::new, |name| format!(", computing on {name}"));
            format!("acts as {}, holding {}{on}", roles.session_role, members(&roles.grants))
        }
    }
}
