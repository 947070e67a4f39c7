//! From claims and an order to a grant or one reason. Pure: the same input gives the same answer, always.

use std::collections::BTreeSet;

use kdbt_api::Ttl;
use kdbt_api::lease::TtlRange;
use kdbt_api::name::{RuleId, ServerName, Slug, TargetName};
use serde_json::Value as Json;

use super::document::Rule;
use super::facts::{Facts, WrongType};
use super::unite::{Owner, session};
use super::{Order, PolicySet};
use crate::grant::{Grant, Target};
use crate::identity::Claims;

/// The longest reason, in characters.
const MAX_REASON: usize = 500;

/// Why an order is refused. The variants stand in the order in which they are looked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// A claim kind that the issuer provides has the wrong type.
    #[error("the claim `{claim}` of the token is not of the type that the policy reads")]
    InvalidClaims {
        /// The claim.
        claim: String,
    },
    /// No such target. People get the words of [`Denied::NoMatchingRule`].
    #[error("no rule gives you anything on `{target}`, or there is no such target")]
    UnknownTarget {
        /// As asked.
        target: TargetName,
    },
    /// A deny rule matches. People get the words of [`Denied::NoMatchingRule`].
    #[error("no rule gives you anything on `{target}`, or there is no such target")]
    DenyRule {
        /// As asked.
        target: TargetName,
        /// The rule, for operators.
        rule: RuleId,
    },
    /// A named rule is unknown, a deny rule, or does not match.
    #[error("{}", if *.others { format!("the rule `{rule}` gives you nothing on `{target}`") } else { nothing(target) })]
    RuleNotAvailable {
        /// Other rules match; else people get the words of [`Denied::NoMatchingRule`].
        others: bool,
        /// As asked.
        target: TargetName,
        /// As asked.
        rule: RuleId,
    },
    /// Nothing joins.
    #[error("no rule gives you anything on `{target}`, or there is no such target")]
    NoMatchingRule {
        /// As asked.
        target: TargetName,
        /// The rules that would join if they were named.
        opt_in: Vec<RuleId>,
    },
    /// A schema of one's own comes with all standing rights.
    #[error("your own schema comes with all of your standing rules; name {} too, or no rule", list(.missing))]
    NarrowingRefused {
        /// The standing rules that were not named.
        missing: Vec<RuleId>,
    },
    /// A rule that joins wants a reason.
    #[error("the rule `{rule}` requires a reason")]
    ReasonRequired {
        /// The rule.
        rule: RuleId,
    },
    /// Outside what all rules and tiers allow.
    #[error("the TTL must be between `{}` and `{}`", .range.min, .range.max)]
    TtlOutOfRange {
        /// What may be asked.
        range: TtlRange,
    },
    /// An order that cannot be filled whatever the policy says.
    #[error("{0}")]
    InvalidOrder(String),
}

fn nothing(target: &TargetName) -> String {
    format!("no rule gives you anything on `{target}`, or there is no such target")
}

fn list(rules: &[RuleId]) -> String {
    let names: Vec<String> = rules.iter().map(|rule| format!("`{rule}`")).collect();
    names.join(", ")
}

impl Denied {
    /// Every code, in the order in which reasons are looked for.
    pub const CODES: [&'static str; 9] = [
        "invalid-claims",
        "unknown-target",
        "deny-rule",
        "rule-not-available",
        "no-matching-rule",
        "narrowing-refused",
        "reason-required",
        "ttl-out-of-range",
        "invalid-order",
    ];

