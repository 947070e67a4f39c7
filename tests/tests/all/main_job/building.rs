//! dbt builds, with and without our client.

use std::fs;
use std::time::Duration;

use kdbt_e2e::client::Workstation;
use kdbt_e2e::dbt::Project;
use kdbt_e2e::postgres::PgVersion;
use kdbt_e2e::process::Finished;
use kdbt_e2e::stack::Stack;
use serde_json::json;

use super::{Caller, gone, own_stack, shared};

async fn build(machine: &Workstation, project: &Project, arguments: &[&str]) -> Finished {
    let all = [&["exec"], arguments].concat();
    machine.run_in(project, &all).await.unwrap().expect(0).unwrap()
}

#[tokio::test]
async fn a_fragment_from_a_plain_post_is_all_that_dbt_needs() {
    for version in PgVersion::ALL {
        let stack = shared(version).await;
        let ada = Caller::person(stack, "ada");
        let answer = ada
            .fragment(&json!({ "target": "dev", "profile": "shop" }))
            .await
            .expect(201);
        assert_eq!(answer.headers["content-type"], "application/yaml");
        assert_eq!(answer.headers["cache-control"], "no-store");
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("profiles.yml"), &answer.text).unwrap();
        let debug = Stack::project().unwrap().dbt(&["debug"], folder.path(), &[]).unwrap();
        assert_eq!(debug.code, 0, "{}", debug.output);
        assert!(debug.output.contains("All checks passed!"), "{}", debug.output);
        let id = answer.headers["location"].to_str().unwrap().rsplit('/').next().unwrap();
        ada.revoke(id).await;
    }
}

#[tokio::test]
async fn two_people_of_one_team_build_the_same_tables_and_own_none_of_them() {
    for version in PgVersion::ALL {
        let stack = Stack::start(&super::options(version), |_| {}).await.unwrap();
        for name in ["ada", "ben"] {
            let machine = stack.log_in(name).await.unwrap();
            build(
                &machine,
                &Stack::project().unwrap(),
                &["--target", "team", "--", "dbt", "build"],
            )
            .await;
        }
        let written = "SELECT built_by, count(*) FROM analytics_marts.orders GROUP BY 1 ORDER BY 1";
        assert_eq!(
            stack.rows(written).await.unwrap(),
            [["kdbt_ada_0", "175"], ["kdbt_ben_0", "25"]]
        );
        let owners = "SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class \
                      WHERE relnamespace::regnamespace::text LIKE 'analytics%'";
        assert_eq!(stack.rows(owners).await.unwrap(), [["dbt_analytics"]]);
        assert!(stack.lease_users().await.unwrap().is_empty(), "exec ends its lease");
    }
}

#[tokio::test]
async fn a_second_lease_of_the_same_person_keeps_the_parse_cache() {
    let stack = own_stack().await;
    let ada = stack.log_in("ada").await.unwrap();
    let project = Stack::project().unwrap();
    let compile = ["--target", "dev", "--", "dbt", "--debug", "compile"];
    let first = build(&ada, &project, &compile).await.stdout;
    let second = build(&ada, &project, &compile).await.stdout;
    assert!(first.contains("Unable to do partial parsing"), "{first}");
    assert!(!second.contains("Unable to do partial parsing"), "{second}");
    assert!(second.contains("0 files added, 0 files changed"), "{second}");
}

#[tokio::test]
async fn a_run_longer_than_its_lease_is_kept_alive_by_renewals() {
    let stack = own_stack().await;
    let ada = stack.log_in("ada").await.unwrap();
    let project = Stack::project().unwrap();
    for n in 0..4 {
        let sleeper = project.path().join(format!("models/sleeper_{n}.sql"));
        fs::write(sleeper, "select 1 as one from (select pg_sleep(2)) as slept").unwrap();
    }
    let run = [
        "dbt",
        "run",
        "--threads",
        "1",
        "--select",
        "sleeper_0",
        "sleeper_1",
        "sleeper_2",
        "sleeper_3",
    ];
    let before = std::time::Instant::now();
    // A view does not sleep: a table does.
    fs::write(
        project.path().join("models/sleepers.yml"),
        "models:\n".to_owned()
            + &(0..4)
                .map(|n| format!("  - {{ name: sleeper_{n}, config: {{ materialized: table }} }}\n"))
                .collect::<Vec<_>>()
                .concat(),
    )
    .unwrap();
    let finished = build(
        &ada,
        &project,
        &[&["--target", "dev", "--ttl", "5s", "--"], &run[..]].concat(),
    )
    .await;
    assert!(
        finished.stdout.contains("Completed successfully"),
        "{}",
        finished.stdout
    );
    assert!(
        before.elapsed() > Duration::from_secs(8),
        "it did not outlive its lease"
    );
    assert!(stack.lease_users().await.unwrap().is_empty());
}

