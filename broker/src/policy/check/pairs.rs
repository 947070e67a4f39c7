//! What is wrong with two rules together: they contradict each other where both hold, or one adds nothing.

use std::collections::BTreeSet;

use kdbt_api::lease::Engine;

use super::super::PolicySet;
use super::super::document::{Condition, CreateAs, Rule};
use crate::diagnostics::{Diagnostic, Diagnostics};

impl PolicySet {
    pub(super) fn check_pairs(&self, found: &mut Diagnostics) {
        let allow: Vec<&Rule> = self.document.rules.iter().filter(|rule| !rule.deny).collect();
        for (n, first) in allow.iter().enumerate() {
            for second in allow.iter().skip(n + 1) {
                if first.rank == second.rank && !exclusive(first, second) {
                    self.check_conflicts(first, second, found);
                }
                if let Some((weak, strong)) = shadowed(first, second).or_else(|| shadowed(second, first)) {
                    let warning =
                        Diagnostic::warning(format!("the rule `{}` adds nothing to `{}`", weak.id, strong.id));
                    found.push(warning.code("K005").at(&weak.span));
                }
            }
        }
    }

    /// Same rank, same target, and different answers to a question that has one answer only.
    fn check_conflicts(&self, first: &Rule, second: &Rule, found: &mut Diagnostics) {
        let targets = self.document.targets.iter().map(|target| &target.value);
        let shared: BTreeSet<Engine> = targets
            .filter(|target| first.on(&target.name) && second.on(&target.name))
            .map(|target| target.engine)
            .collect();
        if shared.is_empty() {
            return;
        }
        let owners = if shared.contains(&Engine::Postgres) && !same_owner(first, second) {
            Some("who owns what dbt makes")
        } else if shared.contains(&Engine::Snowflake) && !self.same_session_role(first, second) {
            Some("the role that sessions use")
        } else {
            None
        };
        let message = |what| {
            format!(
                "`{}` and `{}` can join together, and disagree on {what}",
                first.id, second.id
            )
        };
        if let Some(what) = owners {
            let error = Diagnostic::error(message(what)).code("K013").at(&second.span);
            found.push(error.help("give one of them a higher `rank`, or let one exclude the other"));
            return;
        }
        let schema = |rule: &Rule| {
            let own = rule.own_schema.as_ref().map(|own| own.name.0.clone());
            rule.profile
                .schema
                .as_ref()
                .map(|schema| schema.value.0.clone())
                .or(own)
        };
        let warehouse = |rule: &Rule| rule.profile.warehouse.as_ref().map(|name| name.value.to_string());
        for (what, one, other) in [
            ("dbt's schema", schema(first), schema(second)),
            ("the virtual warehouse", warehouse(first), warehouse(second)),
        ] {
            if let (Some(one), Some(other)) = (one, other)
                && one != other
            {
                let warning = Diagnostic::warning(message(what)).code("K013").at(&second.span);
                found.push(warning.help(format!(
                    "`{one}` wins as it comes first; give one of them a higher `rank`"
                )));
            }
        }
    }

    /// A `create_as` beats what others would use.
    fn same_session_role(&self, first: &Rule, second: &Rule) -> bool {
        let decides = first.create_as.is_some() == second.create_as.is_some();
        match (self.session_role(first), self.session_role(second)) {
            (Some(one), Some(other)) => !decides || one == other,
            (None, _) | (_, None) => true,
        }
    }
}

/// Whether `weak` surely holds wherever `strong` does: every kind that it asks for is asked for there, by fewer values.
pub(super) fn covers(weak: &Condition, strong: &Condition) -> bool {
    fn list<T: PartialEq>(weak: Option<&Vec<T>>, strong: Option<&Vec<T>>) -> bool {
        match (weak, strong) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(weak), Some(strong)) => strong.iter().all(|value| weak.contains(value)),
        }
    }
    weak.kinds() > 0
        && list(weak.realm_roles.as_ref(), strong.realm_roles.as_ref())
        && list(weak.groups.as_ref(), strong.groups.as_ref())
        && weak
            .client_roles
            .iter()
            .all(|(client, roles)| list(Some(roles), strong.client_roles.get(client)))
        && weak
            .claims
            .iter()
            .all(|(name, values)| list(Some(values), strong.claims.get(name)))
}

/// Whether two rules can surely never join together: one excludes all whom the other admits.
fn exclusive(first: &Rule, second: &Rule) -> bool {
    let excludes = |one: &Rule, other: &Rule| one.unless.iter().any(|unless| covers(unless, &other.when));
    excludes(first, second) || excludes(second, first)
}

fn same_owner(first: &Rule, second: &Rule) -> bool {
    let role = |create: &CreateAs| create.postgres.as_ref().map(|role| role.value.clone());
    match (
        &first.create_as,
        &second.create_as,
        &first.own_schema,
        &second.own_schema,
    ) {
        (Some(one), Some(other), None, None) => role(one) == role(other),
        (None, None, Some(one), Some(other)) => one.same_as(other),
        (Some(_), _, _, Some(_)) | (_, Some(_), Some(_), _) => false,
        _ => true,
    }
}

/// Whether whoever gets `weak` gets all of it from `strong` too.
fn shadowed<'a>(weak: &'a Rule, strong: &'a Rule) -> Option<(&'a Rule, &'a Rule)> {
    let plain =
        |rule: &Rule| !rule.opt_in && !rule.reason_required && rule.create_as.is_none() && rule.own_schema.is_none();
    let has = |set: &str| strong.grants.iter().any(|other| other.value == set);
    let all = weak.targets.iter().all(|target| strong.on(&target.value))
        && weak.grants.iter().all(|set| has(&set.value))
        && strong.unless.is_empty()
        && covers(&strong.when, &weak.when);
    (plain(weak) && plain(strong) && all).then_some((weak, strong))
}
