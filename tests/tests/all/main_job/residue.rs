//! What leases leave behind, as the running broker sees it (S9): in the record of whoever was there, until it is approved.

use std::fs;
use std::time::Duration;

use kdbt_e2e::broker::BrokerOptions;
use kdbt_e2e::postgres::PgVersion;
use kdbt_e2e::stack::{DATABASE, Stack, StackOptions};

use super::operating::tool;
use super::{Caller, Lease, gone, options, within};

/// A stack that looks every second, with what the bootstrap made approved.
async fn scanned(version: PgVersion) -> Stack {
    let broker = BrokerOptions {
        more: "scan: { every: 1s, approved: residue.yaml }\n".to_owned(),
        files: vec![("residue.yaml".to_owned(), "kdbt: 1\nservers: {}\n".to_owned())],
        ..options(version).broker
    };
    let options = StackOptions {
        broker,
        ..options(version)
    };
    let stack = Stack::start(&options, |_| {}).await.unwrap();
    approve(&stack).await;
    stack
}

/// As a DBA does, without the review, and waits until it counts.
async fn approve(stack: &Stack) {
    let file = tool(stack, &["doctor", "--residue"]).await.expect(0).unwrap().stdout;
    fs::write(stack.broker.config_file().with_file_name("residue.yaml"), file).unwrap();
    findings(stack, 0).await;
}

async fn findings(stack: &Stack, wanted: usize) {
    let url = format!("{}/metrics", stack.broker.management_url());
    let line = format!("kdbt_residue_findings{{server=\"dwh\"}} {wanted}");
    within(Duration::from_secs(10), &line, async || {
        let text = reqwest::get(&url).await.unwrap().text().await.unwrap();
        text.lines().any(|one| one == line)
    })
    .await;
}

async fn record(stack: &Stack, lease: &Lease) -> String {
    let shown = tool(stack, &["audit", "show", "--lease", &lease.id]).await;
    shown.expect(0).unwrap().stdout
}

async fn found_by_the_doctor(stack: &Stack) -> String {
    let said = tool(stack, &["doctor"]).await.expect(0).unwrap().stdout;
    said.lines().filter(|line| line.contains("residue")).collect()
}

#[tokio::test]
async fn residue_stands_in_its_author_s_record_after_the_lease_until_it_is_approved() {
    for version in PgVersion::ALL {
        let mut stack = scanned(version).await;
        let machine = stack.log_in("ada").await.unwrap();
        for target in ["team", "dev"] {
            let arguments = ["exec", "--target", target, "--", "dbt", "build"];
            let built = machine.run_in(&Stack::project().unwrap(), &arguments).await.unwrap();
            built.expect(0).unwrap();
        }
        assert_eq!(found_by_the_doctor(&stack).await, "", "dbt's ordinary work");

        let author = Lease::take(&Caller::person(&stack, "ada"), "team", "10m").await;
        let bystander = Lease::take(&Caller::person(&stack, "ben"), "dev", "10m").await;
        let client = author.connect(&stack).await.unwrap();
        let trap = "CREATE FUNCTION analytics_marts.trap() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'";
        client.batch_execute(trap).await.unwrap();
        drop(client);
        Caller::person(&stack, "ada").revoke(&author.id).await.expect(200);
        gone(&stack, &author.user, Duration::from_secs(5)).await;

        findings(&stack, 1).await;
        let named = "definer-routine analytics_marts.trap() of dbt_analytics";
        // Who starts anew reads what was told from the store.
        stack.broker.kill().await.unwrap();
        stack.broker.start().await.unwrap();
        findings(&stack, 1).await;
        let shown = record(&stack, &author).await;
        assert!(shown.contains("residue-found") && shown.contains(named), "{shown}");
        assert!(!record(&stack, &bystander).await.contains("residue-found"));
        assert_eq!(shown.matches("residue-found").count(), 1, "told once: {shown}");
        assert!(found_by_the_doctor(&stack).await.contains(named));
        assert!(stack.broker.log().unwrap().contains(named));

        approve(&stack).await;
        assert_eq!(found_by_the_doctor(&stack).await, "");
        tool(&stack, &["audit", "verify"]).await.expect(0).unwrap();
    }
}

#[tokio::test]
async fn a_lost_default_privilege_is_recorded_and_given_again() {
    let stack = scanned(PgVersion::Pg18).await;
    let given = "SELECT 1 FROM pg_default_acl d, aclexplode(d.defaclacl) a \
         WHERE d.defaclrole = 'dbt_analytics'::regrole AND a.grantee = 'grp_marts_ro'::regrole";
    let is_given = async || !stack.postgres.execute(DATABASE, given).await.unwrap().is_empty();
    assert!(is_given().await);
    let lease = Lease::take(&Caller::person(&stack, "grace"), "marts", "10m").await;
    let client = lease.connect(&stack).await.unwrap();
    client
        .batch_execute("SET default_transaction_read_only = off")
        .await
        .unwrap();
    client.batch_execute("DROP OWNED BY grp_marts_ro").await.unwrap();
    within(Duration::from_secs(10), "the loss is in the record", async || {
        record(&stack, &lease).await.contains("lost: default-privilege")
    })
    .await;
    within(Duration::from_secs(10), "it is given again", is_given).await;
    findings(&stack, 0).await;
}
