use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::diagnostics::Level;
use crate::grant::{AccessTemplate, Grant};
use crate::identity::Claims;

mod language;
mod properties;
mod snowflake;

const BASE: &str = "\
kdbt: 1
targets:
  dev: { server: dwh, engine: postgres, database: analytics, tier: dev }
  prod: { server: dwh, engine: postgres, database: warehouse, tier: prod }
  other: { server: lake, engine: postgres, database: lake, tier: dev }
grants:
  raw: { postgres: { member_of: [grp_raw] } }
  marts: { postgres: { member_of: [grp_marts] } }
  edit: { postgres: { member_of: [grp_edit], access: write } }
limits:
  prod: { max_ttl: 6h, max_ttl_write: 1h }
rules:
  - { id: read, why: x, when: { realm_roles: [analyst] }, targets: [prod], grants: [marts], ttl: { default: 2h, max: 8h }, session: { read_only: true, connection_limit: 20 }, profile: { schema: marts, threads: 4 } }
  - { id: more, why: x, when: { client_roles: { dbt: [engineer] } }, targets: [prod], grants: [raw], ttl: { min: 5m, default: 1h, max: 4h }, profile: { schema: marts, threads: 2 } }
  - { id: build, why: x, when: { claims: { ref: [main], ok: [true] } }, targets: [prod], create_as: { postgres: dbt_prod }, opt_in: true, reason: required, ttl: { default: 20m, max: 2h }, profile: { schema: main } }
  - { id: edit, why: x, when: { groups: [/edit/*] }, targets: [prod], grants: [edit], ttl: { default: 2h, max: 3h }, profile: { schema: marts } }
  - { id: own, why: x, when: { realm_roles: [dev] }, unless: { groups: [/guests] }, targets: [dev], grants: [raw], own_schema: { name: \"dbt_{{username}}\", also: [marts] }, ttl: { default: 8h, max: 12h } }
  - { id: peek, why: x, when: { realm_roles: [dev] }, targets: [dev], grants: [marts], ttl: { default: 8h, max: 12h }, profile: { schema: main }, rank: -1 }
  - { id: leavers, effect: deny, when: { groups: [/gone] }, targets: [dev, prod] }
";

fn read(text: &str, issuers: &[IssuerFacts]) -> Result<Loaded, Diagnostics> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("p.yaml"), text).unwrap();
    PolicySet::load(folder.path(), issuers)
}

fn set() -> PolicySet {
    read(BASE, &[]).unwrap_or_else(|found| panic!("{found}")).set
}

fn claims(set: &PolicySet, values: &serde_json::Value) -> Claims {
    set.claims_of(values.as_object().unwrap()).unwrap()
}

fn order(target: &str) -> Order {
    Order {
        target: target.parse().unwrap(),
        rules: Vec::new(),
        ttl: None,
        reason: None,
        at: Timestamp::from_unix(0),
    }
}

fn named(target: &str, rules: &[&str]) -> Order {
    Order {
        rules: rules.iter().map(|rule| rule.parse().unwrap()).collect(),
        ..order(target)
    }
}

/// The rules that joined, or the code of the denial.
fn outcome(values: &serde_json::Value, order: &Order) -> String {
    let set = set();
    match set.decide(&claims(&set, values), order) {
        Ok(grant) => grant
            .rules
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("+"),
        Err(denied) => denied.code().to_owned(),
    }
}

fn granted(values: &serde_json::Value, order: &Order) -> Grant {
    let set = set();
    set.decide(&claims(&set, values), order).unwrap()
}

#[test]
#[expect(clippy::too_many_lines, reason = "it is a table")]
fn decisions_are_those_of_the_table() {
    let analyst = || json!({ "realm_access": { "roles": ["analyst"] } });
    let main = || json!({ "ref": "main", "ok": true });
    let because = |order: Order| Order {
        reason: Some("release".into()),
        ..order
    };
    let table = [
        (analyst(), order("prod"), "read"),
        (analyst(), order("dev"), "no-matching-rule"),
        (analyst(), order("nowhere"), "unknown-target"),
        (json!({}), order("prod"), "no-matching-rule"),
        (
            json!({ "realm_access": { "roles": ["Analyst"] } }),
            order("prod"),
            "no-matching-rule",
        ),
        (
            json!({ "realm_access": { "roles": "analyst" } }),
            order("prod"),
            "invalid-claims",
        ),
        (json!({ "realm_access": [] }), order("prod"), "invalid-claims"),
        (
            json!({ "realm_access": null, "groups": null }),
            order("prod"),
            "no-matching-rule",
        ),
        (json!({ "groups": ["edit/x"] }), order("prod"), "invalid-claims"),
        (json!({ "groups": ["/edit/x"] }), order("prod"), "edit"),
        (json!({ "groups": ["/edit"] }), order("prod"), "no-matching-rule"),
        (json!({ "groups": ["/edit/"] }), order("prod"), "no-matching-rule"),
        (json!({ "groups": ["/editors/x"] }), order("prod"), "no-matching-rule"),
        (
            json!({ "resource_access": { "dbt": { "roles": ["engineer"] } } }),
            order("prod"),
            "more",
        ),
        (
            json!({ "resource_access": { "kdbt": { "roles": ["engineer"] } } }),
            order("prod"),
            "no-matching-rule",
        ),
        (
            json!({ "resource_access": { "x": { "roles": 7 } } }),
            order("prod"),
            "invalid-claims",
        ),
        (
            json!({ "realm_access": { "roles": ["analyst"] }, "resource_access": { "dbt": { "roles": ["engineer"] } } }),
            order("prod"),
            "read+more",
        ),
        (main(), order("prod"), "no-matching-rule"),
        (main(), named("prod", &["build"]), "reason-required"),
        (main(), because(named("prod", &["build"])), "build"),
        (
            json!({ "ref": "main", "ok": "true" }),
            because(named("prod", &["build"])),
            "invalid-claims",
        ),
        (
            json!({ "ref": "main" }),
            because(named("prod", &["build"])),
            "rule-not-available",
        ),
        (
            json!({ "ref": ["x", "main"], "ok": true }),
            because(named("prod", &["build"])),
            "build",
        ),
        (analyst(), named("prod", &["leavers"]), "rule-not-available"),
        (analyst(), named("prod", &["nothing"]), "rule-not-available"),
        (analyst(), named("dev", &["read"]), "rule-not-available"),
        (
            json!({ "realm_access": { "roles": ["analyst"] }, "groups": ["/gone"] }),
            order("prod"),
            "deny-rule",
        ),
        (
            json!({ "realm_access": { "roles": ["dev"] } }),
            order("dev"),
            "own+peek",
        ),
        (
            json!({ "realm_access": { "roles": ["dev"] }, "groups": ["/guests"] }),
            order("dev"),
            "peek",
        ),
        (
            json!({ "realm_access": { "roles": ["dev"] } }),
            named("dev", &["own"]),
            "narrowing-refused",
        ),
        (
            json!({ "realm_access": { "roles": ["dev"] } }),
            named("dev", &["peek"]),
            "peek",
        ),
        (
            json!({ "realm_access": { "roles": ["dev"] } }),
            named("dev", &["peek", "own"]),
            "own+peek",
        ),
    ];
    for (values, order, expected) in table {
        assert_eq!(outcome(&values, &order), expected, "{values} {order:?}");
    }
}

#[test]
fn several_rules_unite_their_groups_and_keep_the_strictest_limits() {
    let both =
        json!({ "realm_access": { "roles": ["analyst"] }, "resource_access": { "dbt": { "roles": ["engineer"] } } });
    let grant = granted(&both, &order("prod"));
    let range = grant.ttl_range;
    assert_eq!(range.min.to_string(), "5m", "the greatest minimum");
    assert_eq!(range.default.to_string(), "1h", "the least default");
    assert_eq!(range.max.to_string(), "4h", "the least maximum");
    assert_eq!((grant.profile.threads, grant.session.connection_limit), (2, 20));
    assert!(!grant.session.read_only, "one of the rules does not say so");
    let AccessTemplate::Read(groups) = grant.access else {
        panic!("{grant:?}")
    };
    assert_eq!(groups.len(), 2);
}

#[test]
fn tiers_cap_the_lifetime_and_writing_is_capped_harder() {
    let read = granted(&json!({ "realm_access": { "roles": ["analyst"] } }), &order("prod"));
    assert_eq!(read.ttl_range.max.to_string(), "6h");
    let write = granted(&json!({ "groups": ["/edit/x"] }), &order("prod"));
    assert_eq!(
        (write.ttl_range.max.to_string(), write.ttl.to_string()),
        ("1h".into(), "1h".into())
    );
}

#[test]
fn a_lifetime_outside_the_range_is_refused_with_the_range_and_never_cut() {
    let set = set();
    let claims = claims(&set, &json!({ "realm_access": { "roles": ["analyst"] } }));
    for (ttl, fits) in [("59s", false), ("1m", true), ("6h", true), ("361m", false)] {
        let asked = Order {
            ttl: Some(ttl.parse().unwrap()),
            ..order("prod")
        };
        match set.decide(&claims, &asked) {
            Ok(grant) => assert!(fits && grant.ttl.to_string() == ttl, "{ttl}"),
            Err(denied) => {
                assert!(!fits, "{ttl}");
                assert_eq!(denied.to_string(), "the TTL must be between `1m` and `6h`");
            }
        }
    }
}

#[test]
fn a_schema_of_ones_own_comes_with_the_standing_rules_of_that_server_only() {
    let grant = granted(
        &json!({ "preferred_username": "Ada.L", "realm_access": { "roles": ["dev", "analyst"] }, "ref": "main", "ok": true }),
        &order("dev"),
    );
    let AccessTemplate::Personal { schemas, groups, .. } = &grant.access else {
        panic!("{grant:?}")
    };
    let groups: Vec<&str> = groups.iter().map(kdbt_api::name::RoleName::as_str).collect();
    assert_eq!(groups, ["grp_marts", "grp_raw"]);
    let names: Vec<&str> = schemas.iter().map(|schema| schema.0.as_str()).collect();
    assert_eq!(names, ["dbt_{{username}}", "dbt_{{username}}_marts"]);
    assert_eq!(grant.profile.schema.0, "main", "the only rule that sets a schema");
    assert_eq!(grant.slug.as_str(), "ada_l");
}

#[test]
fn a_target_that_is_denied_lends_nothing_to_ones_own_role() {
    let text = BASE.replace("targets: [dev, prod] }", "targets: [prod] }");
    let set = read(&text, &[]).unwrap().set;
    let values = json!({ "realm_access": { "roles": ["dev", "analyst"] }, "resource_access": { "dbt": { "roles": ["engineer"] } }, "groups": ["/gone", "/edit/x"] });
    let grant = set.decide(&claims(&set, &values), &order("dev")).unwrap();
    let AccessTemplate::Personal { groups, .. } = grant.access else {
        panic!()
    };
    assert!(!groups.contains(&"grp_edit".parse().unwrap()), "{groups:?}");
}

#[test]
fn a_service_account_is_called_after_its_client() {
    for (values, slug) in [
        (
            json!({ "preferred_username": "service-account-kdbt-ci", "azp": "x" }),
            "kdbt_ci",
        ),
        (json!({ "azp": "kdbt-ci", "project": "shop" }), "shop"),
        (json!({ "azp": "kdbt-ci" }), "kdbt_ci"),
        (json!({ "client_id": "nightly" }), "nightly"),
        (json!({}), "u"),
    ] {
        let mut values = values;
        values["realm_access"] = json!({ "roles": ["analyst"] });
        assert_eq!(granted(&values, &order("prod")).slug.as_str(), slug);
    }
}

#[test]
fn a_kind_that_the_issuer_does_not_provide_neither_matches_nor_refuses() {
    let thin = IssuerFacts {
        issuer: Arc::from("https://thin"),
        provides: Arc::new(Provides {
            realm_roles: true,
            ..Provides::default()
        }),
    };
    let full = check::providing_all(&check::claim_types(&set().document));
    let set = read(BASE, &[full, thin]).unwrap().set;
    let values = json!({ "iss": "https://thin", "realm_access": { "roles": ["analyst"] }, "groups": 7, "ref": 7 });
    assert!(set.decide(&claims(&set, &values), &order("prod")).is_ok());
    let values = json!({ "iss": "https://thin", "groups": ["/edit/x"] });
    let denied = set.decide(&claims(&set, &values), &order("prod")).unwrap_err();
    assert_eq!(denied.code(), "no-matching-rule");
    assert!(
        set.claims_of(json!({ "iss": "https://unknown" }).as_object().unwrap())
            .is_none()
    );
}

#[test]
fn what_people_read_about_an_unknown_and_a_forbidden_target_is_the_same() {
    let set = set();
    let claims = claims(&set, &json!({ "realm_access": { "roles": ["analyst"] } }));
    let gone = self::claims(
        &set,
        &json!({ "realm_access": { "roles": ["dev"] }, "groups": ["/gone"] }),
    );
    for rules in [&[][..], &["own"]] {
        let unknown = set
            .explain(&claims, &named("nowhere", rules))
            .public()
            .replace("nowhere", "T");
        let forbidden = set.explain(&claims, &named("dev", rules)).public().replace("dev", "T");
        let denied = set.explain(&gone, &named("dev", rules)).public().replace("dev", "T");
        assert_eq!(unknown, forbidden);
        assert_eq!(unknown, denied);
    }
    assert_ne!(
        set.explain(&claims, &order("nowhere")).to_string(),
        set.explain(&claims, &order("dev")).to_string()
    );
}

#[test]
fn an_explanation_names_every_rule_with_its_place() {
    let set = set();
    let claims = claims(
        &set,
        &json!({ "realm_access": { "roles": ["analyst"] }, "ref": "main", "ok": true }),
    );
    insta::assert_snapshot!(set.explain(&claims, &order("prod")), @r#"
    + read: joins  [p.yaml:13:11]
    - more: client_roles.dbt: needs engineer  [p.yaml:14:11]
    - build: matches, but joins only if it is named  [p.yaml:15:11]
    - edit: groups: needs /edit/*  [p.yaml:16:11]
    - leavers: groups: needs /gone  [p.yaml:19:11]
    allowed on `prod`: member of grp_marts; for 2h (from 1m to 6h)
    "#);
    insta::assert_snapshot!(set.explain(&claims, &order("prod")).public(), @r#"
    + read: joins
    - build: matches, but joins only if it is named
    allowed on `prod`: member of grp_marts; for 2h (from 1m to 6h)
    "#);
    insta::assert_snapshot!(set.explain(&claims, &order("dev")), @r#"
    - own: realm_roles: needs dev  [p.yaml:17:11]
    - peek: realm_roles: needs dev  [p.yaml:18:11]
    - leavers: groups: needs /gone  [p.yaml:19:11]
    denied (no-matching-rule): no rule gives you anything on `dev`, or there is no such target
    hint: `kdbt-client targets` lists what you may ask for; a DBA can add a rule
    "#);
}

#[test]
fn targets_are_those_that_an_order_would_get() {
    let set = set();
    let claims = claims(
        &set,
        &json!({ "preferred_username": "ada", "realm_access": { "roles": ["dev"] }, "ref": "main", "ok": true }),
    );
    let targets = set.targets_for(&claims);
    let lines: Vec<String> = targets
        .iter()
        .map(|t| {
            format!(
                "{} {:?} {:?} {:?} {}",
                t.target,
                t.rules.len(),
                t.opt_in.len(),
                t.ttl.map(|ttl| ttl.max.to_string()),
                t.access
            )
        })
        .collect();
    assert_eq!(
        lines,
        [
            "dev 2 0 Some(\"12h\") owns dbt_ada, dbt_ada_marts, member of grp_marts, grp_raw",
            "prod 0 1 None only by rules that you name"
        ]
    );
}

#[test]
fn a_server_needs_the_owners_and_groups_of_its_databases() {
    let needs = set().needs(&"dwh".parse().unwrap());
    insta::assert_debug_snapshot!(needs.databases, @r#"
    [
        DatabaseNeeds {
            database: DatabaseName(
                "analytics",
            ),
            owners: [],
            groups: [
                RoleName(
                    "grp_marts",
                ),
                RoleName(
                    "grp_raw",
                ),
            ],
            zones: [],
            own_schemas: true,
            create_schemas: false,
            connections: 14,
            targets: 1,
            roles: [],
            warehouses: [],
        },
        DatabaseNeeds {
            database: DatabaseName(
                "warehouse",
            ),
            owners: [
                RoleName(
                    "dbt_prod",
                ),
            ],
            groups: [
                RoleName(
                    "grp_edit",
                ),
                RoleName(
                    "grp_marts",
                ),
                RoleName(
                    "grp_raw",
                ),
            ],
            zones: [],
            own_schemas: false,
            create_schemas: false,
            connections: 20,
            targets: 1,
            roles: [],
            warehouses: [],
        },
    ]
    "#);
    assert_eq!(set().servers().len(), 2);
}

#[test]
fn the_policies_that_the_demo_runs_with_pass_without_a_warning() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies");
    let loaded = PolicySet::load(&folder, &[]).unwrap_or_else(|found| panic!("{found}"));
    assert!(loaded.warnings.is_empty(), "{:#?}", loaded.warnings);
    assert!(loaded.set.run_tests().results.len() >= 9);
}

#[test]
fn every_code_stands_in_the_documentation() {
    let text = include_str!("../../../docs/policies.md");
    for code in Denied::CODES.iter().chain(&LINTS) {
        assert!(
            text.contains(&format!("`{code}`")),
            "{code} is missing in docs/policies.md"
        );
    }
}