    /// The stable code, for the audit log and tests.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::InvalidClaims { .. } => "invalid-claims",
            Self::UnknownTarget { .. } => "unknown-target",
            Self::DenyRule { .. } => "deny-rule",
            Self::RuleNotAvailable { .. } => "rule-not-available",
            Self::NoMatchingRule { .. } => "no-matching-rule",
            Self::NarrowingRefused { .. } => "narrowing-refused",
            Self::ReasonRequired { .. } => "reason-required",
            Self::TtlOutOfRange { .. } => "ttl-out-of-range",
            Self::InvalidOrder(_) => "invalid-order",
        }
    }

    /// The code for the person who asked: whether a target exists is not theirs to learn.
    #[must_use]
    pub fn public_code(&self) -> &'static str {
        match self {
            Self::UnknownTarget { .. } | Self::DenyRule { .. } | Self::RuleNotAvailable { others: false, .. } => {
                "no-matching-rule"
            }
            Self::InvalidClaims { .. }
            | Self::RuleNotAvailable { .. }
            | Self::NoMatchingRule { .. }
            | Self::NarrowingRefused { .. }
            | Self::ReasonRequired { .. }
            | Self::TtlOutOfRange { .. }
            | Self::InvalidOrder(_) => self.code(),
        }
    }

    /// What the person can do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoMatchingRule { opt_in, .. } if !opt_in.is_empty() => {
                Some(format!("these rules join if you name them: {}", list(opt_in)))
            }
            Self::UnknownTarget { .. }
            | Self::DenyRule { .. }
            | Self::NoMatchingRule { .. }
            | Self::RuleNotAvailable { .. } => {
                Some("`kdbt-client targets` lists what you may ask for; a DBA can add a rule".to_owned())
            }
            Self::ReasonRequired { .. } => Some("say why with `--reason`".to_owned()),
            Self::InvalidClaims { .. } => {
                Some("ask who runs Keycloak to look at the mappers of your client".to_owned())
            }
            Self::NarrowingRefused { .. } | Self::TtlOutOfRange { .. } | Self::InvalidOrder(_) => None,
        }
    }
}

impl From<WrongType> for Denied {
    fn from(WrongType(claim): WrongType) -> Self {
        Self::InvalidClaims { claim }
    }
}

impl PolicySet {
    /// What the policy gives to these claims for this order, or the first reason against it.
    pub fn decide(&self, claims: &Claims, order: &Order) -> Result<Grant, Denied> {
        let facts = Facts::read(claims, &self.claim_types)?;
        let target = self.target(&order.target).ok_or_else(|| Denied::UnknownTarget {
            target: order.target.clone(),
        })?;
        if let Some(rule) = self.denying(&target.name, &facts) {
            return Err(Denied::DenyRule {
                target: target.name.clone(),
                rule: rule.id.clone(),
            });
        }
        let joined = self.joining(target, &facts, &order.rules)?;
        let owner = Owner::of(&joined);
        if let Owner::Personal(_) = owner {
            let standing = self.matching(target, &facts).filter(|rule| rule.standing());
            let missing: Vec<RuleId> = standing
                .filter(|rule| !order.rules.is_empty() && !order.rules.contains(&rule.id))
                .map(|rule| rule.id.clone())
                .collect();
            if !missing.is_empty() {
                return Err(Denied::NarrowingRefused { missing });
            }
        }
        let reason = order
            .reason
            .as_deref()
            .map(str::trim)
            .filter(|reason| !reason.is_empty());
        if let Some(rule) = joined.iter().find(|rule| rule.reason_required && reason.is_none()) {
            return Err(Denied::ReasonRequired { rule: rule.id.clone() });
        }
        let (range, ttl) = self.ttl(target, &joined, order.ttl)?;
        if order
            .reason
            .as_ref()
            .is_some_and(|reason| reason.chars().count() > MAX_REASON)
        {
            return Err(Denied::InvalidOrder(format!(
                "a reason has at most {MAX_REASON} characters"
            )));
        }
        let profile = self.profile(target, &joined, &owner)?;
        Ok(Grant {
            target: target.clone(),
            rules: joined.iter().map(|rule| rule.id.clone()).collect(),
            policy: self.hash.clone(),
            session: session(target.engine, &joined, &owner, profile.threads),
            profile,
            access: self.access(target, &facts, &joined, &owner)?,
            ttl_range: range,
            ttl,
            not_after: None,
            slug: slug(claims),
        })
    }

    /// A target by its name.
    #[must_use]
    pub fn target(&self, name: &TargetName) -> Option<&Target> {
        let found = self.document.targets.iter().find(|target| target.value.name == *name);
        found.map(|target| &target.value)
    }

    /// The first deny rule that refuses these claims there.
    fn denying(&self, target: &TargetName, facts: &Facts) -> Option<&Rule> {
        let mut rules = self.document.rules.iter();
        rules.find(|rule| rule.deny && rule.on(target) && applies(rule, facts))
    }

