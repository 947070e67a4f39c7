//! A client that stalls in its password exchange and answers when the name of its user may be in use again (S26).

use std::time::Duration;

use kdbt_e2e::fault::caller::{Caller, Held};
use kdbt_e2e::fault::stalled::Stalled;
use kdbt_e2e::fault::{check, options};
use kdbt_e2e::postgres::{PgOptions, PgVersion};
use kdbt_e2e::stack::{DATABASE, Stack};
use rusqlite::{Connection, OpenFlags};

/// Longer than the server's default.
const LOGIN_WITHIN: &str = "90s";

fn person(stack: &Stack, name: &str) -> Caller {
    let forged = stack.identity.played().forge("ada").claim("sub", format!("sub-{name}"));
    Caller::new(stack.broker.url(), forged.claim("preferred_username", name).token()).unwrap()
}

async fn stall(stack: &Stack, lease: &Held) -> Stalled {
    let port = stack.postgres.port();
    Stalled::login(port, DATABASE, &lease.user, &lease.password)
        .await
        .unwrap()
}

/// For how long the name of a lease that has ended is not used again.
fn rest(stack: &Stack, lease: &Held) -> Option<Duration> {
    let db = Connection::open_with_flags(stack.broker.store_file(), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    db.busy_timeout(Duration::from_secs(5)).unwrap();
    let sql = "SELECT rest_until - ended_at FROM leases WHERE id = ?1";
    let millis: Option<i64> = db.query_row(sql, [&lease.id], |row| row.get(0)).unwrap();
    millis.map(|millis| Duration::from_millis(millis.try_into().unwrap()))
}

async fn old_secrets_at_new_leases(version: PgVersion) {
    let mut options = options(version);
    options.postgres = PgOptions::default().set("authentication_timeout", LOGIN_WITHIN);
    let stack = Stack::start(&options, |_| {}).await.unwrap();
    let admin = Caller::person(&stack, "adm").unwrap();
    let eve = person(&stack, "eve");
    let first = eve.take("team", "10m").await.unwrap();
    let stalled = stall(&stack, &first).await;
    assert_eq!(admin.revoke(&first.id).await.unwrap().status, 200);
    let next = eve.take("team", "10m").await.unwrap();
    assert_ne!(next.user, first.user, "a name that rests was used");
    assert!(!stalled.gets_in().await.unwrap(), "the old secret opens a lease");
    let rest = rest(&stack, &first).unwrap();
    assert!(
        rest >= Duration::from_secs(95),
        "a login may take 90 s, the name rests {rest:?}"
    );

    // What remains, and what shows that the attack is one: the holder's own revocation frees the name at once.
    let own = person(&stack, "olga");
    let first = own.take("team", "10m").await.unwrap();
    let stalled = stall(&stack, &first).await;
    assert_eq!(own.revoke(&first.id).await.unwrap().status, 200);
    let again = own.take("team", "10m").await.unwrap();
    assert_eq!(again.user, first.user);
    assert!(
        stalled.gets_in().await.unwrap(),
        "it remains no more: say so in the documents"
    );
    for (caller, lease) in [(&eve, &next), (&own, &again)] {
        caller.revoke(&lease.id).await.unwrap();
    }
    check::empty(&stack, check::ONE_SWEEP).await.unwrap();
}

#[tokio::test]
async fn a_login_that_stalled_before_a_revocation_for_cause_never_opens_the_next_lease() {
    let [oldest, newest] = PgVersion::ALL;
    tokio::join!(old_secrets_at_new_leases(oldest), old_secrets_at_new_leases(newest));
}
