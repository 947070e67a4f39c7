//! What limits and guards say of the rules: a rule that promises more than a tier allows, a role that another rule
//! must not bring, a connection limit that dbt would run into.

use std::collections::BTreeSet;

use kdbt_api::lease::Engine;
use kdbt_api::name::RoleName;

use super::PolicySet;
use super::check::defined_rule;
use super::document::{Guard, Rule};
use super::unite::connections_for;
use crate::diagnostics::{Diagnostic, Diagnostics, suggestion};

impl PolicySet {
    pub(super) fn check_limits(&self, found: &mut Diagnostics) {
        let known: BTreeSet<&str> = self
            .document
            .targets
            .iter()
            .map(|target| target.value.tier.as_str())
            .collect();
        for tier in self
            .document
            .tiers
            .iter()
            .filter(|tier| !known.contains(tier.name.as_str()))
        {
            let error = Diagnostic::error(format!("no target is of the tier `{}`", tier.name)).code("K003");
            found.push(
                error
                    .at(&tier.span)
                    .label(suggestion(&tier.name, known.iter().copied())),
            );
        }
        for rule in self.document.rules.iter().filter(|rule| !rule.deny) {
            self.check_ttl(rule, found);
            check_connections(rule, found);
        }
        for guard in &self.document.guards {
            for rule in &guard.rules {
                defined_rule(&self.document.rules, rule.value.as_str(), &rule.span, found);
            }
            for rule in &self.document.rules {
                let admitted = guard.rules.iter().any(|admitted| admitted.value == rule.id);
                let brought: Vec<String> = self
                    .brings(rule)
                    .filter(|(engine, role)| guards(guard, *engine, role))
                    .map(|(_, role)| format!("`{role}`"))
                    .collect();
                if !admitted && !brought.is_empty() {
                    let message = format!(
                        "the rule `{}` brings {}, which `protect` reserves",
                        rule.id,
                        brought.join(", ")
                    );
                    let error = Diagnostic::error(message).code("K014").at(&rule.span);
                    found.push(error.help("take the grant out of the rule, or add the rule to the guard"));
                }
            }
        }
    }

    /// Every role of the warehouses that a rule leads to, as far as the policy can know.
    fn brings<'a>(&'a self, rule: &'a Rule) -> impl Iterator<Item = (Engine, &'a RoleName)> {
        let groups = self.sets_of(rule).filter_map(|set| set.postgres.as_ref());
        let owner = rule.create_as.iter().filter_map(|create| create.postgres.as_ref());
        let postgres = groups
            .flat_map(|groups| &groups.roles)
            .chain(owner.map(|role| &role.value));
        let snowflake = self
            .pairs_of(rule)
            .flat_map(|pair| [&pair.grant_role, &pair.session_role]);
        let all = postgres
            .map(|role| (Engine::Postgres, role))
            .chain(snowflake.map(|role| (Engine::Snowflake, role)));
        all.filter(|(engine, _)| self.place_on(rule, *engine).is_some())
    }

    fn check_ttl(&self, rule: &Rule, found: &mut Diagnostics) {
        let Some(ttl) = &rule.ttl else { return };
        let targets = self
            .document
            .targets
            .iter()
            .map(|target| &target.value)
            .filter(|target| rule.on(&target.name));
        for target in targets {
            let cap = self.caps(target, self.writes(rule, target.engine)).min();
            if let Some(cap) = cap.filter(|cap| *cap < ttl.max) {
                let warning = Diagnostic::warning(format!("on `{}` nothing lives longer than {cap}", target.name));
                found.push(warning.code("K010").at(&ttl.span).help(format!("write `max: {cap}`")));
            }
        }
    }
}

/// On Snowflake, where names are in capitals, whatever letters the guard is written in: it never guards less than it says.
fn guards(guard: &Guard, engine: Engine, role: &RoleName) -> bool {
    match engine {
        Engine::Postgres => guard.roles.contains(role),
        Engine::Snowflake => {
            let mut guarded = guard.roles.iter();
            guarded.any(|guarded| guarded.as_str().eq_ignore_ascii_case(role.as_str()))
        }
    }
}

fn check_connections(rule: &Rule, found: &mut Diagnostics) {
    let (Some(limit), Some(threads)) = (&rule.session.connection_limit, &rule.profile.threads) else {
        return;
    };
    let needed = connections_for(threads.value);
    if limit.value < needed {
        let message = format!(
            "two runs at once with {} threads need {needed} connections",
            threads.value
        );
        found.push(Diagnostic::warning(message).code("K025").at(&limit.span));
    }
}
