//! Every warehouse keeps the contract of `Warehouse`: on the oldest and the newest PostgreSQL that we support, on a
//! simulated Snowflake account, and on a live one where there is one.

use std::process::Command;

use kdbt_e2e::contract::warehouse::postgres::World;
use kdbt_e2e::contract::warehouse::snowflake::{Lake, live};
use kdbt_e2e::postgres::PgVersion;
use kdbt_e2e::process::Finished;
use kdbt_e2e::snowflake::account::Account;
use kdbt_e2e::warehouse_contract;

mod on_postgres_15 {
    async fn ground() -> super::World {
        super::World::shared(super::PgVersion::Pg15).await
    }
    super::warehouse_contract!(ground);
}

mod on_postgres_18 {
    async fn ground() -> super::World {
        super::World::shared(super::PgVersion::Pg18).await
    }
    super::warehouse_contract!(ground);
}

mod on_a_simulated_account {
    super::warehouse_contract!(super::Lake::simulated);
}

mod on_a_live_account {
    super::warehouse_contract!(super::Lake::live, "needs a Snowflake account: docs/snowflake.md");
}

/// In a process that knows no more than the variables, as on a live account; what they lead to is simulated.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_live_run_needs_the_variables_only_and_leaves_nobody_behind() {
    let lake = Lake::simulated().await;
    let account = lake.simulator().unwrap();
    // What a run that died two hours ago and one that still goes on have made.
    let make = |name: &str| account.run_script(&format!("USE ROLE KDBT_BROKER; CREATE USER {name} TYPE = SERVICE"));
    account.set_ahead(-7_200_000);
    make("KDBT_CONTRACT_000001_ADA_0").unwrap();
    account.set_ahead(0);
    make("KDBT_CONTRACT_000002_ADA_0").unwrap();

    let folder = tempfile::tempdir().unwrap();
    let mut run = Command::new(std::env::current_exe().unwrap());
    run.args(live::RUN).envs(lake.variables(folder.path()));
    let run = Finished::of(run).await.unwrap().expect(0).unwrap();
    assert!(run.stdout.contains("0 failed; 0 ignored"), "{}", run.stdout);
    assert!(account.transcript().len() > 200, "it ran elsewhere");
    let left = account.look(Account::user_names);
    assert_eq!(left, ["ADMIN", "KDBT_CONTRACT_000002_ADA_0", "KDBT_SVC"]);
}
