//! A broker that is frozen between its look at a user and its act, while another one ends that user and hands out the
//! name again (S5).

use std::time::{Duration, Instant};

use kdbt_broker::failpoint::Point;
use kdbt_e2e::broker::Broker;
use kdbt_e2e::fault::caller::{Caller, Held};
use kdbt_e2e::fault::steps::with_something_of_its_own;
use kdbt_e2e::fault::{Act, options, stack};
use kdbt_e2e::postgres::PgVersion;
use kdbt_e2e::stack::Stack;
use rusqlite::{Connection, OpenFlags};
use rustix::process::Signal;

/// All that a holder has: the right to log in, the expiry, the memberships.
async fn rights(stack: &Stack, lease: &Held) -> Vec<Vec<String>> {
    let sql = format!(
        "SELECT r.oid, r.rolcanlogin, r.rolvaliduntil, \
         (SELECT string_agg(roleid::regrole::text, ',' ORDER BY 1) FROM pg_auth_members WHERE member = r.oid) \
         FROM pg_roles r WHERE rolname = '{}'",
        lease.user
    );
    stack.rows(&sql).await.unwrap()
}

/// The state of a lease in the first broker's store.
fn state(stack: &Stack, lease: &Held) -> String {
    let db = Connection::open_with_flags(stack.broker.store_file(), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    db.busy_timeout(Duration::from_secs(5)).unwrap();
    db.query_row("SELECT state FROM leases WHERE id = ?1", [&lease.id], |row| row.get(0))
        .unwrap()
}

async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !so().await {
        assert!(
            start.elapsed() < Duration::from_secs(25),
            "it never comes to that: {what}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The first broker freezes at this step of the end, or of a renewal; the second one reuses the name; the first wakes.
async fn freeze_at(stack: &Stack, second: &mut Broker, point: Point) {
    let name = point.name().replace(['.', '-'], "");
    let token = || {
        let forged = stack.identity.played().forge("ada").claim("sub", format!("sub-{name}"));
        forged.claim("preferred_username", name.as_str()).token()
    };
    let at_first = Caller::new(stack.broker.url(), token()).unwrap();
    // At the last step it may have swept before it knew of the end: then it issues nothing until the next sweep.
    let mut given = None;
    until("the first broker issues", async || {
        given = at_first.take("team", "3s").await.ok();
        given.is_some()
    })
    .await;
    let before = given.unwrap();
    let _session = with_something_of_its_own(stack, &before).await.unwrap();

    let logged = stack.broker.log().unwrap().len();
    stack.broker.script(point, Act::Pause).unwrap();
    let renewal = (point == Point::ExtendFound).then(|| {
        let (caller, id) = (at_first.clone(), before.id.clone());
        tokio::spawn(async move { caller.renew(&id, "10m").await })
    });
    stack.broker.wait_at(point, logged).await.unwrap();
    stack.broker.freeze().await.unwrap();
    stack.broker.clear_script().unwrap();
    // Its expiry has passed by now, or will soon; the second broker knows no more of it than the catalog says.
    let expired = format!(
        "SELECT FROM pg_roles WHERE rolname = '{}' AND rolvaliduntil > now()",
        before.user
    );
    until("the first lease has expired", async || {
        stack.rows(&expired).await.unwrap().is_empty()
    })
    .await;
    second.start().await.unwrap();
    until("the second broker ends the user", async || {
        rights(stack, &before).await.is_empty()
    })
    .await;

    let next = Caller::new(second.url(), token())
        .unwrap()
        .take("team", "10m")
        .await
        .unwrap();
    assert_eq!(next.user, before.user, "the name is used again");
    let session = with_something_of_its_own(stack, &next).await.unwrap();
    let had = rights(stack, &next).await;

    stack.broker.signal(Signal::CONT).unwrap();
    if let Some(renewal) = renewal {
        let answer = renewal.await.unwrap().unwrap();
        assert_eq!(answer.body["code"], "lease-not-active", "{}: {answer:?}", point.name());
    }
    until("the first broker takes its lease for ended", async || {
        state(stack, &before) == "ended"
    })
    .await;
    assert_eq!(rights(stack, &next).await, had, "woken at {}", point.name());
    let asked = session.simple_query("SELECT 1").await;
    assert!(
        asked.is_ok(),
        "woken at {}, it ended a session: {asked:?}",
        point.name()
    );
    let own = "SELECT FROM pg_largeobject_metadata WHERE lomowner = (SELECT oid FROM pg_roles WHERE rolname = ";
    let own = stack.rows(&format!("{own}'{}')", next.user)).await.unwrap();
    assert_eq!(own.len(), 1, "woken at {}", point.name());
    next.connect(stack).await.unwrap();
    second.kill().await.unwrap();
}

async fn freeze_at_each(version: PgVersion, points: &[Point]) {
    let stack = stack(version).await.unwrap();
    let same = options(version).broker;
    let mut second = stack
        .broker
        .beside(&same, &stack.postgres, &stack.identity.issuer())
        .unwrap();
    for point in points {
        freeze_at(&stack, &mut second, *point).await;
    }
}

#[tokio::test]
async fn a_broker_frozen_at_any_rung_never_touches_the_next_user_of_the_name() {
    let early = [Point::EndFound, Point::EndLoginsStopped, Point::EndMembershipsRevoked];
    let late = [
        Point::EndSessionsEnded,
        Point::EndJoined,
        Point::EndCleaned,
        Point::ExtendFound,
    ];
    tokio::join!(
        freeze_at_each(PgVersion::Pg18, &early),
        freeze_at_each(PgVersion::Pg18, &late)
    );
}

#[tokio::test]
async fn before_16_too_a_frozen_broker_never_touches_the_next_user_of_the_name() {
    freeze_at_each(PgVersion::Pg15, &[Point::EndFound, Point::EndSessionsEnded]).await;
}
