//! `profile`, `env`, `revoke` and what a lying broker gets for its trouble.

use std::os::unix::fs::MetadataExt as _;

use kdbt_api::credential::ScramVerifier;
use serde_json::json;

use crate::fake::{Fake, LEASE, stderr, stdout};

/// The password in a profile or in shell lines.
fn password(text: &str) -> String {
    let line = text
        .lines()
        .find(|line| line.contains("password:") || line.contains("PASSWORD="))
        .unwrap();
    let value = line.split(['"', '\'']).nth(1).unwrap();
    assert_eq!(value.len(), 32);
    value.to_owned()
}

#[test]
fn a_profile_on_stdout_is_all_that_dbt_needs_and_nothing_else() {
    let fake = Fake::start();
    std::fs::create_dir_all(fake.home.path().join("work")).unwrap();
    std::fs::write(
        fake.home.path().join("work/dbt_project.yml"),
        "name: jaffle\nprofile: jaffle_shop\n",
    )
    .unwrap();
    let output = fake.client_with_token(&["profile"]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let yaml = stdout(&output);
    let secret = password(&yaml);
    assert!(!stderr(&output).contains(&secret));
    insta::assert_snapshot!(yaml.replace(&secret, "<password>"), @r#"
    "jaffle_shop":
      target: "dev"
      outputs:
        "dev":
          type: postgres
          host: "127.0.0.1"
          port: 5432
          user: "kdbt_ada_0"
          password: "<password>"
          dbname: "analytics"
          schema: "finance"
          threads: 4
          role: "dbt_finance"
          sslmode: disable
          application_name: ""
    "#);
}

#[test]
fn the_broker_gets_a_verifier_and_never_the_password() {
    let fake = Fake::start();
    let output = fake
        .client_with_token(&["profile", "--ttl", "30m", "--rule", "a,b", "--reason", "because"])
        .output()
        .unwrap();
    let secret = password(&stdout(&output));
    let order = fake
        .calls()
        .into_iter()
        .find(|call| call.line == "POST /v1/leases")
        .unwrap();
    assert!(
        order.body["verifier"]
            .as_str()
            .unwrap()
            .parse::<ScramVerifier>()
            .is_ok()
    );
    assert_eq!(
        (&order.body["ttl"], &order.body["rules"]),
        (&json!("30m"), &json!(["a", "b"]))
    );
    assert!(order.headers.contains_key("idempotency-key"));
    assert!(!format!("{:?}", fake.calls()).contains(&secret));
}

#[test]
fn a_broker_that_lies_about_the_connection_is_refused_and_its_lease_ended() {
    for (host, sslmode, why) in [
        ("{{ env_var('HOME') }}", "verify-full", "Jinja"),
        ("dwh.acme.example", "disable", "sslmode `disable`"),
        ("dwh.acme.example", "require", "sslmode `require`"),
        ("a,b", "verify-full", "host name"),
        ("127.0.0.1", "prefer", "not what it should be"),
    ] {
        let fake = Fake::start();
        fake.knobs().host = host.into();
        fake.knobs().sslmode = sslmode;
        let output = fake.client_with_token(&["profile"]).output().unwrap();
        assert!(!output.status.success(), "{host} {sslmode}");
        assert_eq!(stdout(&output), "");
        assert!(stderr(&output).contains(why), "{}", stderr(&output));
        if sslmode != "prefer" {
            assert!(fake.lines().contains(&format!("DELETE /v1/leases/{LEASE}")));
        }
    }
    let fake = Fake::start();
    fake.knobs().host = "dwh.acme.example".into();
    assert!(
        fake.client_with_token(&["profile", "--allow-insecure"])
            .output()
            .unwrap()
            .status
            .success()
    );
}

#[test]
fn a_token_for_another_audience_never_leaves_the_machine() {
    let fake = Fake::start();
    let token = fake.token_with(&json!({"aud": "kdbt-broker-prod"}));
    let output = fake.client(&["targets"]).env("KDBT_TOKEN", token).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains("not meant for this broker"));
    assert_eq!(fake.lines(), Vec::<String>::new());
}

#[test]
fn a_written_profile_is_private_and_replaces_only_its_own_kind() {
    let fake = Fake::start();
    let folder = fake.home.path().join("profiles");
    let write = || {
        fake.client_with_token(&["profile", "--write", folder.to_str().unwrap()])
            .output()
            .unwrap()
    };
    assert!(write().status.success());
    let file = folder.join("profiles.yml");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.starts_with(&format!(
        "# Written by kdbt-client: lease {LEASE}, ends at 2026-01-05T21:00:00Z"
    )));
    assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
    assert_eq!(std::fs::metadata(&folder).unwrap().mode() & 0o777, 0o700);
    assert!(write().status.success());
    std::fs::write(&file, "mine: {}\n").unwrap();
    let before = fake.lines().len();
    assert_eq!(write().status.code(), Some(2));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine: {}\n");
    assert_eq!(
        fake.lines().len(),
        before,
        "a lease was taken that could not be written"
    );
}

