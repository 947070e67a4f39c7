//! The writer of profiles: what it writes is read back by a YAML reader, and by dbt, as what was meant.

use std::cell::RefCell;
use std::fmt::{Debug, Write as _};
use std::process::{Command, Stdio};
use std::str::FromStr;

use kdbt_api::lease::{Connection, PostgresConnection, SnowflakeAddress, SnowflakeConnection, SslMode};
use kdbt_api::name::{ProfileName, TargetName};
use kdbt_api::profile::{SecretForm, render};
use kdbt_e2e::dbt::Dbt;
use kdbt_e2e::fuzz::{Target, repeats};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};

use super::hold;

/// Stands between the fields of an input; no text has it.
const FIELD: u8 = 0xff;
/// What dbt finds in the variable of the secret; it would mean something to YAML, to Jinja and to dbt.
const SECRET: &str = "p'w\"{{ 1 }}: #\\";
/// So many of the profiles that were written go to dbt.
const FOR_DBT: usize = 2_000;

/// What the fields of an input stand for.
struct Given {
    profile: ProfileName,
    target: TargetName,
    connection: Connection,
    secret: Option<SecretString>,
    ca_file: Option<String>,
}

/// The name that the text is, or else this one.
fn name<T: FromStr<Err: Debug>>(text: &str, otherwise: &str) -> T {
    text.parse().unwrap_or_else(|_| otherwise.parse().unwrap())
}

fn given(input: &[u8]) -> Given {
    let mut fields = input
        .split(|byte| *byte == FIELD)
        .map(|field| String::from_utf8_lossy(field).into_owned());
    let mut next = || fields.next().unwrap_or_default();
    let optional = |text: String| (!text.is_empty()).then_some(text);
    let (profile, target) = (name(&next(), "jaffle"), name(&next(), "dev"));
    let (host, secret, ca_file) = (next(), optional(next()), optional(next()));
    let (role, search_path, database, schema, warehouse) = (next(), next(), next(), next(), next());
    let number = u32::try_from(input.len()).ok();
    let connection = if role.starts_with("SNOW") {
        Connection::Snowflake(SnowflakeConnection {
            account: host,
            address: (!search_path.is_empty()).then_some(SnowflakeAddress {
                host: search_path,
                port: 8443,
                plain: input.len().is_multiple_of(2),
            }),
            user: "KDBT_ADA_0".parse().unwrap(),
            role: name(&role, "SNOW"),
            database: name(&database, "ANALYTICS"),
            warehouse: warehouse.parse().ok(),
            schema: name(&schema, "FINANCE"),
            threads: 4,
            connect_timeout: number,
            connect_retries: None,
        })
    } else {
        Connection::Postgres(PostgresConnection {
            host,
            port: 5432,
            database: name(&database, "analytics"),
            user: "kdbt_ada_0".parse().unwrap(),
            role: optional(role),
            schema: name(&schema, "finance"),
            threads: 4,
            sslmode: SslMode::VerifyFull,
            ca_pem: None,
            search_path: optional(search_path),
            keepalives_idle: number,
            connect_timeout: None,
            retries: None,
        })
    };
    Given {
        profile,
        target,
        connection,
        secret: secret.map(SecretString::from),
        ca_file,
    }
}

/// What a reader must find of it. A secret that is not given comes from its variable.
fn expected(given: &Given, secret: &str) -> Value {
    let mut output = match &given.connection {
        Connection::Postgres(it) => json!({
            "type": "postgres", "host": it.host, "port": it.port, "user": it.user, "password": secret,
            "dbname": it.database, "schema": it.schema, "threads": it.threads, "role": it.role,
            "search_path": it.search_path, "sslmode": "verify-full", "sslrootcert": given.ca_file,
            "keepalives_idle": it.keepalives_idle, "application_name": "",
        }),
        Connection::Snowflake(it) => json!({
            "type": "snowflake", "account": it.account, "user": it.user, "private_key": secret, "role": it.role,
            "database": it.database, "schema": it.schema, "warehouse": it.warehouse, "threads": it.threads,
            "host": it.address.as_ref().map(|address| &address.host),
            "port": it.address.as_ref().map(|address| address.port),
            "protocol": it.address.as_ref().map(|address| if address.plain { "http" } else { "https" }),
            "connect_timeout": it.connect_timeout,
        }),
    };
    let output = output.as_object_mut().unwrap();
    let sent_unquoted = |role: &str| {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        role.chars().all(plain) && !role.starts_with(|c: char| c.is_ascii_digit())
    };
    if let Connection::Postgres(it) = &given.connection
        && !it.role.as_deref().is_some_and(sent_unquoted)
    {
        output.remove("role");
    }
    output.retain(|_, value| !value.is_null());
    let (profile, target) = (given.profile.as_str(), given.target.as_str());
    json!({ profile: { "target": target, "outputs": { target: output } } })
}

