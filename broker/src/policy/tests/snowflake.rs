//! What a policy says of Snowflake.

use kdbt_api::lease::{Connection, Engine};
use kdbt_api::name::Slug;

use super::*;
use crate::grant::Access;

const LAKE: &str = "\
kdbt: 1
targets:
  lake: { server: sf, engine: snowflake, database: analytics, tier: prod, warehouses: [bi, TRANSFORMING] }
  pond: { server: sf, engine: snowflake, database: analytics_dev, tier: dev, warehouses: [dev] }
  dwh: { server: dwh, engine: postgres, database: analytics, tier: prod }
grants:
  marts: { postgres: { member_of: [grp_marts] }, snowflake: { grant_role: kdbt_ent_marts, session_role: MARTS_READER } }
  edit: { snowflake: { grant_role: KDBT_ENT_EDIT, session_role: EDITOR, access: write } }
limits:
  prod: { max_ttl: 6h, max_ttl_write: 1h }
rules:
  - { id: read, why: x, when: { realm_roles: [analyst] }, targets: [lake, dwh], grants: [marts], ttl: { default: 2h, max: 8h }, session: { read_only: true, connection_limit: 14, statement_timeout: 15m, query_tag: team a }, profile: { schema: marts, warehouse: bi, connect_retries: 3, connect_timeout: 9, retries: 2 } }
  - { id: edit, why: x, when: { groups: [/edit] }, targets: [lake], grants: [edit], rank: 1, opt_in: true, ttl: { default: 2h, max: 3h }, profile: { schema: marts, warehouse: transforming, threads: 30 } }
  - { id: build, why: x, when: { realm_roles: [engineer] }, targets: [pond], create_as: { snowflake: { grant_role: KDBT_ENT_DEV, session_role: DEV_OWNER } }, ttl: { default: 2h, max: 3h }, profile: { schema: \"dbt_{{username}}\" } }
tests:
  - name: an analyst reads
    claims: { realm_access: { roles: [analyst] } }
    target: lake
    expect: { rules: [read], grant_roles: [kdbt_ent_marts], session_role: marts_reader, warehouse: BI, member_of: [], create_as: none }
";

fn lake() -> PolicySet {
    read(LAKE, &[]).unwrap_or_else(|found| panic!("{found}")).set
}

fn given(values: &serde_json::Value, order: &Order) -> Grant {
    let set = lake();
    set.decide(&claims(&set, values), order).unwrap()
}

fn findings(text: &str) -> Vec<Diagnostic> {
    match read(text, &[]) {
        Ok(loaded) => loaded.warnings,
        Err(found) => found.into_vec(),
    }
}

#[test]
fn one_rule_holds_on_both_engines_with_what_each_of_them_has() {
    let analyst = json!({ "realm_access": { "roles": ["analyst"] } });
    let on_lake = given(&analyst, &order("lake"));
    let AccessTemplate::Snowflake(roles) = &on_lake.access else {
        panic!("{on_lake:?}")
    };
    assert_eq!(roles.session_role.as_str(), "MARTS_READER");
    assert_eq!(
        roles.grants,
        ["KDBT_ENT_MARTS".parse().unwrap()].into(),
        "names are kept in capitals"
    );
    assert!(!roles.unites());
    assert_eq!(on_lake.target.database.as_str(), "ANALYTICS");
    let (profile, session) = (&on_lake.profile, &on_lake.session);
    assert_eq!(profile.warehouse.as_ref().unwrap().as_str(), "BI");
    assert_eq!((profile.retries, profile.connect_timeout), (Some(3), Some(9)));
    assert_eq!(session.query_tag.as_deref(), Some("team a"));
    assert!(!session.read_only && session.statement_timeout.is_some());

    let on_dwh = given(&analyst, &order("dwh"));
    assert!(matches!(on_dwh.access, AccessTemplate::Read(_)), "{on_dwh:?}");
    assert_eq!(on_dwh.target.database.as_str(), "analytics", "taken as it is written");
    assert_eq!((on_dwh.profile.retries, &on_dwh.profile.warehouse), (Some(2), &None));
    assert!(on_dwh.session.read_only && on_dwh.session.query_tag.is_none());
}

#[test]
fn joined_rules_unite_their_wrappers_and_the_highest_rank_names_the_session_role() {
    let both = json!({ "realm_access": { "roles": ["analyst"] }, "groups": ["/edit"] });
    let grant = given(&both, &named("lake", &["read", "edit"]));
    let AccessTemplate::Snowflake(roles) = &grant.access else {
        panic!("{grant:?}")
    };
    assert!(roles.unites() && roles.grants.len() == 2);
    assert_eq!(roles.session_role.as_str(), "EDITOR");
    assert_eq!(grant.profile.warehouse.as_ref().unwrap().as_str(), "TRANSFORMING");
    assert_eq!(grant.profile.threads, 30, "no connection limit holds it down");
    assert_eq!(
        grant.ttl_range.max.to_string(),
        "1h",
        "`access: write` is capped harder"
    );
}

#[test]
fn a_create_as_names_the_session_role_whatever_the_rank_of_those_who_read() {
    let text = LAKE.replace(
        "tests:",
        "  - { id: look, why: x, when: { realm_roles: [engineer] }, targets: [pond], grants: [marts], rank: 5, ttl: { default: 1h, max: 1h }, profile: { schema: x } }\ntests:",
    );
    let set = read(&text, &[]).unwrap().set;
    let claims = claims(&set, &json!({ "realm_access": { "roles": ["engineer"] } }));
    let grant = set.decide(&claims, &order("pond")).unwrap();
    let AccessTemplate::Snowflake(roles) = &grant.access else {
        panic!("{grant:?}")
    };
    assert_eq!(roles.session_role.as_str(), "DEV_OWNER");
    assert_eq!(roles.grants.len(), 2);
}

#[test]
fn a_schema_for_each_person_is_in_capitals_and_the_only_warehouse_needs_no_naming() {
    let engineer = json!({ "preferred_username": "ada", "realm_access": { "roles": ["engineer"] } });
    let grant = given(&engineer, &order("pond"));
    let rendered = grant.render(&grant.slug).unwrap();
    assert_eq!(rendered.profile.schema.as_str(), "DBT_ADA");
    assert_eq!(rendered.profile.warehouse.unwrap().as_str(), "DEV");
}

#[test]
fn an_account_needs_its_pairs_of_roles_and_the_warehouses_that_rules_choose() {
    let needs = lake().needs(&"sf".parse().unwrap());
    let lines: Vec<String> = needs
        .databases
        .iter()
        .map(|needs| {
            let roles: Vec<String> = needs
                .roles
                .iter()
                .map(|roles| format!("{}>{}", roles.grants.first().unwrap(), roles.session_role))
                .collect();
            format!(
                "{} {roles:?} {:?} {}",
                needs.database, needs.warehouses, needs.connections
            )
        })
        .collect();
    assert_eq!(
        lines,
        [
            r#"ANALYTICS ["KDBT_ENT_EDIT>EDITOR", "KDBT_ENT_MARTS>MARTS_READER"] [WarehouseName("BI"), WarehouseName("TRANSFORMING")] 0"#,
            r#"ANALYTICS_DEV ["KDBT_ENT_DEV>DEV_OWNER"] [WarehouseName("DEV")] 0"#,
        ]
    );
    let dwh = lake().needs(&"dwh".parse().unwrap());
    assert_eq!(dwh.databases.len(), 1);
    assert!(dwh.databases[0].roles.is_empty() && dwh.databases[0].groups.len() == 1);
}

#[test]
fn people_read_which_role_they_act_as_and_what_computes() {
    let set = lake();
    let claims = claims(&set, &json!({ "realm_access": { "roles": ["analyst"] } }));
    let words: Vec<String> = set.targets_for(&claims).into_iter().map(|view| view.access).collect();
    assert_eq!(
        words,
        [
            "member of grp_marts",
            "acts as MARTS_READER, holding KDBT_ENT_MARTS, computing on BI"
        ]
    );
}

#[test]
fn a_test_that_expects_another_role_or_warehouse_fails() {
    for (from, to, says) in [
        (
            "grant_roles: [kdbt_ent_marts]",
            "grant_roles: []",
            "grant_roles: expected [], got [KDBT_ENT_MARTS]",
        ),
        (
            "session_role: marts_reader",
            "session_role: other",
            "session_role: expected OTHER, got MARTS_READER",
        ),
        (
            "warehouse: BI, member",
            "warehouse: xl, member",
            "warehouse: expected XL, got BI",
        ),
        (
            "target: lake\n",
            "target: dwh\n",
            "session_role: expected MARTS_READER, got none",
        ),
    ] {
        assert!(LAKE.contains(from), "{from}");
        let found = read(&LAKE.replace(from, to), &[]).unwrap_err().to_string();
        assert!(found.contains(says), "{found}");
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "it is a table")]
fn each_mistake_is_refused_with_what_to_do() {
    for (from, to, message, help) in [
        (
            "{ grant_role: KDBT_ENT_EDIT, session_role: EDITOR, access: write }",
            "{ member_of: [EDITOR] }",
            "`member_of` is for PostgreSQL",
            "grant_role: …, session_role: …",
        ),
        (
            "snowflake: { grant_role: KDBT_ENT_DEV, session_role: DEV_OWNER }",
            "snowflake: DEV_OWNER",
            "on Snowflake this takes two roles",
            "grant_role: …, session_role: …",
        ),
        ("session_role: EDITOR, ", "", "`snowflake` has no `session_role`", ""),
        (
            "session_role: EDITOR",
            "session_role: { exact: Editor }",
            "names on Snowflake have one form",
            "dbt writes it without quotes",
        ),
        (
            "session_role: EDITOR",
            "session_role: AccountAdmin",
            "`ACCOUNTADMIN` can do nearly everything",
            "",
        ),
        (
            "grant_role: KDBT_ENT_DEV",
            "grant_role: SECURITYADMIN",
            "`SECURITYADMIN` can do nearly everything",
            "",
        ),
        (
            "session_role: EDITOR",
            "session_role: public",
            "`PUBLIC` is reserved",
            "",
        ),
        (
            "session_role: EDITOR",
            "session_role: \"a\\\"; DROP\"",
            "a role name must be",
            "",
        ),
        (
            "grant_role: KDBT_ENT_EDIT",
            "grant_role: EDITOR",
            "the broker must own `EDITOR` to grant it",
            "make a role that holds it",
        ),
        (", warehouses: [dev]", "", "this one names none", "warehouses: [BI]"),
        (
            "warehouses: [dev]",
            "warehouses: []",
            "without a virtual warehouse nothing",
            "warehouses: [BI]",
        ),
        ("warehouses: [dev]", "warehouses: [dev, DEV]", "stands twice", ""),
        (
            "database: analytics, tier: prod }",
            "database: analytics, tier: prod, warehouses: [x] }",
            "PostgreSQL has no virtual warehouses",
            "remove it",
        ),
        (
            "warehouse: transforming",
            "warehouse: transformin",
            "`lake` has no virtual warehouse `TRANSFORMIN`",
            "did you mean `TRANSFORMING`",
        ),
        (
            "warehouse: transforming, ",
            "",
            "does not say which warehouse computes on `lake`",
            "BI, TRANSFORMING",
        ),
        (
            "threads: 30",
            "threads: 30, client_session_keep_alive: true",
            "would keep sessions alive beyond their lease",
            "remove it",
        ),
        (
            "threads: 30",
            "threads: 30, keepalives_idle: 3",
            "`keepalives_idle` is for postgres",
            "remove it",
        ),
        (
            "threads: 30 }",
            "threads: 30 }, session: { connection_limit: 99 }",
            "`connection_limit` is for postgres",
            "remove it",
        ),
        (
            "threads: 30 }",
            "threads: 30 }, session: { query_tag: \"{{lease}}\" }",
            "a query tag has no variables",
            "",
        ),
        (
            "query_tag: team a",
            "query_tag: \"te\u{e4}m\"",
            "a query tag is 1 to 200",
            "",
        ),
        (
            "targets: [lake], grants: [edit]",
            "targets: [lake, dwh], grants: [edit]",
            "`edit` gives nothing on postgres, where `dwh` is",
            "split the rule",
        ),
        (
            "targets: [pond], create_as",
            "targets: [pond, dwh], create_as",
            "`create_as` names no role on postgres, where `dwh` is",
            "split the rule",
        ),
        (
            "create_as: { snowflake: { grant_role: KDBT_ENT_DEV, session_role: DEV_OWNER } }",
            "own_schema: { name: \"dbt_{{username}}\" }",
            "`own_schema` is for PostgreSQL, and `pond` is on Snowflake",
            "CREATE SCHEMA",
        ),
        (
            "dwh: { server: dwh,",
            "dwh: { server: sf,",
            "the server `sf` cannot be of two engines",
            "it is snowflake",
        ),
        (
            "engine: snowflake, database: analytics_dev",
            "engine: snowflak, database: analytics_dev",
            "unknown engine `snowflak`",
            "did you mean `snowflake`",
        ),
        (
            "rank: 1, opt_in",
            "rank: 0, opt_in",
            "disagree on the role that sessions use",
            "higher `rank`",
        ),
        (
            "limits:\n",
            "limits:\n  protect: [{ roles: [editor], rules: [read] }]\n",
            "the rule `edit` brings `EDITOR`, which `protect` reserves",
            "",
        ),
    ] {
        assert!(LAKE.contains(from), "{from}");
        let found = findings(&LAKE.replacen(from, to, 1));
        let fits = |found: &Diagnostic| found.message.contains(message) && found.to_string().contains(help);
        assert!(found.iter().any(fits), "{to}: {found:#?}");
    }
}

#[test]
fn a_server_that_the_configuration_has_of_another_engine_or_not_at_all_is_refused_at_its_target() {
    let set = lake();
    let servers = |lake: Engine| {
        [
            ("sf".parse().unwrap(), lake),
            ("dwh".parse().unwrap(), Engine::Postgres),
        ]
        .into()
    };
    assert!(set.check_servers(&servers(Engine::Snowflake)).is_ok());
    let found = set.check_servers(&servers(Engine::Postgres)).unwrap_err().to_string();
    assert!(
        found.contains("`sf` is of postgres in the configuration") && found.contains("p.yaml:3:3"),
        "{found}"
    );
    let found = set
        .check_servers(&std::collections::BTreeMap::new())
        .unwrap_err()
        .to_string();
    assert!(
        found.contains("server `dwh`, which the config does not have"),
        "{found}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever stands where a policy has a name: it is refused, or it is a profile that dbt reads as it stands.
    #[test]
    fn names_that_are_accepted_can_be_written_into_a_profile(name in r#"[a-zA-Z_$"'\\;{}% é]{1,12}"#, place in 0usize..5) {
        let quoted = serde_json::to_string(&name).unwrap();
        let from = ["MARTS_READER", "database: analytics", "schema: marts", "bi", "kdbt_ent_marts"][place];
        let to = match place {
            1 => format!("database: {quoted}"),
            2 => format!("schema: {quoted}"),
            _ => quoted,
        };
        let text = match place {
            3 => LAKE.replace("[bi,", &format!("[{to},")).replace("warehouse: bi", &format!("warehouse: {to}")),
            _ => LAKE.replacen(from, &to, 1),
        };
        let text = text.split("tests:").next().unwrap();
        if let Ok(loaded) = read(text, &[]) {
            let set = loaded.set;
            let claims = claims(&set, &json!({ "realm_access": { "roles": ["analyst"] } }));
            let grant = set.decide(&claims, &order("lake")).unwrap();
            let rendered = grant.render(&"ada".parse::<Slug>().unwrap()).unwrap();
            let Access::Snowflake(roles) = &rendered.access else { panic!("{rendered:?}") };
            let connection = Connection::Snowflake(kdbt_api::lease::SnowflakeConnection {
                account: "myorg-myacct".into(),
                address: None,
                user: "KDBT_ADA_0".parse().unwrap(),
                role: roles.session_role.clone(),
                database: rendered.target.database.clone(),
                warehouse: rendered.profile.warehouse.clone(),
                schema: rendered.profile.schema.clone(),
                threads: rendered.profile.threads,
                connect_timeout: None,
                connect_retries: None,
            });
            let form = kdbt_api::profile::SecretForm::Variable;
            let yaml = kdbt_api::profile::render(&"kdbt".parse().unwrap(), &"lake".parse().unwrap(), &connection, form, None);
            let yaml = secrecy::ExposeSecret::expose_secret(&yaml.unwrap()).to_owned();
            prop_assert!(yaml.contains(&format!("\"{}\"", name.to_ascii_uppercase())) || place == 4, "{yaml}");
        }
    }
}
