//! What callers are told.

use std::fs;
use std::time::Duration;

use kdbt_e2e::issuer::Fault;
use kdbt_e2e::postgres::PgVersion;
use kdbt_e2e::stack::Stack;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{Caller, Lease, shared};

#[tokio::test]
async fn another_persons_lease_is_answered_as_one_that_does_not_exist() {
    let stack = shared(PgVersion::Pg18).await;
    let (ada, ben) = (Caller::person(stack, "ada"), Caller::person(stack, "ben"));
    let lease = Lease::take(&ada, "team", "10m").await;
    let made_up = "lse_00000000000070008000000000000000";
    let told = |answer: &super::Answer| {
        let mut problem = answer.json();
        // The request's own number differs in any two answers.
        problem.as_object_mut().unwrap().remove("request_id");
        problem
    };
    for (id, other) in [(lease.id.as_str(), made_up)] {
        let (one, two) = (
            ben.get(&format!("/v1/leases/{id}")).await.expect(404),
            ben.get(&format!("/v1/leases/{other}")).await.expect(404),
        );
        assert_eq!(told(&one), told(&two));
        ben.revoke(id).await.expect(404);
        ben.post(&format!("/v1/leases/{id}/renew"), &json!({}))
            .await
            .expect(404);
        ben.post(&format!("/v1/leases/{id}/cancel"), &json!({}))
            .await
            .expect(404);
    }
    let listed = ben.get("/v1/leases").await.expect(200);
    assert!(!listed.text.contains(&lease.id), "{}", listed.text);
    let seen_by_admin = Caller::person(stack, "adm")
        .get(&format!("/v1/leases/{}", lease.id))
        .await;
    seen_by_admin.expect(200);
    ada.revoke(&lease.id).await.expect(200);
}

#[tokio::test]
async fn an_idempotency_key_stands_for_one_lease_and_never_for_a_second_secret() {
    let stack = shared(PgVersion::Pg18).await;
    let ada = Caller::person(stack, "ada");
    let key = format!("key-{}", kdbt_e2e::postgres::unique());
    let verifier = "SCRAM-SHA-256$4096:MDEyMzQ1Njc4OWFiY2RlZg==$\
                    AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBA=";
    let order = json!({ "target": "team", "verifier": verifier });
    let send = async |key: &str, body| ada.send(ada.order(body).header("Idempotency-Key", key)).await.unwrap();
    let first = send(&key, &order).await.expect(201).json();
    let again = send(&key, &order).await.expect(200).json();
    assert_eq!(first["lease"]["id"], again["lease"]["id"]);
    let other = json!({ "target": "team", "verifier": verifier, "ttl": "9m" });
    send(&key, &other).await.expect(422);

    let made = format!("{key}-made");
    let order = json!({ "target": "team" });
    let delivered = send(&made, &order).await.expect(201).json();
    let refused = send(&made, &order).await.expect(409).json();
    assert_eq!(refused["code"], "secret-already-delivered");
    for lease in [&first, &delivered] {
        ada.revoke(lease["lease"]["id"].as_str().unwrap()).await.expect(200);
    }
}

#[tokio::test]
async fn a_ttl_out_of_range_is_refused_with_the_range() {
    let stack = shared(PgVersion::Pg18).await;
    let ada = Caller::person(stack, "ada");
    let refused = ada
        .lease(&json!({ "target": "team", "ttl": "2h" }))
        .await
        .expect(422)
        .json();
    assert_eq!(refused["code"], "ttl-out-of-range", "{refused}");
    let told = refused.to_string();
    assert!(told.contains("1s") && told.contains("1h"), "{told}");
}

#[tokio::test]
async fn an_unknown_target_and_a_forbidden_one_are_refused_in_the_same_words() {
    let stack = shared(PgVersion::Pg18).await;
    let grace = Caller::person(stack, "grace");
    let (unknown, forbidden) = (
        grace.lease(&json!({ "target": "moon" })).await.expect(403),
        grace.lease(&json!({ "target": "team" })).await.expect(403),
    );
    let without = |answer: &super::Answer, name: &str| {
        let mut json = answer.json();
        // The request's own number differs in any two answers.
        json.as_object_mut().unwrap().remove("request_id");
        json.to_string().replace(name, "TARGET")
    };
    assert_eq!(without(&unknown, "moon"), without(&forbidden, "team"));
}

