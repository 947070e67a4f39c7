//! A connection as dbt reads it: one whole top-level profile of `profiles.yml`.
//!
//! Every text goes out as a JSON string, which is a YAML string too. dbt then renders it as Jinja, so a
//! value that Jinja would change is refused instead of escaped.

use std::fmt::Write as _;

use secrecy::{ExposeSecret, SecretString};

use crate::lease::{Connection, Engine, PostgresConnection, SnowflakeConnection};
use crate::name::{ProfileName, TargetName};
use crate::terminal::is_control;

/// The variable that holds the secret. dbt puts `DBT_ENV_SECRET_…` values in after rendering and masks
/// them in its logs.
#[must_use]
pub fn secret_variable(engine: Engine) -> &'static str {
    match engine {
        Engine::Postgres => "DBT_ENV_SECRET_KDBT_PASSWORD",
        Engine::Snowflake => "DBT_ENV_SECRET_KDBT_PRIVATE_KEY",
    }
}

/// How the profile gets to its secret.
#[derive(Debug, Clone, Copy)]
pub enum SecretForm<'a> {
    /// From [`secret_variable`], so that the file holds no secret.
    Variable,
    /// Written into the file.
    Literal(&'a SecretString),
}

/// Why a connection cannot be written as a profile. Never quotes a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    /// dbt would render it, and connect to something else.
    #[error("`{0}` holds `{{{{`, `{{%` or `{{#`, which dbt would run as Jinja")]
    Jinja(&'static str),
    /// dbt would take it for the place of a secret, and drop what stands there.
    #[error("`{0}` holds the prefix of dbt's secret variables, so dbt would drop what stands there")]
    Placeholder(&'static str),
    /// A control or direction character, or one that YAML reads as a line break.
    #[error("`{0}` holds a control character")]
    Control(&'static str),
    /// There is no text where dbt wants one.
    #[error("`{0}` is empty")]
    Empty(&'static str),
    /// Something that is neither a name nor an address: a list of hosts, a socket, half a URL.
    #[error("`host` is not a host name or an address")]
    Host,
    /// Something that is no account identifier: a URL, an address.
    #[error("`account` is not a Snowflake account identifier")]
    Account,
    /// No server listens on port 0.
    #[error("`port` is 0")]
    Port,
    /// dbt reads a top-level `config` as something else than a profile.
    #[error("dbt does not allow a profile named `config`")]
    ReservedName,
}

/// The profile as YAML: `{profile: {target, outputs: {target: …}}}`, ready to stand beside others.
///
/// `ca_file` is where the certificate authority lies, as dbt shall open it; Snowflake's are public.
pub fn render(
    profile: &ProfileName,
    target: &TargetName,
    connection: &Connection,
    secret: SecretForm<'_>,
    ca_file: Option<&str>,
) -> Result<SecretString, ProfileError> {
    let mut output = Output::open(profile, target)?;
    output.bare("type", connection.engine());
    match connection {
        Connection::Postgres(connection) => postgres(&mut output, connection, secret, ca_file)?,
        Connection::Snowflake(connection) => snowflake(&mut output, connection, secret)?,
    }
    Ok(output.close())
}

/// `role` is written only where dbt can send it unquoted; the server sets it at login in any case.
fn postgres(
    output: &mut Output,
    connection: &PostgresConnection,
    secret: SecretForm<'_>,
    ca_file: Option<&str>,
) -> Result<(), ProfileError> {
    check_address(&connection.host, connection.port)?;
    output.text("host", &connection.host)?;
    output.bare("port", connection.port);
    output.text("user", connection.user.as_str())?;
    output.secret("password", Engine::Postgres, secret)?;
    output.text("dbname", connection.database.as_str())?;
    output.text("schema", connection.schema.as_str())?;
    output.bare("threads", connection.threads);
    if let Some(role) = connection.role.as_deref().filter(|role| is_plain(role)) {
        output.text("role", role)?;
    }
    if let Some(path) = &connection.search_path {
        output.text("search_path", path)?;
    }
    output.bare("sslmode", connection.sslmode.as_str());
    if let Some(file) = ca_file {
        output.text("sslrootcert", file)?;
    }
    output.number("keepalives_idle", connection.keepalives_idle);
    output.number("connect_timeout", connection.connect_timeout);
    output.number("retries", connection.retries);
    // dbt's default is `dbt`; only the empty text lets PGAPPNAME name the lease.
    output.bare("application_name", "\"\"");
    Ok(())
}

/// Neither `authenticator` nor `method`: a key says enough to every adapter from 1.5 on, and the other engines of dbt
/// disagree on both. No `query_tag`: it stands on the user, since in the profile it would void dbt's parse cache.
fn snowflake(
    output: &mut Output,
    connection: &SnowflakeConnection,
    secret: SecretForm<'_>,
) -> Result<(), ProfileError> {
    check_account(&connection.account)?;
    output.text("account", &connection.account)?;
    if let Some(address) = &connection.address {
        check_address(&address.host, address.port)?;
        output.text("host", &address.host)?;
        output.bare("port", address.port);
        output.bare("protocol", if address.plain { "http" } else { "https" });
    }
    output.text("user", connection.user.as_str())?;
    output.secret("private_key", Engine::Snowflake, secret)?;
    output.text("role", connection.role.as_str())?;
    output.text("database", connection.database.as_str())?;
    if let Some(warehouse) = &connection.warehouse {
        output.text("warehouse", warehouse.as_str())?;
    }
    output.text("schema", connection.schema.as_str())?;
    output.bare("threads", connection.threads);
    output.number("connect_timeout", connection.connect_timeout);
    output.number("connect_retries", connection.connect_retries);
    Ok(())
}

/// A profile to commit: every value from a variable that `exec` and `env` set, each with a default, so
/// that `parse` and `ls` work without a lease.
pub fn template(profile: &ProfileName, target: &TargetName, engine: Engine) -> Result<String, ProfileError> {
    let mut output = Output::open(profile, target)?;
    output.bare("type", engine);
    let secret = secret_variable(engine);
    match engine {
        Engine::Postgres => {
            output.variable("host", "KDBT_HOST", Some("localhost"));
            output.bare("port", "\"{{ env_var('KDBT_PORT', '5432') | as_number }}\"");
            output.variable("user", "KDBT_USER", Some("kdbt_no_lease"));
            output.variable("password", secret, Some("no-lease"));
            output.variable("dbname", "KDBT_DBNAME", Some("postgres"));
            output.variable("schema", "KDBT_SCHEMA", Some("no_lease"));
            output.bare("threads", 4);
            // Said here too: where only our own variables reach dbt, libpq would tell its password to any server.
            output.variable("sslmode", "PGSSLMODE", Some("verify-full"));
            output.bare("application_name", "\"\"");
        }
        Engine::Snowflake => {
            output.variable("account", "KDBT_ACCOUNT", Some("no-lease"));
            output.variable("user", "KDBT_USER", Some("KDBT_NO_LEASE"));
            output.variable("private_key", secret, Some("no-lease"));
            output.variable("role", "KDBT_ROLE", Some("PUBLIC"));
            output.variable("database", "KDBT_DBNAME", Some("NO_LEASE"));
            output.variable("warehouse", "KDBT_WAREHOUSE", Some("NO_LEASE"));
            output.variable("schema", "KDBT_SCHEMA", Some("NO_LEASE"));
            output.bare("threads", 4);
        }
    }
    Ok(output.text)
}

/// The lines of one output, in the order they are written.
struct Output {
    text: String,
}

impl Output {
    fn open(profile: &ProfileName, target: &TargetName) -> Result<Self, ProfileError> {
        if profile.as_str() == "config" {
            return Err(ProfileError::ReservedName);
        }
        // Quoted, or a profile named `true` would be no text.
        let text = format!("\"{profile}\":\n  target: \"{target}\"\n  outputs:\n    \"{target}\":\n");
        Ok(Self { text })
    }

    /// A value that YAML takes as it stands.
    fn bare(&mut self, key: &str, value: impl std::fmt::Display) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "      {key}: {value}");
    }

    fn text(&mut self, key: &'static str, value: &str) -> Result<(), ProfileError> {
        check_text(key, value)?;
        self.bare(key, serde_json::Value::from(value));
        Ok(())
    }

    fn number(&mut self, key: &str, value: Option<u32>) {
        if let Some(value) = value {
            self.bare(key, value);
        }
    }

    fn secret(&mut self, key: &'static str, engine: Engine, secret: SecretForm<'_>) -> Result<(), ProfileError> {
        match secret {
            SecretForm::Variable => {
                self.variable(key, secret_variable(engine), None);
                Ok(())
            }
            SecretForm::Literal(secret) => self.text(key, secret.expose_secret()),
        }
    }

    fn variable(&mut self, key: &str, variable: &str, default: Option<&str>) {
        let default = default.map_or_else(String::new, |text| format!(", '{text}'"));
        self.bare(key, format_args!("\"{{{{ env_var('{variable}'{default}) }}}}\""));
    }

    fn close(self) -> SecretString {
        self.text.into()
    }
}

/// Whether dbt and every YAML reader give this text back as it is.
fn check_text(key: &'static str, value: &str) -> Result<(), ProfileError> {
    if value.is_empty() {
        return Err(ProfileError::Empty(key));
    }
    if is_jinja(value) {
        return Err(ProfileError::Jinja(key));
    }
    if value.contains("DBT_ENV_SECRET") {
        return Err(ProfileError::Placeholder(key));
    }
    if value.chars().any(is_control) {
        return Err(ProfileError::Control(key));
    }
    Ok(())
}

fn is_jinja(value: &str) -> bool {
    ["{{", "{%", "{#"].iter().any(|opening| value.contains(opening))
}

/// An account identifier: `myorg-myaccount`, or an account locator with its region, `xy12345.eu-central-1.privatelink`.
fn check_account(account: &str) -> Result<(), ProfileError> {
    check_text("account", account)?;
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let starts = account.starts_with(|c: char| c.is_ascii_alphanumeric());
    if starts && account.len() <= 253 && account.chars().all(fits) {
        Ok(())
    } else {
        Err(ProfileError::Account)
    }
}

fn check_address(host: &str, port: u16) -> Result<(), ProfileError> {
    check_host(host)?;
    if port == 0 { Err(ProfileError::Port) } else { Ok(()) }
}

/// A host name, an IPv4 or an IPv6 address: what survives dbt 2's unescaped URI and is no list for libpq.
fn check_host(host: &str) -> Result<(), ProfileError> {
    check_text("host", host)?;
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    let starts = host.starts_with(|c: char| c.is_ascii_alphanumeric() || c == ':');
    if starts && host.len() <= 253 && host.chars().all(fits) {
        Ok(())
    } else {
        Err(ProfileError::Host)
    }
}

/// Whether dbt-postgres can send the name as it does: `set role <name>`, unquoted.
fn is_plain(role: &str) -> bool {
    role.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && role
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::lease::{SnowflakeAddress, SslMode};
    use proptest::prelude::*;

    fn connection() -> PostgresConnection {
        PostgresConnection {
            host: "dwh.acme.example".into(),
            port: 5432,
            database: "analytics".parse().unwrap(),
            user: "kdbt_ada_0".parse().unwrap(),
            role: Some("dbt_finance".into()),
            schema: "finance".parse().unwrap(),
            threads: 4,
            sslmode: SslMode::VerifyFull,
            ca_pem: None,
            search_path: Some("finance, public".into()),
            keepalives_idle: Some(30),
            connect_timeout: Some(10),
            retries: Some(1),
        }
    }

    fn snowflake() -> SnowflakeConnection {
        SnowflakeConnection {
            account: "myorg-my_acct".into(),
            address: None,
            user: "KDBT_ADA_0".parse().unwrap(),
            role: "DBT_FINANCE".parse().unwrap(),
            database: "ANALYTICS".parse().unwrap(),
            warehouse: Some("TRANSFORMING".parse().unwrap()),
            schema: "FINANCE".parse().unwrap(),
            threads: 8,
            connect_timeout: None,
            connect_retries: None,
        }
    }

    fn rendered(connection: &PostgresConnection, secret: SecretForm<'_>) -> Result<String, ProfileError> {
        rendered_any(&Connection::Postgres(connection.clone()), secret)
    }

    fn rendered_any(connection: &Connection, secret: SecretForm<'_>) -> Result<String, ProfileError> {
        let (profile, target) = ("jaffle".parse().unwrap(), "dev".parse().unwrap());
        render(&profile, &target, connection, secret, None).map(|yaml| yaml.expose_secret().to_owned())
    }

    #[test]
    fn a_profile_with_everything_reads_its_secret_from_a_variable() {
        let (profile, target) = ("jaffle".parse().unwrap(), "dev".parse().unwrap());
        let ca = Some("/home/ada/ca \"2\".pem");
        let yaml = render(
            &profile,
            &target,
            &Connection::Postgres(connection()),
            SecretForm::Variable,
            ca,
        )
        .unwrap();
        insta::assert_snapshot!(yaml.expose_secret(), @r#"
        "jaffle":
          target: "dev"
          outputs:
            "dev":
              type: postgres
              host: "dwh.acme.example"
              port: 5432
              user: "kdbt_ada_0"
              password: "{{ env_var('DBT_ENV_SECRET_KDBT_PASSWORD') }}"
              dbname: "analytics"
              schema: "finance"
              threads: 4
              role: "dbt_finance"
              search_path: "finance, public"
              sslmode: verify-full
              sslrootcert: "/home/ada/ca \"2\".pem"
              keepalives_idle: 30
              connect_timeout: 10
              retries: 1
              application_name: ""
        "#);
    }

    #[test]
    fn a_profile_with_the_least_holds_its_secret() {
        let least = PostgresConnection {
            role: None,
            search_path: None,
            keepalives_idle: None,
            connect_timeout: None,
            retries: None,
            sslmode: SslMode::Disable,
            host: "127.0.0.1".into(),
            ..connection()
        };
        let password = SecretString::from("aB3");
        insta::assert_snapshot!(rendered(&least, SecretForm::Literal(&password)).unwrap(), @r#"
        "jaffle":
          target: "dev"
          outputs:
            "dev":
              type: postgres
              host: "127.0.0.1"
              port: 5432
              user: "kdbt_ada_0"
              password: "aB3"
              dbname: "analytics"
              schema: "finance"
              threads: 4
              sslmode: disable
              application_name: ""
        "#);
    }

    #[test]
    fn the_template_has_a_default_for_every_variable() {
        let yaml = template(&"jaffle".parse().unwrap(), &"dev".parse().unwrap(), Engine::Postgres).unwrap();
        insta::assert_snapshot!(yaml, @r#"
        "jaffle":
          target: "dev"
          outputs:
            "dev":
              type: postgres
              host: "{{ env_var('KDBT_HOST', 'localhost') }}"
              port: "{{ env_var('KDBT_PORT', '5432') | as_number }}"
              user: "{{ env_var('KDBT_USER', 'kdbt_no_lease') }}"
              password: "{{ env_var('DBT_ENV_SECRET_KDBT_PASSWORD', 'no-lease') }}"
              dbname: "{{ env_var('KDBT_DBNAME', 'postgres') }}"
              schema: "{{ env_var('KDBT_SCHEMA', 'no_lease') }}"
              threads: 4
              sslmode: "{{ env_var('PGSSLMODE', 'verify-full') }}"
              application_name: ""
        "#);
        assert_eq!(yaml.matches("env_var(").count(), yaml.matches("', '").count());
    }

    #[test]
    fn a_snowflake_profile_reads_its_key_from_a_variable_and_names_no_authenticator() {
        let connection = Connection::Snowflake(snowflake());
        insta::assert_snapshot!(rendered_any(&connection, SecretForm::Variable).unwrap(), @r#"
        "jaffle":
          target: "dev"
          outputs:
            "dev":
              type: snowflake
              account: "myorg-my_acct"
              user: "KDBT_ADA_0"
              private_key: "{{ env_var('DBT_ENV_SECRET_KDBT_PRIVATE_KEY') }}"
              role: "DBT_FINANCE"
              database: "ANALYTICS"
              warehouse: "TRANSFORMING"
              schema: "FINANCE"
              threads: 8
        "#);
    }

    #[test]
    fn a_snowflake_profile_with_an_address_of_its_own_holds_its_key() {
        let connection = Connection::Snowflake(SnowflakeConnection {
            address: Some(SnowflakeAddress {
                host: "127.0.0.1".into(),
                port: 8443,
                plain: true,
            }),
            warehouse: None,
            connect_timeout: Some(10),
            connect_retries: Some(2),
            ..snowflake()
        });
        let key = SecretString::from("MIIEvAIBADANBg+/=");
        insta::assert_snapshot!(rendered_any(&connection, SecretForm::Literal(&key)).unwrap(), @r#"
        "jaffle":
          target: "dev"
          outputs:
            "dev":
              type: snowflake
              account: "myorg-my_acct"
              host: "127.0.0.1"
              port: 8443
              protocol: http
              user: "KDBT_ADA_0"
              private_key: "MIIEvAIBADANBg+/="
              role: "DBT_FINANCE"
              database: "ANALYTICS"
              schema: "FINANCE"
              threads: 8
              connect_timeout: 10
              connect_retries: 2
        "#);
    }

    #[test]
    fn an_account_that_wants_to_be_more_than_an_account_is_refused() {
        for (account, error) in [
            ("", ProfileError::Empty("account")),
            ("{{ 1 }}", ProfileError::Jinja("account")),
            ("https://a.snowflakecomputing.com", ProfileError::Account),
            ("a/b", ProfileError::Account),
            (".a", ProfileError::Account),
            ("a b", ProfileError::Account),
        ] {
            let connection = SnowflakeConnection {
                account: account.into(),
                ..snowflake()
            };
            let refused = rendered_any(&Connection::Snowflake(connection), SecretForm::Variable);
            assert_eq!(refused, Err(error), "{account:?}");
        }
    }

    #[test]
    fn the_snowflake_template_has_a_default_for_every_variable() {
        let yaml = template(&"jaffle".parse().unwrap(), &"dev".parse().unwrap(), Engine::Snowflake).unwrap();
        insta::assert_snapshot!(yaml, @r#"
        "jaffle":
          target: "dev"
          outputs:
            "dev":
              type: snowflake
              account: "{{ env_var('KDBT_ACCOUNT', 'no-lease') }}"
              user: "{{ env_var('KDBT_USER', 'KDBT_NO_LEASE') }}"
              private_key: "{{ env_var('DBT_ENV_SECRET_KDBT_PRIVATE_KEY', 'no-lease') }}"
              role: "{{ env_var('KDBT_ROLE', 'PUBLIC') }}"
              database: "{{ env_var('KDBT_DBNAME', 'NO_LEASE') }}"
              warehouse: "{{ env_var('KDBT_WAREHOUSE', 'NO_LEASE') }}"
              schema: "{{ env_var('KDBT_SCHEMA', 'NO_LEASE') }}"
              threads: 4
        "#);
        assert_eq!(yaml.matches("env_var(").count(), yaml.matches("', '").count());
    }

    #[test]
    fn a_role_that_dbt_cannot_send_unquoted_is_left_to_the_server() {
        for role in ["my-role", "Dbt", "a$b", "1a", ""] {
            let connection = PostgresConnection {
                role: Some(role.into()),
                ..connection()
            };
            let yaml = rendered(&connection, SecretForm::Variable).unwrap();
            assert!(!yaml.contains("role:"), "{role}");
        }
    }

    #[test]
    fn a_host_that_wants_to_be_more_than_a_host_is_refused() {
        for (host, error) in [
            ("", ProfileError::Empty("host")),
            ("{{ env_var('HOME') }}", ProfileError::Jinja("host")),
            ("a{#b", ProfileError::Jinja("host")),
            ("dwh.DBT_ENV_SECRET", ProfileError::Placeholder("host")),
            ("a\nb", ProfileError::Control("host")),
            ("a\u{202e}b", ProfileError::Control("host")),
            ("a,b", ProfileError::Host),
            ("/var/run/postgresql", ProfileError::Host),
            ("user@host", ProfileError::Host),
            ("-h", ProfileError::Host),
            ("a b", ProfileError::Host),
        ] {
            let connection = PostgresConnection {
                host: host.into(),
                ..connection()
            };
            assert_eq!(rendered(&connection, SecretForm::Variable), Err(error), "{host:?}");
        }
    }

    #[test]
    fn a_profile_named_config_is_refused_and_one_named_true_stays_a_text() {
        let target = "dev".parse().unwrap();
        let render = |name: &str| {
            render(
                &name.parse().unwrap(),
                &target,
                &Connection::Postgres(connection()),
                SecretForm::Variable,
                None,
            )
        };
        assert!(matches!(render("config"), Err(ProfileError::ReservedName)));
        assert!(render("true").unwrap().expose_secret().starts_with("\"true\":"));
    }

    proptest! {
        #[test]
        fn every_value_that_is_accepted_reads_back_equal(password in "\\PC{1,40}", path in "[a-z {}%#\"'\\\\ä:]{1,20}") {
            let connection = PostgresConnection { search_path: Some(path.clone()), ..connection() };
            let secret = SecretString::from(password.as_str());
            if let Ok(yaml) = rendered(&connection, SecretForm::Literal(&secret)) {
                type Profiles = BTreeMap<String, Profile>;
                #[derive(serde::Deserialize)]
                struct Profile { outputs: BTreeMap<String, Fields> }
                #[derive(serde::Deserialize)]
                struct Fields { password: String, search_path: String, port: u16 }
                let read: Profiles = serde_saphyr::from_str(&yaml).unwrap();
                let output = &read["jaffle"].outputs["dev"];
                prop_assert_eq!(&output.password, &password);
                prop_assert_eq!(&output.search_path, &path);
                prop_assert_eq!(output.port, 5432);
                prop_assert!(!is_jinja(&password) && !is_jinja(&path));
            }
        }
    }
}
