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
    let Server::Postgres(server) = &config.servers[&"dwh".parse().unwrap()] else {
        panic!("{config:?}")
    };
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
        ("engine: postgres", "engine: snowflak", "12:18 unknown engine"),
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
fn the_scan_runs_hourly_unless_told_otherwise_and_its_file_lies_beside_the_configuration() {
    assert_eq!(load(GOOD).unwrap().scan, Scan::default());
    let config = load(&format!("{GOOD}scan: {{ every: 10m, approved: ../residue.yaml }}\n")).unwrap();
    assert_eq!(config.scan.every, Duration::from_mins(10));
    let folder = config.path.parent().unwrap();
    assert_eq!(config.scan.approved, Some(folder.join("../residue.yaml")));
    let wrong = mistakes(&format!("{GOOD}scan: {{ every: 0s, aproved: x }}\n"));
    assert!(
        wrong.contains("at least `1s`") && wrong.contains("unknown key `aproved`"),
        "{wrong}"
    );
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

const LAKE: &str = "  lake: { engine: snowflake, connect: { account: myorg-myacct, user: KDBT_SVC, role: kdbt_broker, private_key: { file: key } } }\n";

const PEM: &str = include_str!("../../../tests/fixtures/snowflake/key_a.p8");

/// The good configuration with an account, one part of it replaced, and a key file.
fn lake(from: &str, to: &str, key: &str) -> Result<SnowflakeServer, Diagnostics> {
    assert!(LAKE.contains(from), "{from}");
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in [("pw", "s3cret"), ("key", key)] {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    let path = folder.path().join("broker.yaml");
    let lake = LAKE.replacen(from, to, 1);
    std::fs::write(&path, GOOD.replace("policies:", &format!("{lake}policies:"))).unwrap();
    let mut servers = Config::load(&path)?.servers;
    match servers.remove(&"lake".parse::<ServerName>().unwrap()) {
        Some(Server::Snowflake(lake)) => Ok(lake),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_small_account_gets_the_defaults() {
    let server = lake("myorg", "myorg", PEM).unwrap();
    assert_eq!(server.connect.role.as_str(), "KDBT_BROKER", "names are in capitals");
    let line: String = PEM.lines().filter(|line| !line.starts_with('-')).collect();
    assert_eq!(server.connect.private_key.secret().expose_secret(), line);
    assert_eq!(
        (server.public_account.as_str(), &server.public_address),
        ("myorg-myacct", &None)
    );
    assert_eq!(
        (server.calls, server.hard_expiry, &server.session_policy),
        (64, false, &None)
    );
    assert!(!format!("{server:?}").contains("MIIE"));
}

#[test]
fn an_account_that_is_dialled_elsewhere_is_found_there_by_dbt_too_unless_public_says_otherwise() {
    let at = |to: &str| lake("private_key:", &format!("{to}, private_key:"), PEM).unwrap();
    let server = at("base_url: \"http://127.0.0.1:8080\"");
    let address = server.public_address.unwrap();
    assert_eq!(
        (address.host.as_str(), address.port, address.plain),
        ("127.0.0.1", 8080, true)
    );
    let server = lake(
        "engine: snowflake",
        "engine: snowflake, public: { account: other-acct, host: sf.internal }, session_policy: a.b.c, hard_expiry: true, calls: 8",
        PEM,
    )
    .unwrap();
    let address = server.public_address.unwrap();
    assert_eq!(
        (address.host.as_str(), address.port, address.plain),
        ("sf.internal", 443, false)
    );
    assert_eq!((server.public_account.as_str(), server.calls), ("other-acct", 8));
    assert_eq!(
        (server.session_policy.as_deref(), server.hard_expiry),
        (Some("A.B.C"), true)
    );
}

#[test]
fn every_odd_account_is_refused_at_its_place_with_what_it_should_look_like() {
    for good in [
        "xy12345.eu-central-1.privatelink",
        "MYORG-MY_ACCT",
        "conn1-a1b2c3.global",
    ] {
        assert!(lake("myorg-myacct", good, PEM).is_ok(), "{good}");
    }
    for odd in [
        "\"\"",
        "\" \"",
        "\"my org\"",
        "https://myorg-myacct.snowflakecomputing.com",
        "myorg-myacct.snowflakecomputing.com",
        "MYORG-MYACCT.SnowflakeComputing.cn",
        "app.snowflake.com/myorg/myacct",
        "app.snowflake.com",
        "myorg-myacct.",
        ".myorg",
        "a..b",
        "-a",
        "\"my\u{e9}\"",
        "\"a@b\"",
    ] {
        let found = lake("myorg-myacct", odd, PEM).unwrap_err();
        let first = found.iter().next().unwrap();
        let place = first.place.as_ref().unwrap();
        assert_eq!((place.line(), place.column()), (13, 50), "{odd}: {found}");
        assert!(
            first.message.starts_with("expected") && found.to_string().contains("myorg-myacct"),
            "{odd}: {found}"
        );
    }
}

#[test]
fn a_key_of_another_form_is_refused_with_the_command_that_makes_it_fit_and_never_printed() {
    let pem = |name: &str| format!("-----BEGIN {name}-----\nhunter2\n-----END {name}-----\n");
    for (key, says) in [
        (pem("ENCRYPTED PRIVATE KEY"), "openssl pkcs8 -in OLD"),
        (pem("RSA PRIVATE KEY"), "openssl pkcs8 -topk8 -nocrypt"),
        (pem("PUBLIC KEY"), "no private key"),
        (
            include_str!("../../../tests/fixtures/snowflake/rsa_1024.p8").into(),
            "fewer than 2048 bits",
        ),
        (
            include_str!("../../../tests/fixtures/snowflake/ec_p256.p8").into(),
            "no RSA key",
        ),
        ("hunter2 hunter2".into(), "must be PKCS#8"),
        (String::new(), "must be PKCS#8"),
    ] {
        let found = lake("myorg", "myorg", &key).unwrap_err();
        let place = found.iter().next().unwrap().place.as_ref().unwrap();
        assert_eq!((place.line(), place.column()), (13, 112), "{found}");
        let text = found.to_string();
        let body = key.lines().nth(1).unwrap_or("hunter2");
        assert!(text.contains(says) && !text.contains(body), "{text}");
    }
}

#[test]
fn each_mistake_of_an_account_is_refused() {
    for (from, to, says) in [
        ("user: KDBT_SVC", "user: \"a b\"", "expected the LOGIN_NAME"),
        ("user: KDBT_SVC, ", "", "`connect` has no `user`"),
        ("role: kdbt_broker", "role: public", "`PUBLIC` is reserved"),
        (
            "private_key: { file: key }",
            "password: { file: pw }",
            "Snowflake takes no password",
        ),
        (
            "private_key: { file: key }",
            "private_key: MIIE",
            "a secret must not stand in the configuration",
        ),
        (
            "private_key:",
            "base_url: \"http://sf.example\", private_key:",
            "plain http is for loopback",
        ),
        (
            "private_key:",
            "base_url: \"https://sf.example/x\", private_key:",
            "must have no path",
        ),
        ("private_key:", "ca_file: none.pem, private_key:", "cannot read"),
        ("private_key:", "acount: x, private_key:", "unknown key `acount`"),
        (
            "engine: snowflake",
            "engine: snowflake, calls: 0",
            "with no call at once",
        ),
        (
            "engine: snowflake",
            "engine: snowflake, session_policy: kdbt",
            "full name of a session policy",
        ),
        (
            "engine: snowflake",
            "engine: snowflake, accept_createrole: true",
            "unknown key `accept_createrole`",
        ),
        (
            "engine: snowflake",
            "engine: snowflake, public: { port: 1 }",
            "belongs to a `host`",
        ),
        (
            "engine: snowflake",
            "engine: snowflake, public: { host: sf.example, plain: true }",
            "loopback addresses only",
        ),
        (
            "engine: snowflake",
            "engine: snowflake, public: { host: localhost, port: 0 }",
            "a port is a number from 1",
        ),
    ] {
        let found = lake(from, to, PEM).unwrap_err().to_string();
        assert!(found.contains(says), "{to}: {found}");
    }
}

#[test]
fn the_account_in_the_documentation_loads() {
    let example = include_str!("../../../docs/broker.example.yaml");
    let (_, account) = example.split_once("  # sf:").unwrap();
    let lines = account.lines().skip(1).map_while(|line| line.strip_prefix("  # "));
    let text = lines.map(|line| format!("  {line}\n")).collect::<Vec<_>>().concat();
    let text = format!(
        "  lake:\n{}",
        text.replace("      ca_file: ca.pem\n", "").replace("sf.p8", "key")
    );
    let server = lake(LAKE, &text, PEM).unwrap();
    assert_eq!(server.session_policy.as_deref(), Some("SECURITY.POLICIES.KDBT"));
    assert_eq!(server.public_address.unwrap().host, "sf.internal");
}
