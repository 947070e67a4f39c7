//! What the log says of a request, and what it must never say.

use super::fake::LEASE;
use super::*;
use crate::telemetry::tests::Memory;
use crate::telemetry::{LogFormat, subscriber};

/// Everything on this thread, at the highest level that can be asked for.
fn listen() -> (Memory, tracing::subscriber::DefaultGuard) {
    let memory = Memory::default();
    let writer = memory.clone();
    let subscriber = subscriber("trace", LogFormat::Json, move || writer.clone()).unwrap();
    (memory, tracing::subscriber::set_default(subscriber))
}

#[tokio::test]
async fn a_request_is_one_line_with_its_id_its_route_and_who_asked() {
    let (log, _guard) = listen();
    let broker = Broker::start().await;
    let answer = broker.call("GET", &format!("/v1/leases/{LEASE}"), None).await;
    let lines: Vec<Value> = log
        .text()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let access: Vec<&Value> = lines
        .iter()
        .filter(|line| line["target"] == "kdbt_broker::access")
        .collect();
    let [line] = access[..] else { panic!("{access:?}") };
    assert_eq!(line["request_id"].as_str(), answer.header("x-request-id"));
    assert_eq!(
        (&line["method"], &line["route"], &line["status"]),
        (&"GET".into(), &"/v1/leases/{id}".into(), &200.into())
    );
    assert_eq!(
        (&line["azp"], &line["client"]),
        (&"kdbt-cli".into(), &"127.0.0.1".into())
    );
    assert_eq!(line["subject"].as_str().map(str::len), Some(16));
}

#[tokio::test]
async fn neither_token_nor_query_nor_body_nor_proof_reaches_the_log() {
    let (log, _guard) = listen();
    let broker = Broker::start().await;
    let secret = [
        "Authorization: Bearer canary-token",
        "Kdbt-Owner-Proof: canary-proof",
        "Cookie: c=canary-cookie",
    ];
    broker
        .send(
            "GET",
            "/v1/leases?subject=canary-query&access_token=canary-token",
            &secret,
            None,
        )
        .await;
    broker.send("GET", "/v1/canary-path", &secret[1..], None).await;
    let good = [
        "Authorization: Bearer alice",
        "Kdbt-Owner-Proof: canary-proof",
        "Idempotency-Key: canary-key",
    ];
    let body = r#"{"target": "dev", "reason": "canary-reason"}"#;
    assert_eq!(broker.send("POST", "/v1/leases", &good, Some(body)).await.status, 201);
    broker
        .send("POST", "/v1/leases", &good, Some(r#"{"target": "canary body"}"#))
        .await;
    broker
        .send("POST", &format!("/v1/leases/{LEASE}/renew"), &good, None)
        .await;
    let text = log.text();
    assert!(text.contains("kdbt_broker::access"), "the log is not listened to");
    assert!(!text.contains("canary"), "{text}");
}

#[tokio::test]
async fn a_cause_is_logged_once_and_under_the_id_of_its_request() {
    let (log, _guard) = listen();
    let broker = Broker::start().await;
    let answer = broker.call("POST", "/v1/leases", Some(r#"{"target": "down"}"#)).await;
    let text = log.text();
    let lines: Vec<&str> = text.lines().filter(|line| line.contains("10.0.0.5")).collect();
    assert_eq!(lines.len(), 1, "{text}");
    assert!(
        lines[0].contains(answer.header("x-request-id").unwrap()),
        "{}",
        lines[0]
    );
}
