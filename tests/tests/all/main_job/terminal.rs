//! What holders of leases name themselves is told to operators, and steers no terminal of theirs (S22).

use std::time::Duration;

use kdbt_e2e::stack::Stack;
use serde_json::{Value, json};

use super::operating::tool;
use super::{Caller, Lease, own_stack, within};

/// Ends a line, begins a command of the terminal in seven bits and in eight, and turns the direction of what follows.
const STEERING: &str = "\n\u{1b}[2K\u{9b}2J\u{202e}";

/// What a terminal obeys, besides the ends of our own lines.
fn steers(text: &str) -> Option<char> {
    text.chars().find(|c| *c != '\n' && kdbt_api::terminal::is_control(*c))
}

/// Names of everything that a holder of the team's rights can name.
async fn plant(stack: &Stack, lease: &Lease) {
    let name = |kind: &str| format!("\"{kind}{STEERING}\"");
    let sql = format!(
        "CREATE SCHEMA {schema}; GRANT CREATE ON SCHEMA {schema} TO PUBLIC; \
         CREATE TABLE {schema}.{table} (i int); \
         CREATE POLICY {policy} ON {schema}.{table} TO grp_marts_ro USING (true); \
         CREATE FUNCTION {schema}.{function}() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'",
        schema = name("schema"),
        table = name("table"),
        policy = name("policy"),
        function = name("function"),
    );
    let session = lease.connect(stack).await.unwrap();
    session.batch_execute(&sql).await.unwrap();
}

/// S22
#[tokio::test]
async fn what_a_holder_names_steers_no_terminal_of_an_operator() {
    let stack = own_stack().await;
    let ada = Caller::person(&stack, "ada");
    let reason = format!("why{STEERING}");
    let order = json!({ "target": "team", "ttl": "10m", "reason": reason });
    let lease = Lease::of(&ada.lease(&order).await.expect(201).json());
    plant(&stack, &lease).await;

    let doctor = tool(&stack, &["doctor"]).await;
    for (word, code) in [
        ("policy", "row-policy"),
        ("schema", "public-create"),
        ("function", "residue"),
    ] {
        let named = |line: &str| line.contains(code) && line.contains(word) && line.contains("202e");
        assert!(doctor.stdout.lines().any(named), "{code}: {doctor:?}");
    }
    // No line of a name's own: each is a finding, or a remedy beneath one.
    let ours = ["ok ", "info ", "warning ", "error ", "           "];
    for line in doctor.stdout.lines() {
        assert!(ours.iter().any(|start| line.starts_with(start)), "{line:?}");
    }
    let shown = tool(&stack, &["audit", "show"]).await.expect(0).unwrap();
    // Programs read what was there.
    let rows = shown
        .stdout
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    assert!(
        rows.into_iter()
            .any(|row| row.to_string().contains(&json!(reason).to_string())),
        "{shown:?}"
    );

    // The group of the policy is refused to others, and the log says why.
    Caller::person(&stack, "grace")
        .lease(&json!({ "target": "marts" }))
        .await
        .expect(503);
    within(Duration::from_secs(5), "the refusal is in the log", async || {
        stack.broker.log().unwrap().contains("grp_marts_ro")
    })
    .await;
    let log = stack.broker.log().unwrap();
    let residue = tool(&stack, &["doctor", "--residue"]).await.expect(0).unwrap();
    for (what, text) in [
        ("doctor", &doctor.stdout),
        ("doctor", &doctor.stderr),
        ("audit show", &shown.stdout),
        ("doctor --residue", &residue.stdout),
        ("the log", &log),
    ] {
        assert_eq!(steers(text), None, "{what}: {text:?}");
    }
}
