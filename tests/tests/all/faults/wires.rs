//! The server dies under load, and the wire to it is cut at every message.

use std::time::Duration;

use kdbt_e2e::fault::caller::Caller;
use kdbt_e2e::fault::load::Load;
use kdbt_e2e::fault::proxy::{Cut, Proxy, Way};
use kdbt_e2e::fault::{caller, check, options, stack};
use kdbt_e2e::postgres::{PgStop, PgVersion};
use kdbt_e2e::stack::Stack;
use serde_json::json;

/// A stack whose broker dials its server through the proxy.
async fn behind(proxy: &Proxy) -> Stack {
    let mut options = options(PgVersion::Pg18);
    options.broker.dials = Some(proxy.port());
    let stack = Stack::prepare(&options, |_| {}).await.unwrap();
    proxy.lead_to(stack.postgres.port());
    let mut stack = stack.bootstrapped(|_| {}).await.unwrap();
    stack.broker.start().await.unwrap();
    stack
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_under_load_and_comes_back_has_no_user_that_the_broker_does_not_know() {
    for version in PgVersion::ALL {
        let mut stack = stack(version).await.unwrap();
        let load = Load::start(&stack, 7).unwrap();
        for _death in 0..2 {
            tokio::time::sleep(Duration::from_millis(1500)).await;
            stack.postgres.stop(PgStop::Immediate).unwrap();
            tokio::time::sleep(Duration::from_millis(500)).await;
            stack.postgres.restart().unwrap();
            stack.broker.wait_until_ready().await.unwrap();
            check::settled(&stack).await.unwrap();
        }
        let (tally, secrets) = load.stop().await;
        assert!(tally.leases > 10, "{tally:?}");
        caller::revoke_all(&stack).await.unwrap();
        check::empty(&stack, Duration::from_secs(30)).await.unwrap();
        check::audit(&stack, None).unwrap();
        check::no_secret(&stack, &secrets).await.unwrap();
    }
}

/// An order for each cut until none comes before its end: the holder has a lease that works, or nothing is left.
async fn issue_with_cuts(way: Way, arrives: bool) -> usize {
    let proxy = Proxy::listen().await.unwrap();
    let stack = behind(&proxy).await;
    let ada = Caller::person(&stack, "ada").unwrap();
    for at in 1.. {
        // Whatever the cut before has broken is mended by the next order, or the one after it.
        let (answer, cut) = loop {
            proxy.cut(Cut { way, at, arrives });
            let answer = ada.order(&json!({ "target": "dev", "ttl": "10m" })).await.unwrap();
            match (answer.status, proxy.mend()) {
                (201, cut) | (503, cut @ true) => break (answer, cut),
                (503, false) => tokio::time::sleep(Duration::from_millis(200)).await,
                _ => panic!("{way:?} {at}: {answer:?}"),
            }
        };
        if let Ok(held) = answer.held() {
            held.connect(&stack).await.unwrap();
        }
        if !cut {
            caller::revoke_all(&stack).await.unwrap();
            check::empty(&stack, Duration::from_secs(30)).await.unwrap();
            check::settled(&stack).await.unwrap();
            return at;
        }
    }
    unreachable!()
}

/// An end for each cut until none comes before it is done: the user is gone soon, whatever is cut.
async fn end_with_cuts(way: Way, arrives: bool, first: usize, step: usize) -> usize {
    let proxy = Proxy::listen().await.unwrap();
    let stack = behind(&proxy).await;
    let ada = Caller::person(&stack, "ada").unwrap();
    for at in (first..).step_by(step) {
        let lease = ada.take("team", "10m").await.unwrap();
        let _session = kdbt_e2e::fault::steps::with_something_of_its_own(&stack, &lease)
            .await
            .unwrap();
        proxy.cut(Cut { way, at, arrives });
        let answer = ada.revoke(&lease.id).await.unwrap();
        assert!(answer.status < 300, "{way:?} {at}: {answer:?}");
        let cut = proxy.mend();
        check::empty(&stack, Duration::from_secs(20)).await.unwrap();
        if !cut {
            check::settled(&stack).await.unwrap();
            return at;
        }
    }
    unreachable!()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_issue_cut_at_any_message_is_a_lease_that_works_or_nothing() {
    let (sent, lost) = tokio::join!(
        issue_with_cuts(Way::ToServer, true),
        issue_with_cuts(Way::ToServer, false)
    );
    assert!(sent > 1 && lost > 1, "nothing was cut: {sent} {lost}");
    if std::env::var_os("KDBT_LONG").is_some() {
        issue_with_cuts(Way::ToBroker, true).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_cut_at_any_message_ends_all_the_same() {
    let cuts = |arrives, first| end_with_cuts(Way::ToServer, arrives, first, 2);
    let (sent, lost, sent_too, lost_too) = tokio::join!(cuts(true, 1), cuts(false, 1), cuts(true, 2), cuts(false, 2));
    let fewest = [sent, lost, sent_too, lost_too].into_iter().min().unwrap();
    assert!(fewest > 10, "an end has more messages than {fewest}");
    if std::env::var_os("KDBT_LONG").is_some() {
        end_with_cuts(Way::ToBroker, true, 1, 1).await;
    }
}
