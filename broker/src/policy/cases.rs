//! The tests that stand in the policy itself: an order, and what must come of it.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use kdbt_api::Timestamp;
use serde_json::Value as Json;

use super::document::Case;
use super::{Denied, Explanation, Order, PolicySet};
use crate::diagnostics::{Diagnostic, Span, suggestion};
use crate::grant::{AccessTemplate, Grant};
use crate::identity::Claims;

/// How the tests of a policy went. `Display` has a line per test and the sum.
#[derive(Debug, Clone)]
pub struct TestReport {
    /// In the order of the files.
    pub results: Vec<CaseResult>,
}

/// How one test went.
#[derive(Debug, Clone)]
pub struct CaseResult {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub place: Span,
    /// What came out differently, a sentence each; empty if it passed.
    pub differences: Vec<String>,
    /// Why it came out so.
    pub explanation: String,
}

impl CaseResult {
    /// Whether all came out as expected.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.differences.is_empty()
    }
}

impl TestReport {
    /// How many failed.
    #[must_use]
    pub fn failed(&self) -> usize {
        self.results.iter().filter(|result| !result.passed()).count()
    }

    /// The failed tests as errors.
    pub fn failures(&self) -> impl Iterator<Item = Diagnostic> {
        let failed = self.results.iter().filter(|result| !result.passed());
        failed.map(|result| {
            let error = Diagnostic::error(format!("test failed: {}", result.differences.join("; ")));
            error.at(&result.place).help(result.explanation.clone())
        })
    }
}

impl fmt::Display for TestReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for result in &self.results {
            if result.passed() {
                writeln!(f, "ok    {}", result.name)?;
                continue;
            }
            writeln!(f, "FAIL  {}  [{}]", result.name, result.place)?;
            for difference in &result.differences {
                writeln!(f, "      {difference}")?;
            }
            for line in result.explanation.lines() {
                writeln!(f, "      | {line}")?;
            }
        }
        let failed = self.failed();
        write!(f, "{} passed, {failed} failed", self.results.len() - failed)
    }
}

impl PolicySet {
    /// Runs every test of the policy.
    #[must_use]
    pub fn run_tests(&self) -> TestReport {
        TestReport {
            results: self.document.tests.iter().map(|case| self.run(case)).collect(),
        }
    }

    /// Claims as the broker would hand them over: those without `iss` are of the first issuer. `None`: of no known one.
    #[must_use]
    pub fn claims_of(&self, values: &serde_json::Map<String, Json>) -> Option<Claims> {
        let issuer = match values.get("iss").and_then(Json::as_str) {
            Some(iss) => self.issuers.iter().find(|issuer| *issuer.issuer == *iss)?,
            None => self.issuers.first()?,
        };
        Some(Claims {
            issuer: Arc::clone(&issuer.issuer),
            values: values.clone(),
            provides: Arc::clone(&issuer.provides),
        })
    }

    fn run(&self, case: &Case) -> CaseResult {
        let order = Order {
            target: case.target.clone(),
            rules: case.rules.clone(),
            ttl: case.ttl,
            reason: case.reason.clone(),
            at: case.at.unwrap_or(Timestamp::from_unix(0)),
        };
        let (differences, explanation) = match self.claims_of(&case.claims) {
            Some(claims) => {
                let explanation = self.explain(&claims, &order);
                (differences(case, &explanation), explanation.to_string())
            }
            None => (vec!["its `iss` is no configured issuer".to_owned()], String::new()),
        };
        CaseResult {
            name: case.name.clone(),
            place: case.span.clone(),
            differences,
            explanation,
        }
    }
}

fn differences(case: &Case, explanation: &Explanation) -> Vec<String> {
    let expect = &case.expect;
    let mut differences = Vec::new();
    match (&explanation.outcome, &expect.denied) {
        (Ok(_), Some(denied)) => differences.push(format!("expected `{}`, but it is allowed", denied.value)),
        (Err(denied), None) => differences.push(format!("expected a grant, but it is denied: {}", denied.code())),
        (Err(denied), Some(expected)) if denied.code() != expected.value => {
            let mut text = format!("expected `{}`, but the reason is `{}`", expected.value, denied.code());
            if !Denied::CODES.contains(&expected.value.as_str()) {
                text = format!(
                    "{text}; there is no such reason, {}",
                    suggestion(&expected.value, Denied::CODES)
                );
            }
            differences.push(text);
        }
        (Err(_), Some(_)) => {}
        (Ok(grant), None) => compare(case, grant, &mut differences),
    }
    differences
}

fn compare(case: &Case, grant: &Grant, differences: &mut Vec<String>) {
    let expect = &case.expect;
    let mut differ = |what: &str, expected: Option<String>, got: String| {
        if let Some(expected) = expected.filter(|expected| *expected != got) {
            differences.push(format!("{what}: expected {expected}, got {got}"));
        }
    };
    let (groups, role, personal) = match &grant.access {
        AccessTemplate::Role(role) => (BTreeSet::new(), Some(role.to_string()), false),
        AccessTemplate::Personal { groups, .. } => (groups.clone(), None, true),
        AccessTemplate::Read(groups) => (groups.clone(), None, false),
        AccessTemplate::Snowflake(_) => (BTreeSet::new(), None, false),
    };
    let (granted, session_role) = match &grant.access {
        AccessTemplate::Snowflake(roles) => (roles.grants.clone(), roles.session_role.to_string()),
        AccessTemplate::Role(_) | AccessTemplate::Personal { .. } | AccessTemplate::Read(_) => {
            (BTreeSet::new(), "none".to_owned())
        }
    };
    differ("rules", expect.rules.as_ref().map(list), list(&grant.rules));
    differ("member_of", expect.member_of.as_ref().map(list), list(&groups));
    differ(
        "create_as",
        expect.create_as.clone(),
        role.unwrap_or_else(|| "none".to_owned()),
    );
    differ(
        "own_schema",
        expect.own_schema.map(|own| own.to_string()),
        personal.to_string(),
    );
    differ("grant_roles", expect.grant_roles.as_ref().map(list), list(&granted));
    differ(
        "session_role",
        expect.session_role.as_ref().map(ToString::to_string),
        session_role,
    );
    differ(
        "warehouse",
        expect.warehouse.as_ref().map(ToString::to_string),
        grant
            .profile
            .warehouse
            .as_ref()
            .map_or_else(|| "none".to_owned(), ToString::to_string),
    );
    differ(
        "default_ttl",
        expect.default_ttl.map(|ttl| ttl.to_string()),
        grant.ttl_range.default.to_string(),
    );
    differ(
        "max_ttl",
        expect.max_ttl.map(|ttl| ttl.to_string()),
        grant.ttl_range.max.to_string(),
    );
}

fn list<'a, T: fmt::Display + 'a>(names: impl IntoIterator<Item = &'a T>) -> String {
    let names: BTreeSet<String> = names.into_iter().map(ToString::to_string).collect();
    let names: Vec<String> = names.into_iter().collect();
    format!("[{}]", names.join(", "))
}
