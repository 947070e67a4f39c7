//! What operators do: edit policies, run the doctor.

use std::fs;
use std::time::Duration;

use kdbt_e2e::process::Finished;
use kdbt_e2e::stack::{DATABASE, Stack};
use rustix::process::Signal;
use serde_json::json;

use super::{Caller, Lease, exists, gone, own_stack, within};

pub(super) async fn tool(stack: &Stack, arguments: &[&str]) -> Finished {
    Finished::of(stack.broker.command(arguments).unwrap()).await.unwrap()
}

#[tokio::test]
async fn a_reload_takes_a_good_policy_and_keeps_the_running_one_instead_of_a_bad_one() {
    let stack = own_stack().await;
    let ada = Caller::person(&stack, "ada");
    let allowed = async || {
        let answer = ada.post("/v1/explain", &json!({ "target": "team" })).await;
        answer.expect(200).json()["allowed"] == true
    };
    assert!(allowed().await);
    let file = stack.broker.policies().join("shop.yaml");
    let good = fs::read_to_string(&file).unwrap();

    fs::write(
        &file,
        good.replace("realm_roles: [engineer]", "realm_rolls: [engineer]"),
    )
    .unwrap();
    stack.broker.signal(Signal::HUP).unwrap();
    within(Duration::from_secs(5), "the log names the mistake", async || {
        stack.broker.log().unwrap().contains("realm_rolls")
    })
    .await;
    assert!(allowed().await);

    let narrower = good.replace(
        "when: { realm_roles: [engineer] }",
        "when: { realm_roles: [nobody-has-it] }",
    );
    fs::write(&file, narrower).unwrap();
    stack.broker.signal(Signal::HUP).unwrap();
    within(Duration::from_secs(5), "the new policy holds", async || {
        !allowed().await
    })
    .await;
}

#[tokio::test]
async fn the_doctor_finds_a_fresh_bootstrap_well_and_names_a_right_that_was_taken_away() {
    let stack = own_stack().await;
    let well = tool(&stack, &["doctor"]).await.expect(0).unwrap();
    assert!(!well.stdout.contains("grp_marts_ro is missing"), "{well:?}");
    let taken = "REVOKE grp_marts_ro FROM kdbt__broker CASCADE";
    stack.postgres.execute(DATABASE, taken).await.unwrap();
    let ill = tool(&stack, &["doctor"]).await;
    assert_ne!(ill.code, 0, "{ill:?}");
    let said = ill.stdout + &ill.stderr;
    assert!(said.contains("grp_marts_ro"), "{said}");
}

/// CVE-2022-41316: what could not be loaded was taken for nothing to check.
#[tokio::test]
async fn a_broker_that_starts_without_a_policy_gives_nothing_and_ends_users_at_their_time() {
    let mut stack = own_stack().await;
    let ada = Caller::person(&stack, "ada");
    let folder = stack.broker.policies();
    let good = fs::read_to_string(folder.join("shop.yaml")).unwrap();
    for damage in ["no file can be read", "a file is broken"] {
        let short = Lease::take(&ada, "team", "3s").await;
        let long = Lease::take(&ada, "team", "10m").await;
        stack.broker.kill().await.unwrap();
        fs::remove_file(folder.join("shop.yaml")).unwrap();
        if damage == "a file is broken" {
            fs::write(folder.join("shop.yaml"), good.replace("realm_roles", "realm_rolls")).unwrap();
        } else {
            fs::remove_dir(&folder).unwrap();
        }
        stack.broker.spawn().unwrap();
        let order = json!({ "target": "team" });
        within(Duration::from_secs(20), "it listens", async || {
            ada.send(ada.order(&order)).await.is_ok()
        })
        .await;
        let renew = format!("/v1/leases/{}/renew", long.id);
        for refused in [ada.lease(&order).await, ada.post(&renew, &json!({})).await] {
            assert_eq!(refused.expect(503).json()["code"], "policy-not-loaded", "{damage}");
        }
        let ready = reqwest::get(format!("{}/readyz", stack.broker.management_url())).await;
        assert_eq!(ready.unwrap().status(), 503, "{damage}");
        gone(&stack, &short.user, Duration::from_secs(15)).await;
        long.connect(&stack).await.unwrap();
        ada.revoke(&long.id).await.expect(200);
        assert!(!exists(&stack, &long.user).await, "{damage}");

        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("shop.yaml"), &good).unwrap();
        stack.broker.signal(Signal::HUP).unwrap();
        stack.broker.wait_until_ready().await.unwrap();
    }
}

#[tokio::test]
async fn a_mistake_in_the_configuration_ends_with_2_and_its_place() {
    let stack = own_stack().await;
    let config = stack.broker.config_file();
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("installation:", "instalation:")).unwrap();
    let refused = tool(&stack, &["doctor"]).await;
    assert_eq!(refused.code, 2, "{refused:?}");
    assert!(refused.stderr.contains("broker.yaml:2"), "{}", refused.stderr);
}
