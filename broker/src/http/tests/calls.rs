//! Every call: what reaches the service, and what comes back.

use super::fake::{FRAGMENT, LEASE};
use super::*;

const ORDER: &str = r#"{"target": "dev"}"#;

#[tokio::test]
async fn an_order_is_answered_with_the_lease_and_its_place() {
    let broker = Broker::start().await;
    let answer = broker.call("POST", "/v1/leases", Some(ORDER)).await;
    assert_eq!(answer.status, 201);
    assert_eq!(answer.header("location"), Some(format!("/v1/leases/{LEASE}").as_str()));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_eq!(answer.json()["lease"]["id"], LEASE);
    assert_eq!(broker.service.calls(), ["issue alice dev -"]);
}

#[tokio::test]
async fn an_order_for_yaml_is_answered_with_the_fragment_alone() {
    let broker = Broker::start().await;
    let headers = ["Authorization: Bearer alice", "Accept: application/yaml"];
    let answer = broker.send("POST", "/v1/leases", &headers, Some(ORDER)).await;
    assert_eq!((answer.status, answer.body.as_str()), (201, FRAGMENT));
    assert_eq!(answer.header("content-type"), Some("application/yaml"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert!(answer.header("location").is_some());
    let refused = broker
        .send("POST", "/v1/leases", &headers, Some(r#"{"target": "nowhere"}"#))
        .await;
    assert_eq!(refused.failure(), (403, "policy-denied".to_owned()));
}

#[tokio::test]
async fn an_order_sent_again_is_answered_with_200_and_its_key_goes_no_further_than_its_hash() {
    let broker = Broker::start().await;
    let headers = ["Authorization: Bearer alice", "Idempotency-Key: again"];
    let answer = broker.send("POST", "/v1/leases", &headers, Some(ORDER)).await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        broker.service.calls(),
        [format!("issue alice dev {}", fake::HASH_OF_AGAIN)]
    );
}

#[tokio::test]
async fn a_failure_of_ours_says_when_to_come_back_and_nothing_of_its_cause() {
    let broker = Broker::start().await;
    let answer = broker.call("POST", "/v1/leases", Some(r#"{"target": "down"}"#)).await;
    assert_eq!(answer.failure(), (503, "warehouse-down".to_owned()));
    assert_eq!(answer.header("retry-after"), Some("7"));
    assert!(!answer.body.contains("10.0.0.5"), "{}", answer.body);
}

#[tokio::test]
async fn a_panic_in_a_use_case_is_a_500_without_text() {
    let broker = Broker::start().await;
    let answer = broker.call("POST", "/v1/leases", Some(r#"{"target": "panic"}"#)).await;
    assert_eq!(answer.failure(), (500, "internal".to_owned()));
    assert!(!answer.body.contains("hunter2"));
    assert_eq!(
        broker.call("GET", "/v1/targets", None).await.status,
        200,
        "the broker lives on"
    );
}

#[tokio::test]
async fn a_lease_is_renewed_with_a_body_and_without_one() {
    let broker = Broker::start().await;
    let path = format!("/v1/leases/{LEASE}/renew");
    let headers = ["Authorization: Bearer alice", "Kdbt-Owner-Proof: cHJvb2Y"];
    assert_eq!(
        broker
            .send("POST", &path, &headers, Some(r#"{"ttl": "1h"}"#))
            .await
            .status,
        200
    );
    assert_eq!(broker.call("POST", &path, None).await.status, 200);
    assert_eq!(broker.call("POST", &path, Some("")).await.status, 200);
    let (with, without) = (
        format!("renew alice {LEASE} cHJvb2Y 1h"),
        format!("renew alice {LEASE} - -"),
    );
    assert_eq!(broker.service.calls(), [with, without.clone(), without]);
}

#[tokio::test]
async fn sessions_are_cancelled() {
    let broker = Broker::start().await;
    let answer = broker.call("POST", &format!("/v1/leases/{LEASE}/cancel"), None).await;
    assert_eq!((answer.status, &answer.json()["sessions_ended"]), (200, &2.into()));
}

#[tokio::test]
async fn a_revocation_is_200_when_the_user_is_gone_and_202_while_it_goes() {
    let broker = Broker::start().await;
    let path = format!("/v1/leases/{LEASE}");
    assert_eq!(broker.call("DELETE", &path, None).await.status, 200);
    let slow = broker.send("DELETE", &path, &["Authorization: Bearer bob"], None).await;
    assert_eq!((slow.status, &slow.json()["state"]), (202, &"ending".into()));
}

#[tokio::test]
async fn a_selection_that_could_mean_all_is_refused() {
    let broker = Broker::start().await;
    for body in [
        "{}",
        r#"{"mine": false}"#,
        r#"{"dry_run": true}"#,
        r#"{"mine": true, "target": "dev"}"#,
        r#"{"mine": true, "issuer": "x"}"#,
        r#"{"issuer": "x"}"#,
        r#"{"target": "dev", "issuer": "x"}"#,
    ] {
        let answer = broker.call("POST", "/v1/revocations", Some(body)).await;
        assert_eq!(answer.failure(), (400, "malformed-request".to_owned()), "{body}");
    }
    assert_eq!(broker.service.calls(), [""; 0]);
    let answer = broker.call("POST", "/v1/revocations", Some(r#"{"mine": true}"#)).await;
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn leases_are_listed_by_a_strict_query() {
    let broker = Broker::start().await;
    let good = broker
        .call("GET", "/v1/leases?state=active&subject=bob&limit=500", None)
        .await;
    assert_eq!(good.status, 200);
    assert_eq!(broker.service.calls(), [r#"leases alice Some(Active) Some("bob") 500"#]);
    let range = "query: `limit`: must be a whole number from 1 to 500";
    for (query, detail) in [
        ("limit=0", range),
        ("limit=501", range),
        ("limit=-1", range),
        ("limit=hunter2", range),
        (
            "state=gone",
            "query: `state`: must be one of `provisioning`, `active`, `ending`, `quarantined`, `ended`",
        ),
        ("limt=1", "query: `limt`: unknown member; did you mean `limit`?"),
        ("limit=1&limit=2", "query: `limit`: stands twice"),
        ("after=17", "query: `after`: a lease id is `lse_` and 32 hex digits"),
    ] {
        let answer = broker.call("GET", &format!("/v1/leases?{query}"), None).await;
        assert_eq!(
            (answer.status, answer.problem().detail.as_deref()),
            (400, Some(detail)),
            "{query}"
        );
    }
}

#[tokio::test]
async fn what_is_no_lease_of_the_callers_is_not_found_whatever_its_form() {
    let broker = Broker::start().await;
    let (other, capitals) = (LEASE.replace("e5f6", "e5f7"), LEASE.replace("f3a1", "F3A1"));
    for id in [other.as_str(), "17", "lse_x", "%00", "%ff", capitals.as_str()] {
        let answer = broker.call("GET", &format!("/v1/leases/{id}"), None).await;
        assert_eq!(answer.failure(), (404, "not-found".to_owned()), "{id}");
    }
}

#[tokio::test]
async fn a_path_or_method_that_is_not_there_is_a_problem() {
    let broker = Broker::start().await;
    assert_eq!(
        broker.call("GET", "/v1/nothing", None).await.failure(),
        (404, "not-found".to_owned())
    );
    assert_eq!(
        broker.call("GET", "/favicon.ico", None).await.failure(),
        (404, "not-found".to_owned())
    );
    let answer = broker.call("PUT", "/v1/leases", None).await;
    assert_eq!(answer.failure(), (405, "method-not-allowed".to_owned()));
    assert!(answer.header("allow").unwrap().contains("POST"), "{answer:?}");
}

#[tokio::test]
async fn who_asks_is_judged_before_what_is_asked() {
    let broker = Broker::start().await;
    for (method, path, body) in [
        ("POST", "/v1/leases", Some("no json")),
        ("GET", "/v1/leases?limit=0", None),
        ("GET", "/v1/leases/17", None),
        ("GET", "/v1/nothing", None),
        ("PUT", "/v1/leases", None),
        ("BREW", "/v1/leases", None),
    ] {
        let answer = broker.send(method, path, &[], body).await;
        assert_eq!(answer.failure(), (401, "token-missing".to_owned()), "{method} {path}");
    }
    let huge = "POST /v1/leases HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 99999999\r\n\r\n";
    assert_eq!(Answer::parse(&broker.raw(huge).await).status, 401);
}

// R25, RFC 6750 section 3, RFC 9728 section 5.1
#[tokio::test]
async fn a_challenge_names_an_error_only_for_a_sent_token_and_always_the_metadata() {
    let broker = Broker::start().await;
    let metadata = r#"resource_metadata="https://kdbt.acme.example/.well-known/oauth-protected-resource""#;
    let none = broker.send("GET", "/v1/targets", &[], None).await;
    assert_eq!(
        none.header("www-authenticate"),
        Some(format!(r#"Bearer realm="kdbt", {metadata}"#).as_str())
    );

    let expired = broker
        .send("GET", "/v1/targets", &["Authorization: Bearer old"], None)
        .await;
    assert_eq!(expired.failure(), (401, "token-invalid".to_owned()));
    assert_eq!(expired.problem().reason.as_deref(), Some(Reason::Expired.code()));
    let challenge = expired.header("www-authenticate").unwrap();
    assert!(
        challenge.contains(r#"error="invalid_token""#) && challenge.contains(metadata),
        "{challenge}"
    );
}

// R1
#[tokio::test]
async fn two_ways_of_sending_a_token_are_400_and_the_query_alone_is_none() {
    let broker = Broker::start().await;
    let bearer = "Authorization: Bearer alice";
    let twice = broker.send("GET", "/v1/targets", &[bearer, bearer], None).await;
    assert_eq!(twice.failure(), (400, "ambiguous-credentials".to_owned()));
    let both = broker
        .send("GET", "/v1/targets?access_token=alice", &[bearer], None)
        .await;
    assert_eq!(both.failure(), (400, "ambiguous-credentials".to_owned()));
    let query = broker.send("GET", "/v1/targets?access_token=alice", &[], None).await;
    assert_eq!(query.failure(), (401, "token-missing".to_owned()));
    let cookie = broker
        .send("GET", "/v1/targets", &["Cookie: access_token=alice"], None)
        .await;
    assert_eq!(cookie.failure(), (401, "token-missing".to_owned()));
}

#[tokio::test]
async fn a_body_that_is_not_what_the_call_takes_is_refused_without_quoting_it() {
    let broker = Broker::start().await;
    for (body, status, code) in [
        ("{", 400, "malformed-request"),
        (r#"["dev"]"#, 400, "malformed-request"),
        (r#"{"target": "dev", "target": "prod"}"#, 400, "malformed-request"),
        (r#"{"target": "dev", "password": "hunter2"}"#, 400, "malformed-request"),
        (r#"{"target": 7}"#, 400, "malformed-request"),
        (r#"{"target": "dev", "verifier": "hunter2"}"#, 422, "invalid-order"),
        (r#"{"target": "dev; DROP ROLE hunter2"}"#, 422, "invalid-order"),
        (r#"{"target": "dev", "ttl": "hunter2"}"#, 422, "invalid-order"),
    ] {
        let answer = broker.call("POST", "/v1/leases", Some(body)).await;
        assert_eq!(answer.failure(), (status, code.to_owned()), "{body}");
        assert!(answer.problem().detail.is_some(), "{body}");
        assert!(!answer.body.contains("hunter2"), "{body}: {}", answer.body);
    }
    assert_eq!(broker.service.calls(), [""; 0]);
}

#[tokio::test]
async fn a_body_of_another_content_type_is_415() {
    let broker = Broker::start().await;
    let head = "POST /v1/leases HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAuthorization: Bearer alice\r\n";
    for kind in [
        "",
        "Content-Type: application/x-www-form-urlencoded\r\n",
        "Content-Type: application/jsonp\r\n",
    ] {
        let answer = Answer::parse(&broker.raw(format!("{head}{kind}Content-Length: 2\r\n\r\n{{}}")).await);
        assert_eq!(answer.failure(), (415, "unsupported-media-type".to_owned()), "{kind:?}");
    }
    let kind = "Content-Type: application/json; charset=utf-8\r\n";
    let good = format!("{head}{kind}Content-Length: 17\r\n\r\n{ORDER}");
    assert_eq!(Answer::parse(&broker.raw(good).await).status, 201);
}

#[tokio::test]
async fn every_answer_has_an_id_of_its_own_whatever_the_caller_sends() {
    let broker = Broker::start().await;
    let first = broker.send("GET", "/healthz", &["X-Request-Id: mine"], None).await;
    let second = broker.send("GET", "/healthz", &["X-Request-Id: mine"], None).await;
    let ids = [
        first.header("x-request-id").unwrap(),
        second.header("x-request-id").unwrap(),
    ];
    assert!(
        ids[0] != ids[1] && ids.iter().all(|id| id.starts_with("req_")),
        "{ids:?}"
    );
}

#[tokio::test]
async fn the_reasons_for_bad_health_stand_on_the_management_address_only() {
    let broker = Broker::start().await;
    let ready = broker.send("GET", "/readyz", &[], None).await;
    assert_eq!(
        (ready.status, ready.json()),
        (503, serde_json::json!({"status": "unready"}))
    );
    assert_eq!(broker.send("GET", "/healthz", &[], None).await.status, 200);
    assert_eq!(broker.send("GET", "/metrics", &[], None).await.status, 404);

    let operators = broker.management().await;
    let ready = operators.send("GET", "/readyz", &[], None).await;
    assert_eq!(
        (ready.status, &ready.json()["checks"][0]["detail"]),
        (503, &"the disk is full".into())
    );
    assert_eq!(
        operators
            .send("GET", "/v1/targets", &["Authorization: Bearer alice"], None)
            .await
            .status,
        404
    );
    let metrics = operators.send("GET", "/metrics", &[], None).await;
    let line = r#"kdbt_http_requests_total{route="/readyz",method="GET",status="503"} 2"#;
    assert!(metrics.body.contains(line), "{}", metrics.body);
    assert!(
        metrics.body.contains(r#"route="unmatched""#),
        "an unknown path is no label of its own"
    );
}

#[tokio::test]
async fn everybody_may_read_how_to_log_in() {
    let broker = Broker::start().await;
    let config = broker.send("GET", "/v1/client-config", &[], None).await;
    assert_eq!(
        (config.status, &config.json()["installation"]),
        (200, &"acme-test".into())
    );
    let metadata = broker
        .send("GET", "/.well-known/oauth-protected-resource", &[], None)
        .await
        .json();
    assert_eq!(metadata["resource"], "https://kdbt.acme.example");
    assert_eq!(
        metadata["authorization_servers"][0],
        "https://sso.acme.example/realms/data"
    );
}
