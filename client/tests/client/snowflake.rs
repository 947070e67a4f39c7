//! Leases on Snowflake: a key pair that is made here, and is nowhere else.

use std::os::unix::fs::PermissionsExt as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kdbt_api::credential::PublicKey;
use serde_json::{Value, json};

use crate::fake::{Call, Fake, LEASE, stderr, stdout};

fn snowflake() -> Fake {
    let fake = Fake::start();
    fake.knobs().snowflake = Some(json!({}));
    fake
}

fn orders(fake: &Fake) -> Vec<Call> {
    let calls = fake.calls().into_iter();
    calls.filter(|call| call.line == "POST /v1/leases").collect()
}

fn key(text: &str) -> String {
    let line = text
        .lines()
        .find(|line| line.contains("private_key:") || line.contains("PRIVATE_KEY="));
    let key = line.unwrap().split(['"', '\'']).nth(1).unwrap().to_owned();
    assert!((1210..1224).contains(&STANDARD.decode(&key).unwrap().len()));
    key
}

#[test]
fn a_profile_holds_a_key_whose_public_half_the_broker_got_and_nothing_of_the_private_one() {
    let fake = snowflake();
    let output = fake.client_with_token(&["profile"]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let yaml = stdout(&output);
    let secret = key(&yaml);
    insta::assert_snapshot!(yaml.replace(&secret, "<key>"), @r#"
    "kdbt":
      target: "dev"
      outputs:
        "dev":
          type: snowflake
          account: "myorg-myacct"
          user: "KDBT_ADA_0"
          private_key: "<key>"
          role: "DBT_FINANCE"
          database: "ANALYTICS"
          warehouse: "BI"
          schema: "FINANCE"
          threads: 4
    "#);
    let order = orders(&fake).pop().unwrap();
    assert!(order.body["public_key"].as_str().unwrap().parse::<PublicKey>().is_ok());
    assert_eq!(order.body["verifier"], Value::Null);
    assert!(!format!("{:?}", fake.calls()).contains(&secret));
    assert!(!stderr(&output).contains(&secret));
}

#[test]
fn the_engine_is_learnt_once_and_unlearnt_when_it_changes() {
    let fake = snowflake();
    let profile = || {
        let before = orders(&fake).len();
        let output = fake.client_with_token(&["profile"]).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        orders(&fake).split_off(before)
    };
    let first = profile();
    assert_eq!(first.len(), 2, "a verifier, then a key");
    let keys: Vec<_> = first.iter().map(|call| &call.headers["idempotency-key"]).collect();
    assert_ne!(keys[0], keys[1], "another order has another key");
    assert_eq!(profile().len(), 1, "a key at once");
    fake.knobs().snowflake = None;
    let healed = profile();
    assert_eq!((healed.len(), healed[1].body["verifier"].is_string()), (2, true));
    assert_eq!(profile().len(), 1);
}

#[test]
fn a_damaged_memory_of_the_engine_is_replaced_by_what_the_broker_says() {
    let fake = snowflake();
    let run = || {
        let output = fake.client_with_token(&["profile"]).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        orders(&fake).len()
    };
    assert_eq!(run(), 2);
    let folder = fake.home.path().join(".local/state/kdbt/engines");
    let memory = std::fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
    std::fs::write(&memory, "\"oracl").unwrap();
    assert_eq!(run(), 4, "as if nothing was remembered");
    assert_eq!(run(), 5);
}

#[test]
fn a_broker_that_names_the_other_engine_each_time_gets_two_orders_and_no_more() {
    for snowflake in [None, Some(json!({}))] {
        let fake = Fake::start();
        fake.knobs().snowflake = snowflake;
        fake.knobs().contradicts = true;
        let output = fake.client_with_token(&["profile"]).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("contradicts itself"), "{}", stderr(&output));
        assert_eq!(orders(&fake).len(), 2);
    }
}

#[test]
fn exec_keeps_the_key_in_one_variable_and_out_of_every_file_and_of_libpq() {
    let fake = snowflake();
    let script = "env; echo FILE; cat $DBT_PROFILES_DIR/*";
    let output = fake
        .client_with_token(&["exec", "--", "sh", "-c", script])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    let (environment, files) = text.split_once("FILE\n").unwrap();
    let secret = environment
        .lines()
        .find_map(|line| line.strip_prefix("DBT_ENV_SECRET_KDBT_PRIVATE_KEY="));
    let secret = secret.unwrap();
    assert_eq!(environment.matches(secret).count(), 1);
    assert!(!files.contains(secret));
    assert!(files.contains("env_var('DBT_ENV_SECRET_KDBT_PRIVATE_KEY')"), "{files}");
    for variable in [
        "KDBT_ACCOUNT=myorg-myacct",
        "KDBT_USER=KDBT_ADA_0",
        "KDBT_ROLE=DBT_FINANCE",
        "KDBT_WAREHOUSE=BI",
    ] {
        assert!(environment.lines().any(|line| line == variable), "{variable}");
    }
    assert!(!environment.contains("PGSSLMODE") && !environment.contains("KDBT_PASSWORD"));
    assert_eq!(fake.lines().last(), Some(&format!("DELETE /v1/leases/{LEASE}")));
}

#[test]
fn psql_on_snowflake_is_refused_and_leaves_no_lease() {
    let fake = snowflake();
    let output = fake.client_with_token(&["psql"]).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    let text = stderr(&output);
    assert!(text.contains("is on Snowflake, which psql cannot reach"), "{text}");
    assert!(text.contains("kdbt-client exec -- dbt debug"), "{text}");
    assert_eq!(fake.lines().last(), Some(&format!("DELETE /v1/leases/{LEASE}")));
}

#[test]
fn a_broker_that_lies_about_an_account_is_refused_and_its_lease_ended() {
    let address = |host: &str| json!({"address": {"host": host, "port": 80, "plain": true}});
    for (lie, why) in [
        (json!({"account": "{{ env_var('HOME') }}"}), "Jinja"),
        (json!({"account": "https://evil.example"}), "account identifier"),
        (json!({"user": "KDBT_BOB_0"}), "another user"),
        (
            json!({"engine": "postgres", "host": "127.0.0.1", "port": 5432, "database": "analytics", "user": "kdbt_ada_0",
                "schema": "finance", "sslmode": "disable"}),
            "another engine than the credential",
        ),
        (address("evil.example"), "plain http"),
        (address("evil.example/x"), "host name"),
    ] {
        let fake = Fake::start();
        fake.knobs().snowflake = Some(lie.clone());
        let output = fake.client_with_token(&["profile"]).output().unwrap();
        assert!(!output.status.success(), "{lie}");
        assert_eq!(stdout(&output), "");
        assert!(stderr(&output).contains(why), "{lie}: {}", stderr(&output));
        assert_eq!(fake.lines().last(), Some(&format!("DELETE /v1/leases/{LEASE}")));
    }
}

#[test]
fn a_template_for_snowflake_is_asked_for_by_name() {
    let fake = Fake::start();
    let output = fake
        .client(&["profile", "--template", "--engine", "snowflake"])
        .output()
        .unwrap();
    assert!(
        stdout(&output).contains("env_var('KDBT_ACCOUNT', 'no-lease')"),
        "{}",
        stderr(&output)
    );
    assert!(
        !fake
            .client(&["profile", "--engine", "snowflake"])
            .output()
            .unwrap()
            .status
            .success()
    );
}

/// A `dbt` that shows the profile it was given.
fn showing_dbt(fake: &Fake) -> String {
    let dbt = fake.home.path().join("dbt");
    std::fs::write(
        &dbt,
        "#!/bin/sh\ncat $DBT_PROFILES_DIR/profiles.yml\necho $DBT_ENV_SECRET_KDBT_PRIVATE_KEY\n",
    )
    .unwrap();
    std::fs::set_permissions(&dbt, std::fs::Permissions::from_mode(0o755)).unwrap();
    dbt.to_str().unwrap().to_owned()
}

#[test]
fn a_first_stub_is_of_the_engine_that_the_broker_names_and_takes_no_lease() {
    let fake = snowflake();
    let dbt = showing_dbt(&fake);
    for target in [vec![], vec!["-t", "dev"]] {
        let words = [vec!["exec", "--", &dbt, "parse"], target].concat();
        let output = fake.client_with_token(&words).output().unwrap();
        assert!(stdout(&output).contains("type: snowflake"), "{}", stderr(&output));
        assert_eq!(stderr(&output), "");
    }
    let unknown = [dbt.as_str(), "parse", "-t", "elsewhere"];
    let output = fake
        .client_with_token(&[&["exec", "--"][..], &unknown].concat())
        .output()
        .unwrap();
    assert!(stdout(&output).contains("type: postgres"), "{}", stderr(&output));
    assert!(orders(&fake).is_empty());
}

#[test]
fn a_stub_is_of_the_engine_that_its_profile_had_a_lease_on() {
    let fake = snowflake();
    let dbt = showing_dbt(&fake);
    let dbt = dbt.as_str();
    let parse = |target: &str| {
        fake.client(&["exec", "--", dbt, "parse", "-t", target])
            .output()
            .unwrap()
    };
    let before = parse("prod");
    assert!(stdout(&before).contains("type: postgres"), "{}", stderr(&before));
    assert!(
        stderr(&before).contains("placeholders for PostgreSQL"),
        "{}",
        stderr(&before)
    );
    let words = ["exec", "--", dbt, "build", "-t", "dev"];
    assert!(fake.client_with_token(&words).output().unwrap().status.success());
    let other = parse("prod");
    assert!(
        stdout(&other).contains("env_var('KDBT_ACCOUNT', 'no-lease')"),
        "{}",
        stdout(&other)
    );
    assert_eq!(stderr(&other), "");
    let same = stdout(&parse("dev"));
    assert!(
        same.contains("\"KDBT_ADA_0\"") && same.ends_with("\nno-lease\n"),
        "{same}"
    );
}

#[test]
fn the_private_key_is_in_no_file_of_ours_and_on_no_command_line() {
    let fake = snowflake();
    let script = r#"
        echo $DBT_ENV_SECRET_KDBT_PRIVATE_KEY
        env | cut -d= -f1
        tr '\0' ' ' < /proc/$PPID/cmdline
        printf '\nFILES\n'
        grep -rlF "$(echo $DBT_ENV_SECRET_KDBT_PRIVATE_KEY | cut -c100-180)" $HOME
        echo FILES OF THE USER
        grep -rlF KDBT_ADA_0 $HOME | grep -c profiles.yml"#;
    let output = fake
        .client_with_token(&["exec", "--", "sh", "-c", script])
        .env("KDBT_CLIENT_SECRET", "hush-hush")
        .env("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "x")
        .output()
        .unwrap();
    let text = stdout(&output);
    let (secret, rest) = text.split_once('\n').unwrap();
    assert!((1600..1650).contains(&secret.len()), "{text}");
    assert!(!rest.contains(secret));
    assert!(rest.contains("\nFILES\nFILES OF THE USER\n1\n"), "{rest}");
    for ours in ["KDBT_TOKEN", "KDBT_CLIENT_", "ACTIONS_ID_TOKEN_REQUEST_"] {
        assert!(!rest.lines().any(|name| name.starts_with(ours)), "{ours}");
    }
    assert!(!stderr(&output).contains(secret));
}
