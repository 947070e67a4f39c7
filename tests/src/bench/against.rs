//! This broker and an older one in turn, each on a server of its own: what a change costs every lease.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::load::{Crowd, verifier};
use super::report::{Report, millis, percentile, say};
use super::stack_options;
use crate::postgres::PgVersion;
use crate::stack::Stack;

/// Of this one's time for the same leases, over the other's.
const RATIO: f64 = 1.05;

pub(super) async fn measure(
    version: PgVersion,
    other: &Path,
    leases: usize,
    rounds: usize,
    report: &mut Report,
) -> Result<()> {
    let ours = Stack::start(&stack_options(version), say).await?;
    let mut options = stack_options(version);
    options.broker.program = Some(other.to_owned());
    let theirs = Stack::start(&options, say).await?;
    let major = version.major();
    report.line(format!(
        "\nPostgreSQL {major}   {leases} leases a round, {rounds} rounds, in turn with {}\n  {:>7} {:>9} {:>9}   {:>5} of the rounds' ratios: least, median, most",
        other.display(),
        "clients",
        "ours ms",
        "theirs ms",
        ""
    ));
    for stack in [&ours, &theirs] {
        round(stack, 16, 64).await?;
    }
    for clients in [1, 16] {
        let (mut mine, mut other, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for turn in 0..rounds {
            // Who goes first finds another machine than who goes second.
            let (a, b) = if turn % 2 == 0 {
                let a = round(&ours, clients, leases).await?;
                (a, round(&theirs, clients, leases).await?)
            } else {
                let b = round(&theirs, clients, leases).await?;
                (round(&ours, clients, leases).await?, b)
            };
            ratios.push(a.as_secs_f64() / b.as_secs_f64());
            mine.push(a);
            other.push(b);
        }
        ratios.sort_by(f64::total_cmp);
        mine.sort_unstable();
        other.sort_unstable();
        let median = ratios.get(ratios.len() / 2).copied().unwrap_or(f64::NAN);
        report.line(format!(
            "  {clients:>7} {:>9.2} {:>9.2}   {:.3} {median:.3} {:.3}",
            millis(percentile(&mine, 0.5)),
            millis(percentile(&other, 0.5)),
            ratios.first().copied().unwrap_or(f64::NAN),
            ratios.last().copied().unwrap_or(f64::NAN),
        ));
        report.judge(
            median <= RATIO,
            &format!(
                "PostgreSQL {major}, {clients} clients: a lease takes {median:.3} of its time before (at most {RATIO})"
            ),
        );
    }
    Ok(())
}

/// The middle of the latencies of one round; then all are given back.
async fn round(stack: &Stack, clients: usize, leases: usize) -> Result<Duration> {
    let crowd = Crowd::new(stack)?;
    let load = crowd.ask(clients, leases, &verifier(1), "1h").await?;
    crowd.give_back(stack).await?;
    Ok(percentile(&load.latencies, 0.5))
}