#[tokio::test]
async fn no_token_a_foreign_token_and_a_lightweight_one_open_nothing() {
    let stack = shared(PgVersion::Pg18).await;
    let issuer = stack.identity.played();
    let other = kdbt_e2e::identity::IdentityProvider::play().unwrap();
    let tokens = [
        String::new(),
        "not-a-token".to_owned(),
        other.played().token_for("ada"),
        issuer.tokens_of("ada", "kdbt-light").access,
        issuer.forge("ada").claim("exp", 1).token(),
    ];
    for token in tokens {
        let answer = Caller::new(stack, token)
            .lease(&json!({ "target": "team" }))
            .await
            .expect(401);
        assert!(answer.headers.contains_key("www-authenticate"), "{answer:?}");
    }
}

/// R4
#[tokio::test]
async fn a_hundred_unknown_keys_at_an_issuer_that_hangs_keep_nobody_out() {
    let mut options = super::options(PgVersion::Pg18);
    options.broker.more = "limits: { requests: 80 }\n".to_owned();
    let stack = Stack::start(&options, |_| {}).await.unwrap();
    let issuer = stack.identity.played();
    let ada = Caller::person(&stack, "ada");
    // Keys were asked for at the start, and unknown ones count only ten seconds later.
    tokio::time::sleep(Duration::from_secs(11)).await;
    issuer.set_keys_fault(Fault::Slow(Duration::from_mins(1)));
    let mut flood = tokio::task::JoinSet::new();
    for n in 0..100 {
        let caller = Caller::new(&stack, issuer.forge("ada").header("kid", format!("random-{n}")).token());
        flood.spawn(async move { caller.get("/v1/targets").await });
    }
    // Those that find no place to wait; the others wait, and ask nobody else to.
    for _ in 0..36 {
        flood.join_next().await.unwrap().unwrap().expect(503);
    }
    for _ in 0..5 {
        ada.get("/v1/targets").await.expect(200);
    }
    assert!(
        flood.try_join_next().is_none(),
        "nobody was served before its turn came"
    );
    for refused in flood.join_all().await {
        assert_eq!(refused.expect(503).json()["reason"], "issuer-keys-unavailable");
    }
}

/// What is sent of a request that never comes to its end.
const MEGABYTE: usize = 1 << 20;

/// The most memory that the broker has had, in kilobytes.
fn most_memory(stack: &Stack) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", stack.broker.pid().unwrap())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim_end_matches("kB").trim().parse().unwrap()
}

/// Sends this and the first megabytes of a filling, and reads the first line that comes back.
async fn told(stack: &Stack, head: &str, megabytes: usize) -> String {
    let address = stack.broker.url().replace("http://", "");
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut from_broker, mut to_broker) = stream.into_split();
    let filling = async {
        // It may stop reading at any time.
        let _ = to_broker.write_all(head.as_bytes()).await;
        let megabyte = vec![b'A'; MEGABYTE];
        for _ in 0..megabytes {
            if to_broker.write_all(&megabyte).await.is_err() {
                break;
            }
        }
        to_broker
    };
    let answer = async {
        let mut said = vec![0; 1024];
        let length = from_broker.read(&mut said).await.unwrap_or_default();
        String::from_utf8_lossy(&said[..length])
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    let both = async { tokio::join!(filling, answer).1 };
    tokio::time::timeout(Duration::from_secs(20), both)
        .await
        .expect("an answer")
}

/// CVE-2025-59043.
#[tokio::test]
async fn ten_megabytes_of_token_or_body_are_refused_before_they_have_come_and_take_no_memory() {
    let stack = shared(PgVersion::Pg15).await;
    let ada = Caller::person(stack, "ada");
    let begin = "POST /v1/leases HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n";
    let token = format!("{begin}Authorization: Bearer ");
    let behind = format!("{begin}Authorization: Bearer {}\r\n", ada.token);
    let body = format!("{behind}Content-Length: 10485760\r\n\r\n");
    let chunks = format!("{behind}Transfer-Encoding: chunked\r\n\r\nA00000\r\n");
    for (head, status) in [(&token, "431"), (&body, "413"), (&chunks, "413")] {
        let line = told(stack, head, 1).await;
        assert_eq!(line.split(' ').nth(1), Some(status), "{line}");
    }
    let before = most_memory(stack);
    let heads = [&token, &body, &chunks].into_iter().cycle().take(30);
    futures_util::future::join_all(heads.map(|head| told(stack, head, 10))).await;
    let more = most_memory(stack) - before;
    assert!(more < 30_000, "300 MB of requests took {more} kB");
    ada.get("/v1/targets").await.expect(200);
}
