//! What limits and guards say of the rules: a rule that promises more than a tier allows, a role that another rule
//! must not bring, a connection limit that dbt would run into.

use std::collections::BTreeSet;

use kdbt_api::name::RoleName;

use super::PolicySet;
use super::check::defined_rule;
use super::decide::connections_for;
use super::document::Rule;
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
                    .filter(|role| guard.roles.contains(*role))
                    .map(|role| format!("`{role}`"))
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

    /// Every role of the warehouse that a rule leads to, as far as the policy can know.
    fn brings<'a>(&'a self, rule: &'a Rule) -> impl Iterator<Item = &'a RoleName> {
        let groups = self.sets_of(rule).flat_map(|set| &set.member_of);
        groups.chain(rule.create_as.as_ref().map(|role| &role.value))
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
            let cap = self.caps(target, self.writes(rule)).min();
            if let Some(cap) = cap.filter(|cap| *cap < ttl.max) {
                let warning = Diagnostic::warning(format!("on `{}` nothing lives longer than {cap}", target.name));
                found.push(warning.code("K010").at(&ttl.span).help(format!("write `max: {cap}`")));
            }
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
