//! What is wrong with the whole, beyond the form of each part: references, conflicts, and rules that mean less or
//! more than they seem to. The codes are those of `docs/policies.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kdbt_api::name::TargetName;

use self::pairs::covers;
use super::document::{ClaimValue, Condition, Document, RolePair, Rule};
use super::facts::{ClaimTypes, Types};
use super::{IssuerFacts, PolicySet};
use crate::diagnostics::{Diagnostic, Diagnostics, Span, suggestion};
use crate::identity::Provides;

mod pairs;

/// Every lint of this version; `docs/policies.md` explains each.
pub const LINTS: [&str; 18] = [
    "K001", "K002", "K003", "K004", "K005", "K006", "K008", "K009", "K010", "K013", "K014", "K020", "K021", "K022",
    "K025", "K027", "K028", "K030",
];

/// Roles of managed servers and distributions that can do nearly everything.
const PRIVILEGED: [&str; 9] = [
    "postgres",
    "root",
    "rds_superuser",
    "rds_replication",
    "rdsadmin",
    "cloudsqlsuperuser",
    "cloudsqladmin",
    "azure_pg_admin",
    "azuresu",
];

/// Snowflake's own roles, which administer the account.
const ADMINISTRATORS: [&str; 6] = [
    "ACCOUNTADMIN",
    "GLOBALORGADMIN",
    "ORGADMIN",
    "SECURITYADMIN",
    "SYSADMIN",
    "USERADMIN",
];

/// Which claims the rules read, and as what.
pub(super) fn claim_types(document: &Document) -> ClaimTypes {
    let mut types = ClaimTypes::new();
    for rule in &document.rules {
        for condition in std::iter::once(&rule.when).chain(&rule.unless) {
            for (name, values) in &condition.claims {
                let read: &mut Types = types.entry(name.clone()).or_default();
                for value in values {
                    match value {
                        ClaimValue::Text(_) => read.text = true,
                        ClaimValue::Flag(_) => read.flag = true,
                    }
                }
            }
        }
    }
    types
}

/// The issuer that stands in where no configuration says which there are.
pub(super) fn providing_all(types: &ClaimTypes) -> IssuerFacts {
    IssuerFacts {
        issuer: Arc::from("any issuer"),
        provides: Arc::new(Provides {
            realm_roles: true,
            client_roles: true,
            groups: true,
            claims: types.keys().cloned().collect(),
        }),
    }
}

impl PolicySet {
    /// Reports all mistakes and doubts.
    pub(super) fn check(&self, found: &mut Diagnostics) {
        self.check_ids(found);
        self.check_engines(found);
        for rule in &self.document.rules {
            self.check_references(rule, found);
            check_who(rule, found);
            self.check_provided(rule, found);
            if rule.deny {
                check_deny(rule, found);
            } else {
                self.check_allow(rule, found);
                self.check_shapes(rule, found);
            }
        }
        self.check_pairs(found);
        self.check_roles(found);
        self.check_limits(found);
        self.check_tests(found);
    }

    fn check_ids(&self, found: &mut Diagnostics) {
        let document = &self.document;
        let rules = document.rules.iter().map(|rule| (rule.id.as_str(), &rule.span));
        let targets = document
            .targets
            .iter()
            .map(|target| (target.value.name.as_str(), &target.span));
        let grants = document.grants.iter().map(|set| (set.name.as_str(), &set.span));
        let tiers = document.tiers.iter().map(|tier| (tier.name.as_str(), &tier.span));
        let tests = document.tests.iter().map(|case| (case.name.as_str(), &case.span));
        twice("rule", rules, found);
        twice("target", targets, found);
        twice("grant set", grants, found);
        twice("tier", tiers, found);
        twice("test", tests, found);
    }

    fn check_references(&self, rule: &Rule, found: &mut Diagnostics) {
        let targets: Vec<&str> = self
            .document
            .targets
            .iter()
            .map(|target| target.value.name.as_str())
            .collect();
        let sets: Vec<&str> = self.document.grants.iter().map(|set| set.name.as_str()).collect();
        for target in &rule.targets {
            defined("target", target.value.as_str(), &target.span, &targets, found);
        }
        for set in &rule.grants {
            defined("grant set", &set.value, &set.span, &sets, found);
        }
        if rule.targets.is_empty() {
            let error = Diagnostic::error("a rule without targets can never match").code("K004");
            found.push(error.at(&rule.span));
        }
    }

    /// A condition that says "not" must be able to see: a kind that no issuer provides would never exclude (S16).
    fn check_provided(&self, rule: &Rule, found: &mut Diagnostics) {
        let negative = rule.unless.iter().chain(rule.deny.then_some(&rule.when));
        for kind in negative.flat_map(unprovided_by(&self.issuers)) {
            let error = Diagnostic::error(format!("no issuer provides `{kind}`, so this would exclude nobody"));
            found.push(error.at(&rule.span).help(format!(
                "add `{kind}` to `provides` of the issuer, if its tokens always hold all of it"
            )));
        }
        let positive = (!rule.deny).then_some(&rule.when);
        for kind in positive.into_iter().flat_map(unprovided_by(&self.issuers)) {
            let warning = Diagnostic::warning(format!("no issuer provides `{kind}`, so this rule can never match"));
            let help = format!("add `{kind}` to `provides` of the issuer, if its tokens always hold all of it");
            found.push(warning.code("K004").at(&rule.span).help(help));
        }
    }

