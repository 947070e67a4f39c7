//! Why an order is filled or not: a line per rule, with its place, and the outcome.

use std::fmt::{self, Write as _};

use super::decide::{Denied, applies};
use super::document::Rule;
use super::facts::Facts;
use super::needs::access;
use super::{Order, PolicySet};
use crate::diagnostics::Span;
use crate::grant::Grant;
use crate::identity::Claims;

/// The story of a decision. `Display` tells all of it, for those who may read the policy.
#[derive(Debug, Clone)]
pub struct Explanation {
    /// What was decided.
    pub outcome: Result<Grant, Denied>,
    lines: Vec<Line>,
}

#[derive(Debug, Clone)]
struct Line {
    rule: String,
    mark: &'static str,
    what: String,
    place: Span,
    matches: bool,
}

impl PolicySet {
    /// Decides, and says of every rule on the target why it joins or not.
    #[must_use]
    pub fn explain(&self, claims: &Claims, order: &Order) -> Explanation {
        let outcome = self.decide(claims, order);
        let facts = Facts::read(claims, &self.claim_types).unwrap_or_default();
        let rules = self.document.rules.iter().filter(|rule| rule.on(&order.target));
        Explanation {
            outcome,
            lines: rules.map(|rule| line(rule, &facts, order)).collect(),
        }
    }
}

fn line(rule: &Rule, facts: &Facts, order: &Order) -> Line {
    let misses = rule.when.misses(facts);
    let matches = applies(rule, facts);
    let named = order.rules.contains(&rule.id);
    let (mark, what) = if !misses.is_empty() {
        ("-", misses.join("; "))
    } else if !matches {
        ("-", "excluded by its `unless`".to_owned())
    } else if rule.deny {
        ("x", "denies".to_owned())
    } else if !order.rules.is_empty() && !named {
        ("-", "matches, but is not among the named rules".to_owned())
    } else if rule.opt_in && !named {
        ("-", "matches, but joins only if it is named".to_owned())
    } else {
        ("+", "joins".to_owned())
    };
    Line {
        rule: rule.id.to_string(),
        mark,
        what,
        place: rule.span.clone(),
        matches: matches && !rule.deny,
    }
}

impl Explanation {
    /// The story for the person who asked: only the rules that are theirs, and not whether a target exists.
    #[must_use]
    pub fn public(&self) -> String {
        let mut text = String::new();
        let refused = matches!(self.outcome, Err(Denied::DenyRule { .. }));
        for line in self.lines.iter().filter(|line| line.matches && !refused) {
            // Writing to a `String` cannot fail.
            let _ = writeln!(text, "{} {}: {}", line.mark, line.rule, line.what);
        }
        text.push_str(&self.conclusion());
        text
    }

    fn conclusion(&self) -> String {
        match &self.outcome {
            Ok(grant) => format!(
                "allowed on `{}`: {}; for {} (from {} to {})",
                grant.target.name,
                access(grant),
                grant.ttl,
                grant.ttl_range.min,
                grant.ttl_range.max
            ),
            Err(denied) => {
                let hint = denied.hint().map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
                format!("denied ({}): {denied}{hint}", denied.public_code())
            }
        }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.lines {
            writeln!(f, "{} {}: {}  [{}]", line.mark, line.rule, line.what, line.place)?;
        }
        match &self.outcome {
            Err(denied @ Denied::UnknownTarget { target }) => {
                write!(f, "denied ({}): no target is called `{target}`", denied.code())
            }
            Err(denied @ Denied::DenyRule { rule, .. }) => {
                write!(f, "denied ({}): by the rule `{rule}`", denied.code())
            }
            Ok(_) | Err(_) => f.write_str(&self.conclusion()),
        }
    }
}
