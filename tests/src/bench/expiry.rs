//! From the end of a lease to the drop of its user: one now and then among many that live, and many at once.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use futures_util::StreamExt;

use super::load::{Crowd, verifier};
use super::report::{Report, millis, percentile};
use crate::stack::Stack;

/// So many leases end alone, a second apart.
const ALONE: usize = 10;
/// Until the first of them ends; the many must be there by then.
const SOON: Duration = Duration::from_secs(25);

pub(super) async fn measure(stack: &Stack, leases: usize, report: &mut Report) -> Result<()> {
    let crowd = Crowd::new(stack)?;
    let verifier = verifier(1);
    let alone = ALONE.min(leases);
    let first = UNIX_EPOCH.elapsed()?.as_secs() + SOON.as_secs();
    let all_at_once = first + u64::try_from(alone)? + 2;
    // What ends together ends in the same second of the clock, whenever it was asked for.
    let ends: Vec<u64> = std::iter::repeat_n(all_at_once, leases - alone)
        .chain((0..alone as u64).map(|number| first + number))
        .collect();
    let asked: Vec<_> = ends
        .into_iter()
        .map(|end| {
            let (crowd, verifier) = (&crowd, &verifier);
            async move {
                let left = end.saturating_sub(UNIX_EPOCH.elapsed()?.as_secs()).max(1);
                crowd.ask(1, 1, verifier, &format!("{left}s")).await
            }
        })
        .collect();
    let mut answers = futures_util::stream::iter(asked).buffer_unordered(16);
    while let Some(answer) = answers.next().await {
        answer?;
    }
    let live = stack.lease_users().await?.len();
    ensure!(live == leases, "{live} of {leases} leases live when the first ends");

    // How many are gone, looked at often: each drop is as late as the look that misses it.
    let due = |number: usize| match number {
        number if number < alone => first + number as u64,
        _ => all_at_once,
    };
    let patience = Instant::now() + Duration::from_mins(4);
    let (mut gone, mut lags) = (0, Vec::new());
    while gone < leases {
        ensure!(
            Instant::now() < patience,
            "{} users outlive their leases",
            leases - gone
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
        let left = stack.lease_users().await?.len();
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        for number in gone..leases - left {
            lags.push(now.saturating_sub(Duration::from_secs(due(number))));
        }
        gone = leases - left;
    }
    let (few, many) = lags.split_at_mut(alone);
    few.sort_unstable();
    many.sort_unstable();
    report.line(format!(
        "\nPostgreSQL {}   expiry to drop with {leases} live leases\n  one at a time: p50 {:.0} ms, worst {:.0} ms;   {} at once: first {:.0} ms, p50 {:.0} ms, last {:.0} ms",
        stack.postgres.version().major(),
        millis(percentile(few, 0.5)),
        millis(percentile(few, 1.0)),
        many.len(),
        millis(percentile(many, 0.0)),
        millis(percentile(many, 0.5)),
        millis(percentile(many, 1.0)),
    ));
    Ok(())
}
