//! Sizes, numbers and times, each met from the wrong side.

use super::*;

const ORDER: Option<&str> = Some(r#"{"target": "dev"}"#);

#[tokio::test]
async fn a_url_over_the_limit_is_414() {
    let broker = Broker::start().await;
    let path = format!("/v1/leases?after={}", "x".repeat(4096));
    assert_eq!(
        broker.call("GET", &path, None).await.failure(),
        (414, "uri-too-long".to_owned())
    );
}

#[tokio::test]
async fn headers_over_the_limit_are_431() {
    let broker = Broker::start().await;
    let header = format!("X-Filler: {}", "x".repeat(16 * 1024));
    let answer = broker.send("GET", "/healthz", &[&header], None).await;
    assert_eq!(answer.failure(), (431, "headers-too-large".to_owned()));
    let many: Vec<String> = (0..200).map(|n| format!("X-{n}: y")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(broker.send("GET", "/healthz", &many, None).await.status, 431);
}

#[tokio::test]
async fn a_head_that_does_not_fit_the_buffer_reaches_nobody() {
    let broker = Broker::start().await;
    let filler = "x".repeat(500_000);
    for head in [
        format!("GET /{filler} HTTP/1.1\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nX: {filler}\r\n\r\n"),
    ] {
        let text = broker.raw(head).await;
        assert!(!text.starts_with("HTTP/1.1 2"), "{text}");
    }
    assert_eq!(broker.send("GET", "/healthz", &[], None).await.status, 200);
}

// R2
#[tokio::test]
async fn too_long_a_token_is_told_so_and_not_that_headers_are_too_large() {
    let broker = Broker::start().await;
    let header = format!("Authorization: Bearer {}", "x".repeat(33 * 1024));
    let answer = broker.send("GET", "/v1/targets", &[&header], None).await;
    assert_eq!(answer.failure(), (401, "token-invalid".to_owned()));
    assert_eq!(answer.problem().reason.as_deref(), Some(Reason::TokenTooLong.code()));
}

#[tokio::test]
async fn one_request_too_many_is_503_and_may_come_back() {
    let broker = Broker::with(Limits {
        requests: 1,
        ..Limits::default()
    })
    .await;
    let gate = broker.service.hold_issues();
    let refused = async {
        broker.service.begun.notified().await;
        let refused = broker.call("GET", "/v1/targets", None).await;
        gate.notify_one();
        refused
    };
    let order = broker.call("POST", "/v1/leases", ORDER);
    let (order, refused) = soon(async { tokio::join!(order, refused) }).await;
    assert_eq!(order.status, 201);
    assert_eq!(refused.failure(), (503, "unavailable".to_owned()));
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(broker.call("GET", "/v1/targets", None).await.status, 200);
}

#[tokio::test]
async fn a_request_over_its_time_is_503_while_its_work_goes_on() {
    let request_time = Duration::from_millis(50);
    let broker = Broker::with(Limits {
        request_time,
        ..Limits::default()
    })
    .await;
    let gate = broker.service.hold_issues();
    let answer = broker.call("POST", "/v1/leases", ORDER).await;
    assert_eq!(answer.failure(), (503, "unavailable".to_owned()));
    assert_eq!(broker.http.tasks.len(), 1);
    gate.notify_one();
    soon(broker.service.finished.notified()).await;
}

#[tokio::test]
async fn use_cases_whose_callers_are_gone_still_count_against_the_limit() {
    let request_time = Duration::from_millis(50);
    let broker = Broker::with(Limits {
        requests: 1,
        request_time,
        ..Limits::default()
    })
    .await;
    let _gate = broker.service.hold_issues();
    assert_eq!(broker.call("POST", "/v1/leases", ORDER).await.status, 503);
    let second = broker.call("POST", "/v1/leases", ORDER).await;
    assert_eq!((second.status, second.header("retry-after")), (503, Some("1")));
    assert_eq!(broker.service.calls().len(), 1, "the second must not reach the service");
}

#[tokio::test]
async fn a_connection_over_the_limit_waits_for_a_place() {
    let broker = Broker::with(Limits {
        connections: 1,
        ..Limits::default()
    })
    .await;
    let holder = broker.connect().await;
    let mut waiting = broker.connect().await;
    waiting.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").await.unwrap();
    let served = tokio::time::timeout(Duration::from_millis(100), waiting.readable()).await;
    assert!(served.is_err(), "it was served beside the one that holds the place");
    drop(holder);
    assert_eq!(Answer::parse(&read_to_end(&mut waiting).await).status, 200);
}

#[tokio::test]
async fn a_connection_ends_after_its_time_however_busy_it_is() {
    let connection_time = Duration::from_millis(100);
    let broker = Broker::with(Limits {
        connection_time,
        ..Limits::default()
    })
    .await;
    let mut busy = broker.connect().await;
    let (mut answers, mut chunk) = (0, vec![0; 4096]);
    soon(async {
        while busy
            .write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
            .await
            .is_ok()
        {
            match busy.read(&mut chunk).await {
                Ok(1..) => answers += 1,
                Ok(0) | Err(_) => break,
            }
        }
    })
    .await;
    assert!(answers > 0);
}