    fn check_allow(&self, rule: &Rule, found: &mut Diagnostics) {
        let at = |error: Diagnostic| error.at(&rule.span);
        if rule.grants.is_empty() && rule.create_as.is_none() && rule.own_schema.is_none() {
            let error = Diagnostic::error(format!("the rule `{}` grants nothing", rule.id));
            found.push(at(error).help("give it `grants`, `create_as` or `own_schema`"));
        }
        if rule.why.is_none() {
            found.push(at(Diagnostic::warning(format!(
                "the rule `{}` does not say `why`",
                rule.id
            ))));
        }
        if rule.ttl.is_none() {
            let error = Diagnostic::error(format!("the rule `{}` has no `ttl`", rule.id));
            found.push(at(error).help("write `ttl: { default: 4h, max: 12h }`"));
        }
        if rule.own_schema.is_none() && rule.profile.schema.is_none() {
            let error = Diagnostic::error(format!("the rule `{}` does not say in which schema dbt works", rule.id));
            found.push(at(error).help("write `profile: { schema: … }`"));
        }
        if let (Some(_), Some(own)) = (&rule.create_as, &rule.own_schema) {
            let error = Diagnostic::error("`create_as` and `own_schema` both say who owns what dbt makes");
            found.push(error.at(&own.span).help("split the rule in two"));
        }
        let owns = rule.create_as.is_some() || rule.own_schema.is_some();
        if let Some(flag) = rule.session.read_only.as_ref().filter(|flag| flag.value && owns) {
            let error = Diagnostic::error("a read-only session cannot create anything");
            found.push(error.at(&flag.span).help("remove `read_only`"));
        }
        if rule.own_schema.is_some() && !rule.standing() && !rule.grants.is_empty() {
            let error = Diagnostic::error("these grants would never arrive").at(&rule.span);
            found.push(error.help(
                "a schema of one's own comes with the rules that need neither naming nor a reason; move the grants there",
            ));
        }
        let mut targets = self.document.targets.iter().map(|target| &target.value);
        let writes_to_prod =
            targets.any(|target| rule.on(&target.name) && target.tier == "prod" && self.writes(rule, target.engine));
        let guarded = rule.opt_in || rule.reason_required || !rule.when.claims.is_empty();
        if writes_to_prod && !guarded {
            let warning = Diagnostic::warning(format!("the rule `{}` writes to prod without being asked", rule.id));
            found.push(at(warning.code("K009")).help("add `opt_in: true`, `reason: required`, or a claim to `when`"));
        }
        for condition in &rule.unless {
            if covers(condition, &rule.when) {
                let error = Diagnostic::error("`unless` excludes everybody whom `when` admits").code("K004");
                found.push(at(error));
            }
        }
    }

    fn check_roles(&self, found: &mut Diagnostics) {
        let groups = self.document.grants.iter().flat_map(|set| {
            set.postgres
                .iter()
                .flat_map(|groups| &groups.roles)
                .map(|role| (role, &set.span))
        });
        let creating = || self.document.rules.iter().filter_map(|rule| rule.create_as.as_ref());
        let owners = creating().filter_map(|create| create.postgres.as_ref());
        let postgres = groups.chain(owners.map(|role| (&role.value, &role.span)));
        let wrapped = self.document.grants.iter().filter_map(|set| set.snowflake.as_ref());
        let pairs: Vec<&RolePair> = wrapped
            .map(|wrapper| &wrapper.pair)
            .chain(creating().filter_map(|create| create.snowflake.as_ref()))
            .collect();
        let snowflake = pairs
            .iter()
            .flat_map(|pair| [(&pair.grant_role, &pair.span), (&pair.session_role, &pair.span)]);
        let powerful = postgres
            .filter(|(role, _)| PRIVILEGED.contains(&role.as_str().to_ascii_lowercase().as_str()))
            .chain(snowflake.filter(|(role, _)| ADMINISTRATORS.contains(&role.as_str())));
        for (role, span) in powerful {
            let error = Diagnostic::error(format!("`{role}` can do nearly everything on its server")).code("K008");
            found.push(error.at(span).help("make a group role that can do just what is needed"));
        }
        for pair in pairs.iter().filter(|pair| pair.grant_role == pair.session_role) {
            let warning = Diagnostic::warning(format!("the broker must own `{}` to grant it", pair.grant_role));
            found.push(
                warning
                    .code("K030")
                    .at(&pair.span)
                    .help("make a role that holds it, give that one to the broker, and name it as `grant_role`"),
            );
        }
    }

