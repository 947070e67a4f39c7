//! Leases end: at their time, when told to, and with them everything that could still act.

use std::time::Duration;

use kdbt_e2e::postgres::PgVersion;

use super::{Caller, Lease, exists, gone, shared};

#[tokio::test]
async fn an_expired_lease_loses_its_user_and_its_live_session_within_seconds() {
    for version in PgVersion::ALL {
        let stack = shared(version).await;
        let lease = Lease::take(&Caller::person(stack, "ada"), "dev", "3s").await;
        let session = lease.connect(stack).await.unwrap();
        session
            .simple_query("CREATE TEMP TABLE t AS SELECT 1 AS one")
            .await
            .unwrap();
        gone(stack, &lease.user, Duration::from_secs(15)).await;
        let late = jiff::Timestamp::now().duration_since(lease.ends_at).as_secs_f32();
        assert!((-0.1..5.0).contains(&late), "gone {late} s after its end");
        assert!(session.simple_query("SELECT 1").await.is_err());
        assert!(lease.connect(stack).await.is_err());
    }
}

#[tokio::test]
async fn a_revoked_lease_is_ended_when_the_answer_comes() {
    let stack = shared(PgVersion::Pg18).await;
    let ada = Caller::person(stack, "ada");
    let lease = Lease::take(&ada, "team", "10m").await;
    let session = lease.connect(stack).await.unwrap();
    let answer = ada.revoke(&lease.id).await.expect(200).json();
    assert_eq!(answer["state"], "ended");
    assert!(!exists(stack, &lease.user).await);
    assert!(session.simple_query("SELECT 1").await.is_err());
    // Asked twice is asked once.
    ada.revoke(&lease.id).await.expect(200);
}

#[tokio::test]
async fn a_cancel_ends_the_sessions_and_leaves_the_lease() {
    let stack = shared(PgVersion::Pg18).await;
    let ada = Caller::person(stack, "ada");
    let lease = Lease::take(&ada, "team", "10m").await;
    let session = lease.connect(stack).await.unwrap();
    let path = format!("/v1/leases/{}/cancel", lease.id);
    let answer = ada.post(&path, &serde_json::json!({})).await.expect(200).json();
    assert_eq!(answer["sessions_ended"], 1);
    assert!(session.simple_query("SELECT 1").await.is_err());
    lease.connect(stack).await.unwrap();
    ada.revoke(&lease.id).await.expect(200);
}

#[tokio::test]
async fn a_renewal_moves_the_end_of_the_same_user() {
    let stack = shared(PgVersion::Pg18).await;
    let ada = Caller::person(stack, "ada");
    let lease = Lease::take(&ada, "team", "4s").await;
    let path = format!("/v1/leases/{}/renew", lease.id);
    let renewed = ada
        .post(&path, &serde_json::json!({ "ttl": "30m" }))
        .await
        .expect(200)
        .json();
    assert_eq!(renewed["user"], lease.user.as_str());
    let ends_at: jiff::Timestamp = renewed["ends_at"].as_str().unwrap().parse().unwrap();
    assert!(ends_at.duration_since(lease.ends_at) > jiff::SignedDuration::from_mins(25));
    tokio::time::sleep(Duration::from_secs(5)).await;
    // Past the first end: a new login with the same password works.
    lease.connect(stack).await.unwrap();
    ada.revoke(&lease.id).await.expect(200);
}
