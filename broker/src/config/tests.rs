use std::os::unix::fs::PermissionsExt as _;

use secrecy::ExposeSecret as _;

use super::*;

const GOOD: &str = "\
kdbt: 1
installation: acme
listen: { address: 127.0.0.1:0 }
public_url: http://127.0.0.1:8700
issuers:
  - issuer: https://sso.example/realms/data
    audiences: [kdbt-broker]
    authorized_parties: [kdbt-cli, other]
    provides: [groups, claims.acr]
store: { sqlite: kdbt.db }
servers:
  dwh: { engine: postgres, connect: { host: db, user: kdbt__login_1, password: { file: pw } } }
policies: policies/
";

fn load(text: &str) -> Result<Config, Diagnostics> {
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("pw");
    std::fs::write(&secret, "s3cret\n").unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    let path = folder.path().join("broker.yaml");
    std::fs::write(&path, text).unwrap();
    Config::load(&path)
}

/// All mistakes as text, with the folder taken out.
fn mistakes(text: &str) -> String {
    let found = load(text).unwrap_err();
    let show = |found: &Diagnostic| {
        let place = found
            .place
            .as_ref()
            .map_or_else(String::new, |at| format!("{}:{} ", at.line(), at.column()));
        format!("{place}{}", found.message)
    };
    found.iter().map(show).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_small_configuration_gets_the_defaults() {
    let config = load(GOOD).unwrap();
    let issuer = &config.issuers[0];
    let server = &config.servers[&"dwh".parse().unwrap()];
    assert_eq!(config.limits, Limits::default());
    assert_eq!(issuer.client_id, "kdbt-cli", "the first authorized party");
    assert!(issuer.tokens.provides.groups && !issuer.tokens.provides.realm_roles);
    assert_eq!(server.connect.password.as_ref().unwrap().expose_secret(), "s3cret");
    assert_eq!((server.public.host.as_str(), server.public.port), ("db", 5432));
    assert!(config.policies.ends_with("policies/") && config.policies.is_absolute());
}

#[test]
fn a_secret_file_that_all_can_read_is_a_warning() {
    for (mode, warned) in [(0o644, true), (0o600, false)] {
        let folder = tempfile::tempdir().unwrap();
        let pw = folder.path().join("pw");
        std::fs::write(&pw, "s3cret").unwrap();
        std::fs::set_permissions(&pw, std::fs::Permissions::from_mode(mode)).unwrap();
        let path = folder.path().join("broker.yaml");
        std::fs::write(&path, GOOD).unwrap();
        assert_eq!(!Config::load(&path).unwrap().warnings.is_empty(), warned, "{mode:o}");
    }
}

#[test]
fn a_secret_in_the_file_is_refused_and_never_printed() {
    let text = GOOD.replace("password: { file: pw }", "prt: 1, password: hunter2hunter2");
    let error = load(&text).unwrap_err();
    let printed = format!(
        "{error}\n{error:?}\n{}",
        error
            .iter()
            .map(|found| found.to_json().to_string())
            .collect::<String>()
    );
    assert!(!printed.contains("hunter2"), "{printed}");
    assert_eq!(
        mistakes(&text),
        "12:70 unknown key `prt`\n12:88 a secret must not stand in the configuration"
    );
}

#[test]
fn the_debug_form_of_a_configuration_holds_no_secret() {
    let printed = format!("{:?}", load(GOOD).unwrap());
    assert!(
        printed.contains("kdbt__login_1") && !printed.contains("s3cret"),
        "{printed}"
    );
}

#[test]
fn each_mistake_is_refused_at_its_place() {
    for (from, to, expected) in [
        ("kdbt: 1", "kdbt: 2", "1:7 this broker reads `kdbt: 1` only"),
        ("127.0.0.1:0", "localhost:0", "3:20 expected an IP address and a port"),
        (
            "127.0.0.1:0",
            "0.0.0.0:0",
            "3:9 this address can be reached from outside",
        ),
        (
            "http://127.0.0.1:8700",
            "http://kdbt.example",
            "4:13 expected an https URL",
        ),
        (
            "http://127.0.0.1:8700",
            "https://u:p@kdbt.example",
            "4:13 a URL must not hold a user",
        ),
        ("[kdbt-broker]", "[]", "7:16 the list is empty"),
        ("[kdbt-broker]", "[a, a]", "7:20 a name is empty or stands twice"),
        ("claims.acr", "roles", "9:24 `roles` is not a claim kind"),
        (
            "sqlite: kdbt.db",
            "postgres: x",
            "10:10 `postgres` is not supported yet",
        ),
        (
            "engine: postgres",
            "engine: snowflake",
            "12:18 `snowflake` is not supported yet",
        ),
        ("host: db", "host: \"db user=x\"", "12:45 expected a host name"),
        ("host: db", "host: db, port: 0", "12:55 a port is a number from 1"),
        ("{ file: pw }", "{ file: none }", "12:80 cannot read the secret"),
        (
            "{ file: pw }",
            "{ env: KDBT_TEST_UNSET }",
            "12:80 the variable `KDBT_TEST_UNSET` is not set",
        ),
        (
            "policies: policies/",
            "policies: p\nscram_iterations: 2",
            "14:19 expected 1 (dbt and psql) or 4096",
        ),
        (
            "policies: policies/",
            "policies: p\nadmins: [root]",
            "14:10 an admin is `realm:<role>`",
        ),
        (
            "policies: policies/",
            "policies: p\nlimits: { requests: 0 }",
            "14:21 a limit of 0",
        ),
        ("policies: policies/", "", "1:1 the configuration has no `policies`"),
        ("  dwh:", "  Dwh:", "12:3 a server name must be"),
    ] {
        assert!(GOOD.contains(from), "{from}");
        let found = mistakes(&GOOD.replace(from, to));
        assert!(found.lines().any(|line| line.starts_with(expected)), "{to}: {found}");
    }
}

#[test]
fn an_issuer_twice_and_a_server_twice_are_refused() {
    let issuer = "  - issuer: https://sso.example/realms/data\n    audiences: [b]\n    service_clients: [c]\n";
    let found = mistakes(&GOOD.replace("store:", &format!("{issuer}store:")));
    assert_eq!(found, "10:5 this issuer is configured twice");
    let found = mistakes(&GOOD.replace("policies:", "  dwh: { engine: postgres }\npolicies:"));
    assert!(found.contains("13:3 the key `dwh` stands twice"), "{found}");
}

#[test]
fn admins_are_read_exactly() {
    assert_eq!("realm:dba".parse(), Ok(Admin::RealmRole("dba".into())));
    assert_eq!("group:/ops".parse(), Ok(Admin::Group("/ops".into())));
    let role = Admin::ClientRole {
        client: "kdbt-broker".into(),
        role: "admin".into(),
    };
    assert_eq!("client:kdbt-broker:admin".parse(), Ok(role));
    for text in [
        "",
        "admin",
        "realm:",
        "client:x",
        "client::x",
        "group:ops",
        "group:/",
        "user:x",
    ] {
        assert!(text.parse::<Admin>().is_err(), "{text}");
    }
}

#[test]
fn the_example_in_the_documentation_loads() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("broker.yaml");
    std::fs::write(folder.path().join("dwh.password"), "x").unwrap();
    let example = include_str!("../../../docs/broker.example.yaml");
    std::fs::write(&path, example.replace("env: KDBT_DWH_PASSWORD", "file: dwh.password")).unwrap();
    if let Err(found) = Config::load(&path) {
        panic!("{found}");
    }
}
