//! The bootstrap makes an account ready, and the doctor tells what is missing of it, on the simulated account.

use std::collections::BTreeSet;
use std::sync::Arc;

use kdbt_api::credential::PrivateKey;
use kdbt_broker::clock::SystemClock;
use kdbt_broker::grant::SnowflakeRoles;
use kdbt_broker::warehouse::snowflake::{SnowflakeConfig, SnowflakeWarehouse};
use kdbt_broker::warehouse::{DatabaseNeeds, Finding, Needs, Severity, Warehouse as _};
use kdbt_e2e::snowflake::Simulator;
use kdbt_e2e::snowflake::account::{Account, Grantee};

struct World {
    simulator: Simulator,
    warehouse: SnowflakeWarehouse,
    needs: Needs,
}

impl World {
    /// An account with two roles of the DBA's, on which the bootstrap was run twice.
    async fn ready() -> Self {
        let simulator = Simulator::start("MYORG-MYACCT").await.unwrap();
        simulator
            .run_script("USE ROLE SECURITYADMIN; CREATE ROLE READER; CREATE ROLE OWNER")
            .unwrap();
        let pair = |grant: &str, session_role: &str| SnowflakeRoles {
            grants: BTreeSet::from([grant.parse().unwrap()]),
            session_role: session_role.parse().unwrap(),
        };
        let needs = Needs {
            databases: vec![DatabaseNeeds {
                database: "ANALYTICS".parse().unwrap(),
                owners: Vec::new(),
                groups: Vec::new(),
                own_schemas: false,
                create_schemas: false,
                connections: 0,
                roles: vec![pair("KDBT_ENT_READER", "READER"), pair("KDBT_ENT_OWNER", "OWNER")],
                warehouses: vec!["BI".parse().unwrap()],
            }],
        };
        let (private, _) = PrivateKey::generate().unwrap();
        let mut config = SnowflakeConfig::new(
            "sf".parse().unwrap(),
            "acme".parse().unwrap(),
            "myorg-myacct".parse().unwrap(),
            "KDBT_SVC".to_owned(),
            "KDBT_BROKER".to_owned(),
            private.secret().clone(),
        );
        config.base_url = Some(simulator.url().parse().unwrap());
        let warehouse = SnowflakeWarehouse::new(config, Arc::new(SystemClock)).unwrap();
        let script = warehouse.bootstrap(&needs);
        for _ in 0..2 {
            simulator.run_script(&script).unwrap();
        }
        Self {
            simulator,
            warehouse,
            needs,
        }
    }

    async fn bad(&self) -> Vec<Finding> {
        let findings = self.warehouse.check(&self.needs).await;
        findings
            .into_iter()
            .filter(|finding| finding.severity >= Severity::Warning)
            .collect()
    }

    /// The remedy of the one thing that is wrong is run, and then nothing is.
    async fn is_cured(&self, code: &str) {
        let bad = self.bad().await;
        let [finding] = &bad[..] else { panic!("{bad:?}") };
        assert_eq!(finding.code, code, "{finding:?}");
        let script = format!("USE ROLE SECURITYADMIN; {}", finding.remedy.as_ref().unwrap());
        self.simulator.run_script(&script).unwrap();
        assert_eq!(self.bad().await, []);
    }
}

#[tokio::test]
async fn after_the_bootstrap_the_doctor_finds_nothing_and_a_canary_comes_and_goes() {
    let world = World::ready().await;
    assert_eq!(world.bad().await, []);
    let before = world.simulator.look(Account::user_names);
    let probe = world.warehouse.probe().await;
    assert!(
        probe.iter().all(|finding| finding.severity == Severity::Ok),
        "{probe:?}"
    );
    assert_eq!(world.simulator.look(Account::user_names), before);
    let said = world.simulator.transcript();
    assert!(
        said.iter()
            .any(|said| said.text.starts_with("CREATE USER \"KDBT__CANARY\""))
    );
}

#[tokio::test]
async fn each_missing_grant_is_named_as_sql_that_gives_it() {
    let world = World::ready().await;
    let takes = |role: &'static str, from: &'static str| {
        world
            .simulator
            .change(|account| account.take(role, &Grantee::Role(from.to_owned())));
    };
    takes("READER", "KDBT_ENT_READER");
    world.is_cured("session-role").await;
    world
        .simulator
        .change(|account| account.hand_over("KDBT_ENT_OWNER", "SECURITYADMIN"));
    world.is_cured("wrapper").await;
    world
        .simulator
        .change(|account| account.withdraw("KDBT_BROKER", "CREATE USER"));
    world.is_cured("create-user").await;
    let refused = world
        .simulator
        .change(|account| account.withdraw("KDBT_BROKER", "CREATE USER"));
    assert!(refused);
    let probe = world.warehouse.probe().await;
    assert!(probe[0].message.contains("GRANT CREATE USER ON ACCOUNT"), "{probe:?}");
}

#[tokio::test]
async fn more_power_than_needed_is_a_warning() {
    let world = World::ready().await;
    world
        .simulator
        .run_script("USE ROLE ACCOUNTADMIN; GRANT ROLE SECURITYADMIN TO ROLE KDBT_BROKER")
        .unwrap();
    let bad = world.bad().await;
    assert!(
        bad.iter()
            .any(|finding| finding.code == "too-much-power" && finding.message.contains("SECURITYADMIN")),
        "{bad:?}"
    );
    assert!(bad.iter().all(|finding| finding.severity == Severity::Warning));
}

#[tokio::test]
async fn an_account_that_lets_nobody_in_is_one_finding_that_says_how_to_learn_why() {
    let world = World::ready().await;
    world.simulator.change(|account| account.forget_user("KDBT_SVC"));
    let bad = world.bad().await;
    let [finding] = &bad[..] else { panic!("{bad:?}") };
    assert!(finding.message.contains("MYORG-MYACCT.KDBT_SVC"), "{finding:?}");
    assert!(
        finding.message.contains("SYSTEM$GET_LOGIN_FAILURE_DETAILS"),
        "{finding:?}"
    );
}
