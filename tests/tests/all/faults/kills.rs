//! `kill -9`: at each named step once, and at random moments under load.

use futures_util::future::try_join_all;
use kdbt_broker::failpoint::Point;
use kdbt_e2e::fault::{caller, check, kills, stack, steps};
use kdbt_e2e::postgres::PgVersion;

/// Dies at one step after another, then ends all that is left.
async fn die_at_each(version: PgVersion, points: Vec<Point>) -> anyhow::Result<()> {
    let mut stack = stack(version).await?;
    for point in points {
        steps::die_at(&mut stack, point).await?;
    }
    caller::revoke_all(&stack).await?;
    check::empty(&stack, check::ONE_SWEEP).await?;
    check::audit(&stack, None).map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_dies_at_any_step_leaves_nothing_that_the_next_one_does_not_know_of() {
    const AT_ONCE: usize = 4;
    let every = |n: usize| Point::ALL.iter().skip(n).step_by(AT_ONCE).copied().collect();
    let runs = (0..AT_ONCE).map(|n| die_at_each(PgVersion::Pg18, every(n)));
    try_join_all(runs).await.unwrap();
}

#[tokio::test]
async fn before_16_too_a_broker_that_dies_in_an_issue_or_an_end_leaves_nothing_unknown() {
    let points = [
        Point::CreateMade,
        Point::IssueCreated,
        Point::EndLoginsStopped,
        Point::EndMembershipsRevoked,
        Point::EndCleaned,
        Point::EndDropped,
        Point::SweepAdopted,
    ];
    die_at_each(PgVersion::Pg15, points.to_vec()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_killed_at_random_under_load_leaves_no_orphan() {
    let count = if std::env::var_os("KDBT_LONG").is_some() {
        1000
    } else {
        20
    };
    let count = std::env::var("KDBT_TEST_KILLS").map_or(count, |text| text.parse().unwrap());
    let mut stack = stack(PgVersion::Pg18).await.unwrap();
    let seed = u64::from(std::process::id());
    let report = kills::random_kills(&mut stack, count, seed).await.unwrap();
    println!("{report}");
    assert!(report.tally.leases > count, "the load was none: {report}");
    assert!(report.tally.unanswered > 0, "no request was cut: {report}");
}
