//! `cargo bench -p kdbt-e2e`: what a lease costs, beside what the server alone takes for the same statements in the same run.
//!
//! Only ratios and differences are judged, never a time by itself: machines differ. The broker and the client are release builds
//! without `testkit`. Nothing fails when a target is missed; the table says `MISS`.

mod against;
mod expiry;
mod hostile;
mod lake;
mod load;
mod overhead;
mod rates;
mod raw;
mod report;
mod size;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};

use crate::binaries::Binaries;
use crate::broker::BrokerOptions;
use crate::postgres::{PgOptions, PgVersion};
use crate::stack::{Stack, StackOptions};
use report::Report;

/// Measures leases per second and their latency, the lag from expiry to drop, the broker's start and memory, the client's overhead.
#[derive(Debug, Parser)]
#[command(name = "leases", max_term_width = 100)]
pub struct Options {
    /// The PostgreSQL to run on; both if absent
    #[arg(long, value_name = "15|18", value_delimiter = ',', value_parser = version)]
    pg: Vec<PgVersion>,
    /// The parts to run; all if absent
    #[arg(long, value_delimiter = ',')]
    parts: Vec<Part>,
    /// Another broker, such as one built before a change; measures this one in turn with it, and nothing else
    #[arg(long, value_name = "PROGRAM", conflicts_with = "parts")]
    against: Option<PathBuf>,
    /// How many clients ask at once
    #[arg(long, value_delimiter = ',', default_values_t = [1, 4, 16, 64])]
    clients: Vec<usize>,
    /// SCRAM iterations of the verifiers
    #[arg(long, value_delimiter = ',', default_values_t = [1, 4096], value_parser = iterations)]
    iterations: Vec<u32>,
    /// Leases per round; fewer are enough for one client. From 16 on a role costs more the more there are
    #[arg(long, default_value_t = 512)]
    leases: usize,
    /// Rounds of broker and raw SQL in turn
    #[arg(long, default_value_t = 2)]
    rounds: usize,
    /// Live leases that run out
    #[arg(long, default_value_t = 1000)]
    expiring: usize,
    /// Ended leases in the store
    #[arg(long, default_value_t = 100_000)]
    ended: usize,
    /// Live leases in the store
    #[arg(long, default_value_t = 10_000)]
    live: usize,
    /// Cargo's own flag
    #[arg(long, hide = true)]
    bench: bool,
}

/// What can be measured alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Leases per second and latency, beside raw SQL.
    Rates,
    /// Others' latency beside a hostile holder.
    Hostile,
    /// From expiry to drop.
    Expiry,
    /// Start and memory with a big store.
    Size,
    /// What the client adds.
    Client,
    /// Snowflake, on the simulated account.
    Lake,
}

fn version(text: &str) -> Result<PgVersion> {
    let found = PgVersion::ALL
        .into_iter()
        .find(|version| version.major().to_string() == text);
    found.with_context(|| format!("PostgreSQL {text} is not one of 15 and 18"))
}

fn iterations(text: &str) -> Result<u32> {
    match text {
        "1" => Ok(1),
        "4096" => Ok(4096),
        _ => bail!("a verifier has 1 or 4096 iterations"),
    }
}

impl Options {
    fn versions(&self) -> Vec<PgVersion> {
        match &self.pg[..] {
            [] => PgVersion::ALL.to_vec(),
            chosen => chosen.to_vec(),
        }
    }
}

/// Runs the chosen parts and prints the table.
pub async fn run(options: &Options) -> Result<()> {
    let binaries = Binaries::build_release()?;
    report::say(&format!("broker: {}", binaries.broker_version()?));
    binaries.share()?;
    let chosen = |part| options.parts.is_empty() || options.parts.contains(&part);
    let mut report = Report::default();
    if let Some(other) = &options.against {
        let other = other.canonicalize().context("the other broker")?;
        for version in options.versions() {
            against::measure(
                version,
                &other,
                options.leases.min(256),
                options.rounds.max(5),
                &mut report,
            )
            .await?;
        }
        report.print();
        return Ok(());
    }
    if chosen(Part::Lake) {
        lake::measure(&mut report).await?;
    }
    let versions = match &options.parts[..] {
        [Part::Lake] => Vec::new(),
        _ => options.versions(),
    };
    for version in versions {
        let stack = Stack::start(&stack_options(version), report::say).await?;
        if chosen(Part::Rates) {
            rates::measure(&stack, options, &mut report).await?;
        }
        if chosen(Part::Client) {
            overhead::measure(&stack, &mut report).await?;
        }
        if chosen(Part::Hostile) {
            hostile::measure(&stack, options.leases.min(256), &mut report).await?;
        }
        if chosen(Part::Expiry) {
            expiry::measure(&stack, options.expiring, &mut report).await?;
        }
        if chosen(Part::Size) {
            size::measure(stack, options.ended, options.live, &mut report).await?;
        }
    }
    report.print();
    Ok(())
}

fn stack_options(version: PgVersion) -> StackOptions {
    let policies = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/policies");
    let mut broker = BrokerOptions::new(policies);
    broker.more = "limits: { leases_per_person: 20000, leases_per_rule: 20000, leases_per_target: 20000 }\n".into();
    StackOptions {
        version,
        postgres: PgOptions::default().set("max_connections", "200"),
        keycloak: false,
        broker,
    }
}
