//! Leases per second and how long one takes, in turn with the raw message on the same server.

use anyhow::Result;

use super::Options;
use super::load::{Crowd, Load, verifier};
use super::raw::Message;
use super::report::{Report, millis, per_second, percentile};
use crate::broker::LOGIN;
use crate::stack::Stack;

/// At 16 clients, of the raw rate.
const RATIO: f64 = 0.3;
/// At one client, over the raw latency.
const MORE_MILLIS: f64 = 5.0;

pub(super) async fn measure(stack: &Stack, options: &Options, report: &mut Report) -> Result<()> {
    let major = stack.postgres.version().major();
    report.line(format!(
        "\nPostgreSQL {major}   leases per round: {}, then all are ended\n  {:>10} {:>7} {:>9} {:>9} {:>6}   {:>7} {:>7}   {:>7} {:>7}   {:>7}",
        options.leases, "iterations", "clients", "leases/s", "raw/s", "ratio", "p50 ms", "p99 ms", "raw p50", "raw p99", "ended/s"
    ));
    // The bootstrap allows the broker few connections, and pgbench wants one for each client.
    let unlimited = format!("ALTER ROLE {LOGIN} CONNECTION LIMIT -1");
    stack.postgres.execute("postgres", &unlimited).await?;
    // Slugs are registered, connections and plans are warm.
    Crowd::new(stack)?.ask(16, 64, &verifier(1), "1h").await?;
    Crowd::new(stack)?.give_back(stack).await?;
    for &iterations in &options.iterations {
        let verifier = verifier(iterations);
        let message = Message::capture(stack, &Crowd::new(stack)?, &verifier).await?;
        for &clients in &options.clients {
            let leases = if clients == 1 {
                options.leases.min(128)
            } else {
                options.leases
            };
            let (mut ours, mut raw) = (Load::default(), Load::default());
            let mut ending = std::time::Duration::ZERO;
            for _ in 0..options.rounds.max(1) {
                let crowd = Crowd::new(stack)?;
                ours.add(crowd.ask(clients, leases, &verifier, "1h").await?);
                ending += crowd.give_back(stack).await?;
                raw.add(message.send(stack, clients, leases).await?);
            }
            let (rate, raw_rate) = (ours.rate(), raw.rate());
            let ratio = rate / raw_rate;
            let p = |load: &Load, share| millis(percentile(&load.latencies, share));
            report.line(format!(
                "  {iterations:>10} {clients:>7} {rate:>9.0} {raw_rate:>9.0} {ratio:>6.2}   {:>7.2} {:>7.2}   {:>7.2} {:>7.2}   {:>7.0}",
                p(&ours, 0.5),
                p(&ours, 0.99),
                p(&raw, 0.5),
                p(&raw, 0.99),
                per_second(ours.latencies.len(), ending),
            ));
            let what = format!("PostgreSQL {major}, {iterations} iterations");
            if clients == 16 {
                report.judge(
                    ratio >= RATIO,
                    &format!("{what}: {ratio:.2} of the raw rate at 16 clients (at least {RATIO})"),
                );
            }
            if clients == 1 {
                let more = p(&ours, 0.5) - p(&raw, 0.5);
                report.judge(
                    more <= MORE_MILLIS,
                    &format!("{what}: p50 is raw + {more:.2} ms at 1 client (at most {MORE_MILLIS})"),
                );
            }
        }
    }
    Ok(())
}

impl Load {
    pub(super) fn add(&mut self, other: Self) {
        self.took += other.took;
        self.latencies.extend(other.latencies);
        self.latencies.sort_unstable();
    }

    pub(super) fn rate(&self) -> f64 {
        per_second(self.latencies.len(), self.took)
    }
}
