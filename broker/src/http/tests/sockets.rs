//! What only a socket can do: hang up, dribble, lie about lengths, stay after the end.

use std::sync::atomic::Ordering;

use super::*;

const HEAD: &str = "POST /v1/leases HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer alice\r\n\
    Content-Type: application/json\r\n";

const ORDER: &str = r#"{"target": "dev"}"#;

/// Sends an order that is held in the service.
async fn order(broker: &Broker) -> TcpStream {
    let mut caller = broker.connect().await;
    let request = format!("{HEAD}Content-Length: {}\r\n\r\n{ORDER}", ORDER.len());
    caller.write_all(request.as_bytes()).await.unwrap();
    soon(broker.service.begun.notified()).await;
    caller
}

#[tokio::test]
async fn a_caller_who_hangs_up_does_not_stop_the_issue() {
    let broker = Broker::start().await;
    let gate = broker.service.hold_issues();
    drop(order(&broker).await);
    // When the server has stopped, no handler's future is left: what goes on now goes on by itself.
    broker.stop().await;
    assert_eq!(broker.service.issues_finished.load(Ordering::SeqCst), 0);
    assert_eq!(broker.http.tasks.len(), 1, "shutdown can wait for it");
    gate.notify_one();
    soon(broker.service.finished.notified()).await;
    assert_eq!(broker.service.issues_finished.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn stopping_lets_a_request_finish_and_takes_no_new_connection() {
    let broker = Broker::start().await;
    let gate = broker.service.hold_issues();
    let mut caller = order(&broker).await;
    broker.stop.cancel();
    while TcpStream::connect(broker.address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    gate.notify_one();
    assert_eq!(Answer::parse(&read_to_end(&mut caller).await).status, 201);
    broker.stop().await;
}

#[tokio::test]
async fn a_request_that_does_not_finish_in_time_is_cut_at_shutdown() {
    let drain_time = Duration::from_millis(50);
    let broker = Broker::with(Limits {
        drain_time,
        ..Limits::default()
    })
    .await;
    let _gate = broker.service.hold_issues();
    let mut caller = order(&broker).await;
    broker.stop().await;
    assert_eq!(read_to_end(&mut caller).await, "");
}

// S24
#[tokio::test]
async fn half_open_requests_by_the_hundred_are_cut_while_others_are_served() {
    let header_time = Duration::from_millis(300);
    let broker = Broker::with(Limits {
        header_time,
        ..Limits::default()
    })
    .await;
    let mut dribblers = Vec::new();
    for _ in 0..200 {
        let mut stream = broker.connect().await;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost:").await.unwrap();
        dribblers.push(stream);
    }
    assert_eq!(broker.send("GET", "/healthz", &[], None).await.status, 200);
    for mut stream in dribblers {
        let text = read_to_end(&mut stream).await;
        assert!(!text.starts_with("HTTP/1.1 2"), "{text}");
    }
}

#[tokio::test]
async fn a_connection_that_idles_is_closed() {
    let header_time = Duration::from_millis(100);
    let broker = Broker::with(Limits {
        header_time,
        ..Limits::default()
    })
    .await;
    read_to_end(&mut broker.connect().await).await;
    let mut used = broker.connect().await;
    used.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    assert!(read_to_end(&mut used).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_body_that_stops_half_way_is_refused_in_time() {
    let body_time = Duration::from_millis(100);
    let broker = Broker::with(Limits {
        body_time,
        ..Limits::default()
    })
    .await;
    let request = format!("{HEAD}Content-Length: 50\r\nConnection: close\r\n\r\n{{");
    let answer = Answer::parse(&broker.raw(request).await);
    assert_eq!(answer.failure(), (400, "malformed-request".to_owned()));
    assert_eq!(broker.service.calls(), [""; 0]);
}

#[tokio::test]
async fn a_body_over_the_limit_is_413_by_its_announcement_and_by_its_chunks() {
    let broker = Broker::start().await;
    let announced = format!("{HEAD}Connection: close\r\nContent-Length: 65537\r\n\r\n");
    let answer = Answer::parse(&broker.raw(announced).await);
    assert_eq!(answer.failure(), (413, "payload-too-large".to_owned()));

    let (full, size) = (" ".repeat(65_536), 65_536);
    let chunked =
        format!("{HEAD}Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n{size:x}\r\n{full}\r\n1\r\n \r\n");
    let answer = Answer::parse(&broker.raw(chunked).await);
    assert_eq!(answer.failure(), (413, "payload-too-large".to_owned()));
}

#[tokio::test]
async fn a_chunked_body_within_the_limit_is_read() {
    let broker = Broker::start().await;
    let body = "8\r\n{\"target\r\n9\r\n\": \"dev\"}\r\n0\r\n\r\n";
    let request = format!("{HEAD}Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
    assert_eq!(Answer::parse(&broker.raw(request).await).status, 201);
}

#[tokio::test]
async fn a_length_that_cannot_be_is_400_and_reaches_nobody() {
    let broker = Broker::start().await;
    for length in [
        "-1",
        "x",
        "1, 2",
        "99999999999999999999",
        "+17",
        "0x11",
        "17\r\nContent-Length: 18",
    ] {
        let request = format!("{HEAD}Connection: close\r\nContent-Length: {length}\r\n\r\n{ORDER}");
        assert_eq!(Answer::parse(&broker.raw(request).await).status, 400, "{length}");
    }
    assert_eq!(broker.service.calls(), [""; 0]);
}

#[tokio::test]
async fn what_is_no_http_is_refused_and_the_broker_lives_on() {
    let broker = Broker::start().await;
    for request in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"HELO\r\n\r\n",
        b"GET /\r\n\r\n",
        b"\0\0\r\n\r\n",
    ] {
        let text = broker.raw(request).await;
        assert!(text.starts_with("HTTP/1.1 400"), "{text:?}");
    }
    assert_eq!(broker.send("GET", "/healthz", &[], None).await.status, 200);
}

#[tokio::test]
async fn requests_in_a_row_on_one_connection_are_answered_in_order() {
    let broker = Broker::start().await;
    let requests = "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n\
        GET /v1/targets HTTP/1.1\r\nHost: a\r\n\r\n\
        GET /v1/targets HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer alice\r\nConnection: close\r\n\r\n";
    let text = broker.raw(requests).await;
    let statuses: Vec<&str> = text
        .split("HTTP/1.1 ")
        .skip(1)
        .filter_map(|answer| answer.get(..3))
        .collect();
    assert_eq!(statuses, ["200", "401", "200"], "{text}");
}

#[tokio::test]
async fn http_1_0_is_served_and_closed() {
    let broker = Broker::start().await;
    assert_eq!(
        Answer::parse(&broker.raw("GET /healthz HTTP/1.0\r\n\r\n").await).status,
        200
    );
    let answer = Answer::parse(&broker.raw("GET /v1/targets HTTP/1.0\r\n\r\n").await);
    assert_eq!(answer.failure(), (401, "token-missing".to_owned()));
}