#[test]
fn a_machine_proves_later_that_a_lease_is_its_own() {
    let fake = Fake::start();
    let secret = fake.home.path().join("secret");
    std::fs::write(&secret, "hush-hush\n").unwrap();
    let machine = |args: &[&str]| {
        let mut command = fake.client(args);
        command
            .env("KDBT_CLIENT_ID", "kdbt-ci")
            .env("KDBT_CLIENT_SECRET_FILE", &secret)
            .env("CI", "true");
        command.output().unwrap()
    };
    let output = machine(&["env"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(machine(&["revoke", LEASE]).status.success());
    let calls = fake.calls();
    let hash = calls.iter().find(|call| call.line == "POST /v1/leases").unwrap().body["owner_proof"].clone();
    let end = calls.iter().find(|call| call.line.starts_with("DELETE")).unwrap();
    let proof = end.headers["kdbt-owner-proof"].to_str().unwrap().to_owned();
    let proof = kdbt_api::credential::OwnerProof::from_secret(proof.into());
    assert_eq!(json!(proof.hash()), hash);
}

#[test]
fn several_targets_ask_for_a_choice_and_none_says_so() {
    let fake = Fake::start();
    fake.knobs().targets = vec!["dev", "prod"];
    let output = fake.client_with_token(&["profile"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("dev, prod"));
    fake.knobs().targets = vec![];
    assert_eq!(
        fake.client_with_token(&["profile"]).output().unwrap().status.code(),
        Some(4)
    );
}

#[test]
fn waiting_outlasts_a_limit_and_keeps_to_one_order() {
    let fake = Fake::start();
    fake.knobs().refusals = [(429, "limit-reached", 1), (503, "warehouse-down", 1)].into();
    let output = fake.client_with_token(&["profile", "--wait", "1m"]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let orders: Vec<_> = fake
        .calls()
        .into_iter()
        .filter(|call| call.line == "POST /v1/leases")
        .collect();
    assert_eq!(orders.len(), 3);
    assert!(
        orders
            .iter()
            .all(|order| order.headers["idempotency-key"] == orders[0].headers["idempotency-key"])
    );
    fake.knobs().refusals = [(503, "warehouse-down", 1)].into();
    let output = fake.client_with_token(&["profile"]).output().unwrap();
    assert_eq!(output.status.code(), Some(7));
    assert!(stderr(&output).contains("--wait"));
}

#[test]
fn a_template_needs_no_broker() {
    let fake = Fake::start();
    let output = fake
        .client(&["profile", "--template", "--profile", "jaffle"])
        .env_remove("KDBT_BROKER")
        .output()
        .unwrap();
    assert!(stdout(&output).starts_with("\"jaffle\":\n  target: \"dev\"\n"));
}

/// S22
#[test]
fn a_text_of_the_broker_steers_no_terminal_in_any_form_of_output() {
    let fake = Fake::start();
    let hostile = "reads\u{1b}[2K\u{9b}2J\u{202e}marts";
    fake.knobs().access = hostile;
    for form in [&["targets"][..], &["targets", "--json"]] {
        let output = fake.client_with_token(form).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        let steers = |c: char| c != '\n' && kdbt_api::terminal::is_control(c);
        assert!(!stdout(&output).contains(steers), "{form:?}: {output:?}");
        if form.len() == 2 {
            let read: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
            assert_eq!(read[0]["access"], hostile, "programs read what was there");
        }
    }
}