#[tokio::test]
async fn the_command_s_exit_code_comes_back_and_its_user_is_gone() {
    let stack = shared(PgVersion::Pg18).await;
    let ben = stack.log_in("ben").await.unwrap();
    let project = Stack::project().unwrap();
    let said = ben
        .run_in(
            &project,
            &["exec", "--target", "team", "--", "sh", "-c", "echo $KDBT_USER; exit 7"],
        )
        .await
        .unwrap();
    let said = said.expect(7).unwrap();
    let user = said.stdout.trim();
    assert!(user.starts_with("kdbt_ben_"), "{said:?}");
    gone(stack, user, Duration::from_secs(3)).await;
}

#[tokio::test]
async fn a_pipeline_builds_with_a_service_account_and_finds_no_secret_of_it_in_dbt_s_environment() {
    let stack = shared(PgVersion::Pg18).await;
    let pipeline = stack.pipeline().unwrap();
    let project = Stack::project().unwrap();
    let shown = build(&pipeline, &project, &["--target", "team", "--", "env"]).await;
    assert!(!shown.stdout.contains(stack.identity.ci_secret()), "{}", shown.stdout);
    assert!(!shown.stdout.contains("KDBT_CLIENT_SECRET"), "{}", shown.stdout);
    let debug = build(&pipeline, &project, &["--target", "team", "--", "dbt", "debug"]).await;
    assert!(debug.stdout.contains("All checks passed!"), "{}", debug.stdout);
}

/// What `exec` takes from its child's environment, by the constants of the client's code.
fn taken() -> Vec<String> {
    let read = |file: &str| {
        let file = format!("{}/../client/src/{file}", env!("CARGO_MANIFEST_DIR"));
        fs::read_to_string(file).unwrap()
    };
    let listed = |text: &str, name: &str| -> Vec<String> {
        let list = text.split_once(&format!("const {name}: [&str; ")).unwrap().1;
        let list = list.split_once("] = [").unwrap().1.split(']').next().unwrap();
        list.split('"').skip(1).step_by(2).map(ToOwned::to_owned).collect()
    };
    let mut all = listed(&read("settings.rs"), "OURS");
    all.extend(listed(&read("run/child.rs"), "MISLEADING"));
    all
}

/// S19: a dbt package reads all of its environment.
#[tokio::test]
async fn a_macro_that_asks_for_every_variable_finds_the_lease_and_nothing_that_is_ours() {
    let names = [
        "KDBT_TOKEN",
        "KDBT_TOKEN_FILE",
        "KDBT_CLIENT_ID",
        "KDBT_CLIENT_SECRET",
        "KDBT_CLIENT_SECRET_FILE",
        "KDBT_OIDC_TOKEN",
        "ACTIONS_ID_TOKEN_REQUEST_TOKEN",
        "ACTIONS_ID_TOKEN_REQUEST_URL",
        "PGHOSTADDR",
        "PGSERVICE",
        "PGSERVICEFILE",
        "PGPASSFILE",
        "PGPASSWORD",
    ];
    for start in taken() {
        assert!(
            names.iter().any(|name| name.starts_with(&start)),
            "{start} is not asked for"
        );
    }
    let stack = shared(PgVersion::Pg18).await;
    let machine = stack.pipeline().unwrap();
    let token = machine.home().join("token");
    fs::write(&token, stack.identity.played().token_for("ada")).unwrap();
    let project = Stack::project().unwrap();
    fs::create_dir_all(project.path().join("macros")).unwrap();
    let asked = json!([&names[..], &["SHOP_REGION"]].concat());
    let snoop = format!(
        "{{% macro snoop() %}}\n\
         {{% for name in {asked} %}}{{{{ log('FOUND ' ~ name ~ ' ' ~ env_var(name, 'nothing'), info=true) }}}}{{% endfor %}}\n\
         {{{{ log('LEASE ' ~ env_var('KDBT_USER') ~ ' ' ~ run_query('select session_user').rows[0][0], info=true) }}}}\n\
         {{% endmacro %}}\n"
    );
    fs::write(project.path().join("macros/snoop.sql"), snoop).unwrap();
    let arguments = ["exec", "--target", "team", "--", "dbt", "run-operation", "snoop"];
    let mut command = machine.command_in(&project, &arguments).unwrap();
    command.envs(names.map(|name| (name, "a-secret-of-the-pipeline")));
    command.env("KDBT_TOKEN_FILE", &token).env("SHOP_REGION", "north");
    let said = Finished::of(command).await.unwrap().expect(0).unwrap().stdout;
    for name in names {
        assert!(said.contains(&format!("FOUND {name} nothing\n")), "{name}: {said}");
    }
    // It does find what is there, and the lease works.
    assert!(said.contains("FOUND SHOP_REGION north"), "{said}");
    let lease = said.split("LEASE ").nth(1).unwrap().lines().next().unwrap();
    let (told, used) = lease.split_once(' ').unwrap();
    assert!(told.starts_with("kdbt_ada_") && told == used, "{lease}");
}