    fn check_tests(&self, found: &mut Diagnostics) {
        for rule in self.document.rules.iter().filter(|rule| !rule.deny) {
            let on = |target: &TargetName| rule.on(target);
            let joins =
                |case: &&super::document::Case| case.expect.rules.as_ref().is_some_and(|ids| ids.contains(&rule.id));
            let positive = self.document.tests.iter().any(|case| on(&case.target) && joins(&case));
            let negative = self.document.tests.iter().any(|case| {
                on(&case.target) && !joins(&case) && (case.expect.rules.is_some() || case.expect.denied.is_some())
            });
            let missing = match (positive, negative) {
                (true, true) => continue,
                (false, true) => "no test in which it joins",
                (true, false) => "no test in which it does not join",
                (false, false) => "no test",
            };
            let warning = Diagnostic::warning(format!("the rule `{}` has {missing}", rule.id)).code("K020");
            found.push(warning.at(&rule.span));
        }
    }
}

fn twice<'a>(what: &str, ids: impl Iterator<Item = (&'a str, &'a Span)>, found: &mut Diagnostics) {
    let mut seen: BTreeMap<&str, &Span> = BTreeMap::new();
    for (id, span) in ids {
        if let Some(first) = seen.get(id) {
            let error = Diagnostic::error(format!("the {what} `{id}` is defined twice")).code("K002");
            found.push(error.at(span).label(format!("first at {first}")));
        } else {
            seen.insert(id, span);
        }
    }
}

fn defined(what: &str, name: &str, span: &Span, known: &[&str], found: &mut Diagnostics) {
    if !known.contains(&name) {
        let error = Diagnostic::error(format!("the {what} `{name}` is not defined")).code("K003");
        found.push(error.at(span).label(suggestion(name, known.iter().copied())));
    }
}

pub(super) fn defined_rule(rules: &[Rule], name: &str, span: &Span, found: &mut Diagnostics) {
    let known: Vec<&str> = rules.iter().map(|rule| rule.id.as_str()).collect();
    defined("rule", name, span, &known, found);
}

fn check_who(rule: &Rule, found: &mut Diagnostics) {
    match (rule.when.kinds(), rule.everyone) {
        (0, false) => {
            let error = Diagnostic::error(format!("the rule `{}` does not say for whom it is", rule.id)).code("K006");
            found.push(error.at(&rule.span).help("give it `when`, or say `everyone: true`"));
        }
        (1.., true) => {
            let error = Diagnostic::error("`everyone: true` contradicts the condition in `when`").code("K006");
            found.push(error.at(&rule.span).help("remove one of them"));
        }
        (0, true) | (1.., false) => {}
    }
    for condition in &rule.unless {
        if condition.kinds() == 0 {
            let error = Diagnostic::error("an empty `unless` says nothing").code("K004");
            found.push(error.at(&rule.span).help("remove it"));
        }
        if condition.kinds() > 1 {
            let warning = Diagnostic::warning("`unless` excludes only those for whom all of its kinds hold");
            found.push(
                warning
                    .code("K027")
                    .at(&rule.span)
                    .help("write a list of conditions if any of them shall exclude"),
            );
        }
    }
    let negative = rule.unless.iter().chain(rule.deny.then_some(&rule.when));
    for paths in negative.filter_map(|condition| condition.groups.as_ref()) {
        for prefix in paths.iter().filter_map(|path| path.strip_suffix("/*")) {
            if !paths.iter().any(|path| path == prefix) {
                let warning = Diagnostic::warning(format!("`{prefix}/*` does not include `{prefix}` itself"));
                found.push(warning.code("K028").at(&rule.span).help(format!("list `{prefix}` too")));
            }
        }
    }
}

fn check_deny(rule: &Rule, found: &mut Diagnostics) {
    let grants = [
        ("grants", !rule.grants.is_empty()),
        ("create_as", rule.create_as.is_some()),
        ("own_schema", rule.own_schema.is_some()),
        ("ttl", rule.ttl.is_some()),
        ("opt_in", rule.opt_in),
        ("reason", rule.reason_required),
    ];
    for (field, _) in grants.into_iter().filter(|(_, set)| *set) {
        let error = Diagnostic::error(format!("a deny rule has no `{field}`")).at(&rule.span);
        found.push(error.help("remove it, or the `effect`"));
    }
}

fn unprovided_by(issuers: &[IssuerFacts]) -> impl Fn(&Condition) -> BTreeSet<String> {
    move |condition| {
        let any = |provided: &dyn Fn(&Provides) -> bool| issuers.iter().any(|issuer| provided(&issuer.provides));
        let mut missing = BTreeSet::new();
        if condition.realm_roles.is_some() && !any(&|provides| provides.realm_roles) {
            missing.insert("realm_roles".to_owned());
        }
        if !condition.client_roles.is_empty() && !any(&|provides| provides.client_roles) {
            missing.insert("client_roles".to_owned());
        }
        if condition.groups.is_some() && !any(&|provides| provides.groups) {
            missing.insert("groups".to_owned());
        }
        for claim in condition.claims.keys() {
            if !any(&|provides| provides.claims.contains(claim)) {
                missing.insert(format!("claims.{claim}"));
            }
        }
        missing
    }
}
