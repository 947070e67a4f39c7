//! The bootstrap makes an account ready, and the doctor tells what is missing of it, on the simulated account.

use std::collections::BTreeSet;
use std::fmt::Write as _;
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
        Self::with(|_| ()).await
    }

    /// The same with a broker that is configured otherwise.
    async fn with(change: impl FnOnce(&mut SnowflakeConfig)) -> Self {
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
                zones: Vec::new(),
                own_schemas: false,
                create_schemas: false,
                connections: 0,
                targets: 1,
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
        change(&mut config);
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

    /// The one finding with this code.
    async fn found(&self, code: &str) -> Finding {
        let findings = self.warehouse.check(&self.needs).await;
        let mut found = findings.iter().filter(|finding| finding.code == code);
        let (Some(one), None) = (found.next(), found.next()) else {
            panic!("{code}: {findings:?}")
        };
        one.clone()
    }

    /// A user of a lease, as the broker's role makes it, with these roles and more of its properties.
    fn lease_user(&self, name: &str, roles: &[&str], more: &str) {
        let mark = "kdbt/1 acme lse_019023b4c0de7abc8def0123456789ab max=1 sub=9f2c000011112222 owner=- end=1";
        let mut script = format!("USE ROLE KDBT_BROKER; CREATE USER {name} TYPE = SERVICE {more} COMMENT = '{mark}'");
        for role in roles {
            let _ = write!(script, "; GRANT ROLE {role} TO USER {name}");
        }
        self.simulator.run_script(&script).unwrap();
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

#[tokio::test]
async fn what_leases_leave_running_is_named_with_the_time_it_was_made() {
    let world = World::ready().await;
    let clean = world.warehouse.check(&world.needs).await;
    assert!(clean.iter().all(|finding| finding.code != "left-behind"), "{clean:?}");
    let now = world.simulator.change(|account| {
        account.plant("TASK", "ANALYTICS.MARTS.NIGHTLY", "OWNER");
        account.plant("PROCEDURE", "ANALYTICS.MARTS.\"GIVE(VARCHAR):VARCHAR\"", "OWNER");
        account.plant("TABLE", "ANALYTICS.MARTS.ORDERS", "OWNER");
        account.plant("TASK", "OTHER.DB.THEIRS", "SYSADMIN");
        account.now()
    });
    let finding = world.found("left-behind").await;
    assert_eq!(finding.severity, Severity::Warning);
    let since = kdbt_api::Timestamp::from_unix(now / 1000);
    let named = format!(
        "TASK ANALYTICS.MARTS.NIGHTLY since {since}, PROCEDURE ANALYTICS.MARTS.\"GIVE(VARCHAR):VARCHAR\" since {since}"
    );
    assert!(
        finding.message.starts_with("role OWNER owns") && finding.message.ends_with(&named),
        "{finding:?}"
    );

    let world = World::ready().await;
    world.simulator.change(|account| {
        for number in 0..25 {
            account.plant("FUNCTION", &format!("ANALYTICS.MARTS.F{number}"), "READER");
        }
    });
    let finding = world.found("left-behind").await;
    assert_eq!(finding.severity, Severity::Info, "dbt makes functions in good order");
    assert!(finding.message.ends_with(", and 5 more"), "{finding:?}");
}

#[tokio::test]
async fn a_user_with_more_roles_at_once_than_its_lease_unites_is_a_warning() {
    let world = World::ready().await;
    let all = "DEFAULT_SECONDARY_ROLES = ('ALL')";
    world.lease_user("KDBT_ADA_0", &["KDBT_ENT_OWNER"], "DEFAULT_SECONDARY_ROLES = ()");
    world.lease_user("KDBT_ADA_1", &["KDBT_ENT_OWNER", "KDBT_ENT_READER"], all);
    assert_eq!(world.bad().await, []);
    world.lease_user("KDBT_ADA_2", &["KDBT_ENT_OWNER"], all);
    let finding = world.found("secondary-roles").await;
    assert!(finding.message.contains("KDBT_ADA_2"), "{finding:?}");
    let cure = format!("USE ROLE KDBT_BROKER; {}", finding.remedy.unwrap());
    world.simulator.run_script(&cure).unwrap();
    assert_eq!(world.bad().await, []);
    let more = "USE ROLE SECURITYADMIN; GRANT ROLE SYSADMIN TO USER KDBT_ADA_1";
    let given = world.simulator.run_script(more);
    assert!(given.is_ok(), "{given:?}");
    world.is_cured("more-roles").await;
}

#[tokio::test]
async fn a_user_that_was_renamed_or_handed_over_is_seen_as_far_as_the_account_shows_it() {
    let world = World::ready().await;
    world.lease_user("KDBT_ADA_0", &[], "DEFAULT_SECONDARY_ROLES = ()");
    world.lease_user("KDBT_BOB_0", &[], "DEFAULT_SECONDARY_ROLES = ()");
    let script = "USE ROLE KDBT_BROKER; ALTER USER KDBT_ADA_0 RENAME TO BERTHA; \
                  GRANT OWNERSHIP ON USER KDBT_BOB_0 TO ROLE SYSADMIN COPY CURRENT GRANTS";
    world.simulator.run_script(script).unwrap();
    let renamed = world.found("renamed-users").await;
    assert!(
        renamed.severity == Severity::Warning && renamed.message.ends_with(": BERTHA"),
        "{renamed:?}"
    );
    let hidden = world.found("hidden-users").await;
    assert!(hidden.message.ends_with(": KDBT_BOB_0"), "{hidden:?}");
    world.simulator.change(Account::show_users_to_creators);
    let handed_over = world.found("handed-over-users").await;
    assert!(
        handed_over.severity == Severity::Warning && handed_over.remedy == hidden.remedy,
        "{handed_over:?}"
    );
    let cure = format!("USE ROLE SECURITYADMIN; {}", hidden.remedy.unwrap());
    world.simulator.run_script(&cure).unwrap();
    let after = world.warehouse.check(&world.needs).await;
    let odd = ["hidden-users", "handed-over-users"];
    assert!(after.iter().all(|finding| !odd.contains(&finding.code)), "{after:?}");
}

#[tokio::test]
async fn a_session_policy_needs_one_more_privilege_which_the_bootstrap_gives() {
    let world = World::with(|config| config.session_policy = Some("SEC.POLICIES.SHORT".parse().unwrap())).await;
    let bad = world.bad().await;
    assert!(bad.iter().all(|finding| finding.code == "untested"), "{bad:?}");
    let withdraw = |account: &mut Account| account.withdraw("KDBT_BROKER", "APPLY SESSION POLICY");
    assert!(world.simulator.change(withdraw));
    let finding = world.found("session-policy").await;
    let cure = format!("USE ROLE SECURITYADMIN; {}", finding.remedy.unwrap());
    world.simulator.run_script(&cure).unwrap();
    assert!(world.simulator.change(withdraw), "it is there again");
    let world = World::ready().await;
    let script = "USE ROLE SECURITYADMIN; GRANT APPLY SESSION POLICY ON ACCOUNT TO ROLE KDBT_BROKER";
    world.simulator.run_script(script).unwrap();
    assert_eq!(world.found("too-much-power").await.severity, Severity::Warning);
}
