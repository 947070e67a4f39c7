//! Real dbt-snowflake, with what the real broker gives it, before the gate of the simulated account.

use std::fs;

use kdbt_e2e::dbt::Dbt;
use kdbt_e2e::demo;
use kdbt_e2e::process::Finished;
use kdbt_e2e::snowflake::Simulator;
use kdbt_e2e::snowflake::gate::{Exchange, Gate};
use kdbt_e2e::snowflake::stack::{SnowflakeOptions, SnowflakeStack, demo_policies};
use serde_json::{Value, json};

use super::oracle;
use super::snowflake_job::token;

async fn stack() -> SnowflakeStack {
    let options = SnowflakeOptions {
        policies: demo_policies().to_owned(),
        keycloak: false,
        log: "trace".to_owned(),
        gate: true,
    };
    SnowflakeStack::start(&options).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_demo_tells_of_snowflake_is_true_and_each_exchange_obeys_the_vendors_description() {
    if !Dbt::Snowflake.is_there() {
        return;
    }
    let stack = demo::rehearse_snowflake().await.unwrap();
    let exchanges = stack.gate().unwrap().exchanges();
    assert!(exchanges.len() > 20, "{exchanges:?}");
    for Exchange {
        request,
        status,
        answer,
    } in &exchanges
    {
        oracle::must_obey("StatementRequest", request);
        let kind = match status {
            200 => "ResultSet",
            202 => "QueryStatus",
            _ => "QueryFailureStatus",
        };
        oracle::must_obey(kind, answer);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_oldest_dbt_builds_too_and_neither_another_key_nor_a_password_opens_the_account() {
    if !Dbt::Snowflake.is_there() || !Dbt::OldSnowflake.is_there() {
        return;
    }
    let stack = stack().await;
    let ada = stack
        .log_in("ada")
        .await
        .unwrap()
        .with("PATH", &Dbt::OldSnowflake.path([]).unwrap());
    let project = SnowflakeStack::project(Dbt::OldSnowflake).unwrap();
    let build = ["exec", "--target", "lake", "--", "dbt", "build"];
    let said = ada.run_in(&project, &build).await.unwrap().expect(0).unwrap().stdout;
    assert!(said.contains("dbt=1.9"), "{said}");
    assert!(said.contains("ERROR=0") && said.contains("PASS=8"), "{said}");

    let project = SnowflakeStack::project(Dbt::Snowflake).unwrap();
    let take = ["profile", "--target", "lake", "--json"];
    let mut leases = Vec::new();
    for _ in 0..2 {
        let taken = ada.run_in(&project, &take).await.unwrap().expect(0).unwrap();
        leases.push(serde_json::from_str::<Value>(&taken.stdout).unwrap());
    }
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let (fragment, key) = (text(&leases[0]["profiles_yml"]), text(&leases[0]["private_key"]));
    let debug = async |fragment: String| {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("profiles.yml"), fragment).unwrap();
        let mut command = project.command("dbt").unwrap();
        command.arg("debug").env("DBT_PROFILES_DIR", folder.path());
        let finished = Finished::of(command).await.unwrap();
        (finished.code, finished.stdout + &finished.stderr)
    };
    let (code, said) = debug(fragment.clone()).await;
    assert!(code == 0 && said.contains("All checks passed!"), "{said}");
    let (code, said) = debug(fragment.replace(&key, &text(&leases[1]["private_key"]))).await;
    assert!(
        code != 0 && said.contains("JWT token is invalid"),
        "another's key: {said}"
    );
    let (code, said) = debug(fragment.replace("private_key:", "password:")).await;
    assert!(code != 0 && said.contains("Incorrect username or password"), "{said}");

    let log = stack.broker.log().unwrap();
    for secret in [key, stack.key.clone()] {
        assert!(!log.contains(&secret[40..80]), "a private key in the broker's log");
    }
}

#[tokio::test]
async fn a_session_is_not_inherited_by_the_next_user_of_its_name() {
    if !Dbt::Snowflake.is_there() {
        return;
    }
    let simulator = Simulator::start("MYORG-MYACCT").await.unwrap();
    let gate = Gate::open(simulator.clone()).await.unwrap();
    let (private, public) = kdbt_api::credential::PrivateKey::generate().unwrap();
    let create = format!(
        "USE ROLE USERADMIN; CREATE USER U RSA_PUBLIC_KEY = '{}'",
        public.to_snowflake()
    );
    simulator.run_script(&create).unwrap();
    let signed = token(secrecy::ExposeSecret::expose_secret(private.secret()), "U");
    let http = reqwest::Client::new();
    let post = async |path: &str, token: &str, body: Value| {
        let request = http.post(format!("{}{path}", gate.url())).json(&body);
        let request = request.header("Authorization", format!("Snowflake Token=\"{token}\""));
        request.send().await.unwrap().json::<Value>().await.unwrap()
    };
    let login = json!({"data": {"LOGIN_NAME": "u", "AUTHENTICATOR": "SNOWFLAKE_JWT", "TOKEN": signed, "SESSION_PARAMETERS": {}}});
    let opened = post("/session/v1/login-request", "", login.clone()).await;
    let session = opened["data"]["token"].as_str().unwrap_or_else(|| panic!("{opened}"));
    let select = json!({"sqlText": "select current_user() as who"});
    let query = "/queries/v1/query-request";
    assert_eq!(post(query, session, select.clone()).await["success"], true);

    simulator.set_ahead(10);
    simulator.run_script("USE ROLE USERADMIN; DROP USER U").unwrap();
    simulator.run_script(&create).unwrap();
    assert_eq!(post(query, session, select.clone()).await["code"], "390111");
    let opened = post("/session/v1/login-request", "", login).await;
    let own = opened["data"]["token"].as_str().unwrap_or_else(|| panic!("{opened}"));
    assert_eq!(post(query, own, select.clone()).await["success"], true);

    simulator
        .run_script("USE ROLE USERADMIN; ALTER USER U SET DISABLED = TRUE")
        .unwrap();
    assert_eq!(post(query, own, select).await["code"], "390111");
}