    /// The allow rules whose conditions hold there, opt-in ones too.
    pub(super) fn matching<'a>(&'a self, target: &Target, facts: &Facts) -> impl Iterator<Item = &'a Rule> {
        let rules = self.document.rules.iter();
        rules.filter(|rule| !rule.deny && rule.on(&target.name) && applies(rule, facts))
    }

    fn joining<'a>(&'a self, target: &Target, facts: &Facts, named: &[RuleId]) -> Result<Vec<&'a Rule>, Denied> {
        let matching: Vec<&Rule> = self.matching(target, facts).collect();
        if let Some(rule) = named.iter().find(|id| !matching.iter().any(|rule| rule.id == **id)) {
            return Err(Denied::RuleNotAvailable {
                others: !matching.is_empty(),
                target: target.name.clone(),
                rule: rule.clone(),
            });
        }
        let (joined, opt_in): (Vec<&Rule>, Vec<&Rule>) = if named.is_empty() {
            matching.into_iter().partition(|rule| !rule.opt_in)
        } else {
            (
                matching.into_iter().filter(|rule| named.contains(&rule.id)).collect(),
                Vec::new(),
            )
        };
        if joined.is_empty() {
            return Err(Denied::NoMatchingRule {
                target: target.name.clone(),
                opt_in: opt_in.iter().map(|rule| rule.id.clone()).collect(),
            });
        }
        Ok(joined)
    }

    /// The rules that hold for a person on a server without being asked for, on any target that is not denied.
    pub(super) fn standing<'a>(&'a self, server: &'a ServerName, facts: &'a Facts) -> impl Iterator<Item = &'a Rule> {
        let open = |rule: &Rule, target: &Target| {
            target.server == *server && rule.on(&target.name) && self.denying(&target.name, facts).is_none()
        };
        let rules = self
            .document
            .rules
            .iter()
            .filter(|rule| rule.standing() && applies(rule, facts));
        rules.filter(move |rule| self.document.targets.iter().any(|target| open(rule, &target.value)))
    }

    /// The range that all joined rules and all tiers of that database allow, and what this order gets of it.
    fn ttl(&self, target: &Target, joined: &[&Rule], asked: Option<Ttl>) -> Result<(TtlRange, Ttl), Denied> {
        let writes = joined.iter().any(|rule| self.writes(rule, target.engine));
        let given: Vec<_> = joined.iter().filter_map(|rule| rule.ttl.as_ref()).collect();
        let caps = self.caps(target, writes);
        let min = given.iter().map(|ttl| ttl.least()).max().unwrap_or(Ttl::SHORTEST);
        let max = given.iter().map(|ttl| ttl.max).chain(caps).min().unwrap_or(min);
        let default = given
            .iter()
            .map(|ttl| ttl.default)
            .min()
            .unwrap_or(min)
            .max(min)
            .min(max);
        let range = TtlRange { min, default, max };
        let ttl = asked.unwrap_or(default);
        if ttl < min || ttl > max {
            return Err(Denied::TtlOutOfRange { range });
        }
        Ok((range, ttl))
    }

    /// The caps of every tier whose targets lead to the same database.
    pub(super) fn caps(&self, target: &Target, writes: bool) -> impl Iterator<Item = Ttl> {
        let same = |other: &Target| other.server == target.server && other.database == target.database;
        let targets = self.document.targets.iter().map(|target| &target.value);
        let tiers: BTreeSet<&str> = targets
            .filter(|other| same(other))
            .map(|other| other.tier.as_str())
            .collect();
        let limits = self
            .document
            .tiers
            .iter()
            .filter(move |tier| tiers.contains(tier.name.as_str()));
        limits.flat_map(move |tier| tier.max_ttl.into_iter().chain(tier.max_ttl_write.filter(|_| writes)))
    }
}

/// Whether a rule's condition holds and nothing excludes.
pub(super) fn applies(rule: &Rule, facts: &Facts) -> bool {
    rule.when.holds(facts) && !rule.unless.iter().any(|unless| unless.holds(facts))
}

/// The name that the token suggests: a person's, or that of the project or client of a workload.
fn slug(claims: &Claims) -> Slug {
    let names = ["preferred_username", "project", "azp", "client_id"];
    let mut given = names
        .iter()
        .filter_map(|name| claims.values.get(*name).and_then(Json::as_str));
    let name = given.next().unwrap_or_default();
    Slug::from_name(name.strip_prefix("service-account-").unwrap_or(name))
}
