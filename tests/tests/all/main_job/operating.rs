//! What operators do: edit policies, run the doctor, read the audit.

use std::fs;
use std::time::Duration;

use kdbt_e2e::process::Finished;
use kdbt_e2e::stack::{DATABASE, Stack};
use rustix::process::Signal;
use serde_json::json;

use super::{Caller, Lease, own_stack, within};

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

#[tokio::test]
async fn the_audit_shows_who_had_what_and_its_chain_holds() {
    let stack = own_stack().await;
    let ada = Caller::person(&stack, "ada");
    let lease = Lease::take(&ada, "team", "10m").await;
    ada.revoke(&lease.id).await.expect(200);
    Caller::person(&stack, "grace")
        .lease(&json!({ "target": "team" }))
        .await
        .expect(403);
    let shown = tool(&stack, &["audit", "show"]).await.expect(0).unwrap().stdout;
    for word in [lease.id.as_str(), lease.user.as_str(), "ada", "grace"] {
        assert!(shown.contains(word), "{word} is missing in\n{shown}");
    }
    tool(&stack, &["audit", "verify"]).await.expect(0).unwrap();
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
