//! What people read when a policy is wrong.

use super::*;

fn complaints(text: &str) -> String {
    match read(text, &[]) {
        Ok(loaded) => loaded
            .warnings
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("\n\n"),
        Err(found) => found.to_string(),
    }
}

#[test]
fn all_mistakes_of_a_policy_show_at_once() {
    let text = "\
kdbt: 1
targets:
  prod: { server: dwh, engine: postgres, database: analytics, tier: prod }
  lake: { server: sf, engine: snowflake, database: LAKE, tier: prod }
grants:
  marts: { postgres: { member_of: [public] } }
rules:
  - id: read
    when: { relam_roles: [analyst] }
    targets: [prd]
    grants: [mart]
    ttl: { default: 4h, max: 1h }
    opt_in: \"true\"
    window: { days: [mon] }
  - id: read
    when: { groups: [data/*], realm_roles: [] }
    targets: [prod]
    own_schema: { name: \"dbt_{{user}}\" }
";
    insta::assert_snapshot!(complaints(text), @r#"
    error: a target on Snowflake has virtual warehouses, and this one names none
     --> p.yaml:4:3
      |
    4 |   lake: { server: sf, engine: snowflake, database: LAKE, tier: prod }
      |   ^^^^
      |
      = help: list those that rules may choose: `warehouses: [BI]`

    error: `public` is reserved and cannot be a role name
     --> p.yaml:6:36
      |
    6 |   marts: { postgres: { member_of: [public] } }
      |                                    ^^^^^^

    error[K006]: the rule `read` does not say for whom it is
     --> p.yaml:8:9
      |
    8 |   - id: read
      |         ^^^^
      |
      = help: give it `when`, or say `everyone: true`

    warning: the rule `read` does not say `why`
     --> p.yaml:8:9
      |
    8 |   - id: read
      |         ^^^^

    error: the rule `read` does not say in which schema dbt works
     --> p.yaml:8:9
      |
    8 |   - id: read
      |         ^^^^
      |
      = help: write `profile: { schema: … }`

    warning[K020]: the rule `read` has no test
     --> p.yaml:8:9
      |
    8 |   - id: read
      |         ^^^^

    error[K001]: unknown key `relam_roles`
     --> p.yaml:9:13
      |
    9 |     when: { relam_roles: [analyst] }
      |             ^^^^^^^^^^^ did you mean `realm_roles`?

    error[K003]: the target `prd` is not defined
      --> p.yaml:10:15
       |
    10 |     targets: [prd]
       |               ^^^ did you mean `prod`?

    error[K003]: the grant set `mart` is not defined
      --> p.yaml:11:14
       |
    11 |     grants: [mart]
       |              ^^^^ did you mean `marts`?

    error: `min` ≤ `default` ≤ `max` does not hold
      --> p.yaml:12:10
       |
    12 |     ttl: { default: 4h, max: 1h }
       |          ^^^^^^^^^^^^^^^^^^^^^^^^

    error: expected `true` or `false`, found text in quotes
      --> p.yaml:13:13
       |
    13 |     opt_in: "true"
       |             ^^^^^^

    error: `window` is not supported yet
      --> p.yaml:14:5
       |
    14 |     window: { days: [mon] }
       |     ^^^^^^
       |
       = help: remove it, or give the role for a time in Keycloak

    error[K002]: the rule `read` is defined twice
      --> p.yaml:15:9
       |
    15 |   - id: read
       |         ^^^^ first at p.yaml:8:9

    error: the rule `read` grants nothing
      --> p.yaml:15:9
       |
    15 |   - id: read
       |         ^^^^
       |
       = help: give it `grants`, `create_as` or `own_schema`

    warning: the rule `read` does not say `why`
      --> p.yaml:15:9
       |
    15 |   - id: read
       |         ^^^^

    error: the rule `read` has no `ttl`
      --> p.yaml:15:9
       |
    15 |   - id: read
       |         ^^^^
       |
       = help: write `ttl: { default: 4h, max: 12h }`

    error: the rule `read` does not say in which schema dbt works
      --> p.yaml:15:9
       |
    15 |   - id: read
       |         ^^^^
       |
       = help: write `profile: { schema: … }`

    warning[K020]: the rule `read` has no test
      --> p.yaml:15:9
       |
    15 |   - id: read
       |         ^^^^

    error[K004]: a group is named by its full path, which starts with `/`
      --> p.yaml:16:22
       |
    16 |     when: { groups: [data/*], realm_roles: [] }
       |                      ^^^^^^
       |
       = help: write `/data/*`

    error[K004]: an empty list matches nobody
      --> p.yaml:16:44
       |
    16 |     when: { groups: [data/*], realm_roles: [] }
       |                                            ^^
       |
       = help: list at least one value, or remove it

    error[K022]: the only variable here is `{{username}}`
      --> p.yaml:18:25
       |
    18 |     own_schema: { name: "dbt_{{user}}" }
       |                         ^^^^^^^^^^^^^^
    "#);
}

#[test]
fn each_mistake_has_its_code() {
    for (from, to, expected) in [
        ("why: x, when: { realm_roles: [analyst] }", "why: x", "error K006"),
        (
            "when: { groups: [/edit/*] }",
            "everyone: true, when: { groups: [/edit/*] }",
            "error K006",
        ),
        ("[/edit/*]", "[\"/edit*\"]", "error K021"),
        ("[/gone]", "[/gone/*]", "warning K028"),
        ("grp_raw]", "rds_superuser]", "error K008"),
        ("id: more", "id: read", "error K002"),
        ("grants: [edit]", "grants: [edits]", "error K003"),
        ("limits:\n  prod:", "limits:\n  prd:", "error K003"),
        (
            "unless: { groups: [/guests] }",
            "unless: { realm_roles: [dev] }",
            "error K004",
        ),
        (
            "unless: { groups: [/guests] }",
            "unless: { groups: [/g], realm_roles: [x] }",
            "warning K027",
        ),
        ("unless: { groups: [/guests] }", "unless: {}", "error K004"),
        ("\"dbt_{{username}}\"", "\"dbt\"", "error K022"),
        ("\"dbt_{{username}}\"", "\"{{lease}}\"", "error K022"),
        (
            "also: [marts]",
            "also: [abcdefghijabcdefghijabcdefghijabcdefghij]",
            "error K022",
        ),
        (
            "create_as: { postgres: dbt_prod }, opt_in: true, reason: required",
            "grants: [raw], create_as: { postgres: dbt_prod }",
            "warning K010",
        ),
        (
            "groups: [/edit/*] }, targets: [prod]",
            "groups: [/edit/*] }, targets: [prod, dev], own_schema: { name: \"x_{{username}}\" }",
            "error K013",
        ),
        ("connection_limit: 20", "connection_limit: 8", "warning K025"),
        ("rank: -1", "rank: 0", "warning K020"),
        (
            "limits:\n",
            "limits:\n  protect: [{ roles: [grp_raw], rules: [more] }]\n",
            "error K014",
        ),
        (
            "limits:\n",
            "limits:\n  protect: [{ roles: [grp_raw], rules: [moer] }]\n",
            "error K003",
        ),
        (
            "why: x, when: { groups: [/edit/*] }",
            "why: x, when: { groups: [/edit/*] }, color: red",
            "error K001",
        ),
        (
            "targets: [prod], grants: [edit]",
            "targets: [prod], grants: [edit], choice: team",
            "error -",
        ),
        (
            "postgres: { member_of: [grp_raw] }",
            "postgres: { objects: [] }",
            "error -",
        ),
        (
            "targets: [dev, prod] }",
            "targets: [dev, prod], ttl: { default: 1h, max: 1h } }",
            "error -",
        ),
    ] {
        assert!(BASE.contains(from), "{from}");
        let found: Vec<Diagnostic> = match read(&BASE.replacen(from, to, 1), &[]) {
            Ok(loaded) => loaded.warnings,
            Err(found) => found.into_vec(),
        };
        let codes: Vec<String> = found
            .iter()
            .map(|d| format!("{} {}", d.level.as_str(), d.code.unwrap_or("-")))
            .collect();
        assert!(
            codes.iter().any(|code| code == expected),
            "{to}: expected {expected}, got {codes:?}"
        );
    }
}

#[test]
fn a_rule_that_adds_nothing_and_an_unguarded_write_are_warnings() {
    let weaker = "  - { id: twin, why: x, when: { realm_roles: [analyst], groups: [/a] }, targets: [prod], grants: [marts], ttl: { default: 2h, max: 6h }, profile: { schema: marts } }\n";
    let found = complaints(&format!("{BASE}{weaker}"));
    assert!(
        found.contains("K005") && found.contains("`twin` adds nothing to `read`"),
        "{found}"
    );
    assert!(complaints(BASE).contains("K009"), "{}", complaints(BASE));
}

#[test]
fn a_negative_condition_on_a_kind_that_nobody_provides_is_refused() {
    let issuer = IssuerFacts {
        issuer: Arc::from("https://sso"),
        provides: Arc::new(Provides::from_kinds(["realm_roles", "client_roles"]).unwrap()),
    };
    let found = read(BASE, &[issuer]).unwrap_err();
    let errors: Vec<&Diagnostic> = found.iter().filter(|found| found.level == Level::Error).collect();
    assert_eq!(errors.len(), 2, "the deny rule and the `unless`: {found}");
    let never = found
        .iter()
        .filter(|found| found.message.contains("this rule can never match"));
    assert_eq!(
        never.count(),
        3,
        "the two claims of `build`, the groups of `edit`: {found}"
    );
    insta::assert_snapshot!(errors[0], @r#"
    error: no issuer provides `groups`, so this would exclude nobody
      --> p.yaml:17:11
       |
    17 |   - { id: own, why: x, when: { realm_roles: [dev] }, unless: { groups: [/guests] }, targets: [dev], grants: [raw], own_schema: { nam...
       |           ^^^
       |
       = help: add `groups` to `provides` of the issuer, if its tokens always hold all of it
    "#);
}

#[test]
fn a_failing_test_of_the_policy_keeps_it_from_loading_and_says_why() {
    let test = "tests:\n  - { name: an analyst builds, claims: { realm_access: { roles: [analyst] } }, target: prod, expect: { create_as: dbt_prod, max_ttl: 1h } }\n";
    let found = read(&format!("{BASE}{test}"), &[]).unwrap_err();
    insta::assert_snapshot!(found.iter().next().unwrap(), @r#"
    warning[K020]: the rule `read` has no test
      --> p.yaml:13:11
       |
    13 |   - { id: read, why: x, when: { realm_roles: [analyst] }, targets: [prod], grants: [marts], ttl: { default: 2h, max: 8h }, session: ...
       |           ^^^^
    "#);
}

#[test]
fn an_empty_folder_a_yml_file_and_a_link_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let text = |folder: &Path| PolicySet::load(folder, &[]).unwrap_err().to_string();
    assert!(text(folder.path()).contains("there is no policy in"));
    assert!(text(&folder.path().join("none")).contains("cannot read"));
    std::fs::write(folder.path().join("a.yaml"), BASE).unwrap();
    assert!(PolicySet::load(folder.path(), &[]).is_ok());
    std::fs::write(folder.path().join("b.yml"), BASE).unwrap();
    assert!(text(folder.path()).contains("b.yml is not read"));
    std::fs::remove_file(folder.path().join("b.yml")).unwrap();
    std::os::unix::fs::symlink(folder.path().join("a.yaml"), folder.path().join("c.yaml")).unwrap();
    assert!(text(folder.path()).contains("c.yaml is a link"));
}

#[test]
fn the_hash_is_that_of_names_and_bytes() {
    let hash = |files: &[(&str, &str)]| {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        PolicySet::load(folder.path(), &[]).unwrap().set.hash().clone()
    };
    assert_eq!(hash(&[("a.yaml", BASE)]), hash(&[("a.yaml", BASE)]));
    assert_ne!(hash(&[("a.yaml", BASE)]), hash(&[("b.yaml", BASE)]));
    assert_ne!(hash(&[("a.yaml", BASE)]), hash(&[("a.yaml", &format!("{BASE}# x\n"))]));
    assert_eq!(hash(&[("a.yaml", BASE)]).0.len(), 64);
}