#[test]
fn a_profile_reads_back_as_what_was_meant_in_yaml_and_in_dbt() {
    let written = RefCell::new(Vec::new());
    let check = |input: &[u8]| {
        let given = given(input);
        let form = given.secret.as_ref().map_or(SecretForm::Variable, SecretForm::Literal);
        let ca_file = given.ca_file.as_deref();
        let yaml = match render(&given.profile, &given.target, &given.connection, form, ca_file) {
            Ok(yaml) => yaml,
            Err(error) => {
                let secret = given.secret.as_ref().map_or("", |secret| secret.expose_secret());
                hold(
                    !repeats(&format!("{error} {error:?}"), secret.as_bytes(), 12),
                    "an error tells the secret",
                )?;
                return Ok(format!("{error:?}"));
            }
        };
        let yaml = yaml.expose_secret();
        let variable = |name: &str| format!("{{{{ env_var('{name}') }}}}");
        let from_variable = match given.connection {
            Connection::Postgres(_) => variable("DBT_ENV_SECRET_KDBT_PASSWORD"),
            Connection::Snowflake(_) => variable("DBT_ENV_SECRET_KDBT_PRIVATE_KEY"),
        };
        let secret = given.secret.as_ref().map(|secret| secret.expose_secret().to_owned());
        let meant = expected(&given, secret.as_deref().unwrap_or(&from_variable));
        // One document, and no key more than was meant, also with another profile before and behind it.
        let read: Value = serde_saphyr::from_str(yaml).map_err(|error| format!("no YAML: {error}"))?;
        hold(read == meant, &format!("it reads as {read}, and meant is {meant}"))?;
        let beside = format!("\"before-1\": {{}}\n{yaml}\"behind-1\": {{}}\n");
        let read: Value = serde_saphyr::from_str(&beside).map_err(|error| format!("not beside others: {error}"))?;
        hold(
            read.as_object().is_some_and(|all| all.len() == 3),
            "it takes in what stands beside it",
        )?;
        let fields: usize = meant[given.profile.as_str()]["outputs"][given.target.as_str()]
            .as_object()
            .unwrap()
            .len();
        hold(
            yaml.lines().count() == fields + 4 && yaml.ends_with('\n'),
            "a line too many",
        )?;
        let mut written = written.borrow_mut();
        if written.len() < FOR_DBT {
            written.push(json!({ "yaml": yaml, "meant": expected(&given, secret.as_deref().unwrap_or(SECRET)) }));
        }
        Ok(format!("{fields}"))
    };
    let seed = |fields: &[&str]| {
        fields
            .join("\u{0}")
            .into_bytes()
            .into_iter()
            .map(|b| if b == 0 { FIELD } else { b })
            .collect()
    };
    Target {
        name: "profile",
        seeds: vec![
            seed(&[
                "jaffle",
                "dev",
                "dwh.acme.example",
                "",
                "",
                "dbt_finance",
                "finance, public",
                "analytics",
                "finance",
                "",
            ]),
            seed(&[
                "true",
                "prod",
                "::1",
                "aB3",
                "/home/ada/ca \"2\".pem",
                "my-role",
                "\"$user\"",
                "Analytics",
                "a$b",
                "",
            ]),
            seed(&[
                "a.b",
                "null",
                "myorg-acct",
                "MIIEvAIBADANBg+/=",
                "",
                "SNOW_R",
                "127.0.0.1",
                "DB",
                "SCHEMA",
                "WH",
            ]),
            seed(&["_", "on", "xy12345.eu-central-1", "", "", "SNOW", "", "D", "S", ""]),
        ],
        words: &[
            "{{ 1 }}",
            "{% x %}",
            "{# x #}",
            "{",
            "}",
            "}}",
            "\"",
            "'",
            "\\",
            "\\u0000",
            "\\x41",
            "#",
            " #",
            ": ",
            "- ",
            "? ",
            "---",
            "...",
            "&a",
            "*a",
            "!!str",
            "|",
            ">",
            "%",
            "@",
            "`",
            "[",
            "]",
            ",",
            "~",
            "null",
            "true",
            "0x1",
            "1_0",
            "1e3",
            "=",
            "<<",
            "DBT_ENV_SECRET_",
            "DBT_ENV_SECRET_KDBT_PASSWORD",
            "$$$DBT_SECRET_START$$$",
            "$$$DBT_SECRET_END$$$",
            "env_var('HOME')",
            "\u{7f}",
            "\u{85}",
            "\u{a0}",
            "\u{2028}",
            "\u{fffe}",
            "\u{10ffff}",
            "\u{e000}",
            "ẞ",
            "config",
        ],
        short: 6_000,
        check: &check,
    }
    .run();
    if Dbt::Postgres.is_there() {
        let cases = written.into_inner();
        assert!(cases.len() > 300, "too few were written: {}", cases.len());
        dbt_reads(&cases);
    }
}

/// Reads all of them as dbt reads `profiles.yml`: its YAML reader, then its rendering of profiles.
fn dbt_reads(cases: &[Value]) {
    const READ: &str = r#"
import json, sys
from dbt_common.context import set_invocation_context
secret = json.loads(sys.stdin.readline())
names = ["PASSWORD", "PRIVATE_KEY"]
set_invocation_context({"DBT_ENV_SECRET_KDBT_" + name: secret for name in names} | {"HOME": "/root"})
from dbt.clients.yaml_helper import load_yaml_text
from dbt.config.renderer import ProfileRenderer
for line in sys.stdin:
    case = json.loads(line)
    try:
        read = ProfileRenderer({}).render_data(load_yaml_text(case["yaml"]))
    except Exception as error:
        read = repr(error)
    if read != case["meant"]:
        print(json.dumps({"yaml": case["yaml"], "meant": case["meant"], "dbt read": read}))
"#;
    let python = Dbt::Postgres.program("python").unwrap();
    let mut lines = json!(SECRET).to_string();
    for case in cases {
        write!(lines, "\n{case}").unwrap();
    }
    let input = tempfile::tempdir().unwrap();
    std::fs::write(input.path().join("cases"), lines).unwrap();
    let output = Command::new(python)
        .args(["-c", READ])
        .stdin(std::fs::File::open(input.path().join("cases")).unwrap())
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "", "dbt reads another profile");
    eprintln!("fuzz profile: dbt read {} of them as they were meant", cases.len());
}
