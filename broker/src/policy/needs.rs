//! What the policy needs of a server, and what a person may ask for: the policy seen from outside a decision.

use std::collections::BTreeSet;

use kdbt_api::Timestamp;
use kdbt_api::lease::{TargetView, TtlRange};
use kdbt_api::name::{DatabaseName, RuleId, ServerName};

use super::decide::{Denied, connections_for};
use super::document::Rule;
use super::facts::Facts;
use super::{Order, PolicySet};
use crate::grant::{AccessTemplate, Grant, Target};
use crate::identity::Claims;
use crate::warehouse::{DatabaseNeeds, Needs};

impl PolicySet {
    /// What leases need of a server: for doctor, and for the SQL that a DBA runs once. `connections` is the most
    /// that a single lease may hold there; how many leases there are, the configuration says.
    #[must_use]
    pub fn needs(&self, server: &ServerName) -> Needs {
        let targets = || {
            self.document
                .targets
                .iter()
                .map(|target| &target.value)
                .filter(|t| t.server == *server)
        };
        let databases: BTreeSet<&DatabaseName> = targets().map(|target| &target.database).collect();
        let needs = databases.into_iter().map(|database| {
            let here = || {
                let on = |rule: &&Rule| targets().any(|target| target.database == *database && rule.on(&target.name));
                self.document.rules.iter().filter(|rule| !rule.deny).filter(on)
            };
            let owners: BTreeSet<_> = here()
                .filter_map(|rule| rule.create_as.as_ref())
                .map(|role| role.value.clone())
                .collect();
            let groups: BTreeSet<_> = here()
                .flat_map(|rule| self.sets_of(rule))
                .flat_map(|set| set.member_of.iter().cloned())
                .collect();
            let connections = |rule: &Rule| match &rule.session.connection_limit {
                Some(limit) => limit.value,
                None => connections_for(rule.profile.threads.as_ref().map_or(4, |threads| threads.value)),
            };
            DatabaseNeeds {
                database: database.clone(),
                owners: owners.into_iter().collect(),
                groups: groups.into_iter().collect(),
                own_schemas: here().any(|rule| rule.own_schema.is_some()),
                create_schemas: here().any(|rule| rule.own_schema.as_ref().is_some_and(|own| own.create_schemas)),
                connections: here().map(connections).max().unwrap_or(0).into(),
                roles: Vec::new(),
                warehouses: Vec::new(),
            }
        });
        Needs {
            databases: needs.collect(),
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
        AccessTemplate::Snowflake(roles) => format!("{}, by {}", roles.session_role, members(&roles.grants)),
    }
}
