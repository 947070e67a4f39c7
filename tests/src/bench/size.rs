//! How the broker starts, and how much memory it takes, with years of leases in its store.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures_util::{StreamExt, TryStreamExt};
use kdbt_api::Timestamp;
use kdbt_broker::audit::Actor;
use kdbt_broker::clock::{SharedClock, system_clock};
use kdbt_broker::lease::{EndReason, Lease, LeaseEvent};
use kdbt_broker::store::sqlite::{SqliteOptions, SqliteStore};
use kdbt_broker::store::{Booked, Change, LeaseStore, Limits};

use super::load::{Crowd, verifier};
use super::report::{Report, millis, say};
use crate::contract::store::{booking, created, end_due};
use crate::stack::Stack;

const TARGET_MIB: f64 = 60.0;
/// How many persons hold the leases.
const PEOPLE: usize = 1000;
/// Jobs that the store is given at once.
const AT_ONCE: usize = 256;

pub(super) async fn measure(mut stack: Stack, ended: usize, live: usize, report: &mut Report) -> Result<()> {
    stack.broker.stop().await?;
    let started = Instant::now();
    fill(&stack, ended, live).await?;
    let file = fs::metadata(stack.broker.store_file())?.len() >> 20;
    say(&format!(
        "  the store has {file} MiB after {:.0} s",
        started.elapsed().as_secs_f64()
    ));

    let started = Instant::now();
    stack.broker.start().await?;
    let start = started.elapsed();
    let at_start = memory(&stack, "VmRSS")?;
    let crowd = Crowd::new(&stack)?;
    let load = crowd.ask(16, 128, &verifier(1), "1h").await;
    // Another sweep of all the live ones.
    tokio::time::sleep(Duration::from_secs(12)).await;
    let after = memory(&stack, "VmRSS")?;
    let peak = memory(&stack, "VmHWM")?;
    let major = stack.postgres.version().major();
    report.line(format!(
        "\nPostgreSQL {major}   a store of {file} MiB with {ended} ended and {live} live leases\n  ready after {:.0} ms;   memory {at_start:.0} MiB at start, {after:.0} MiB after a load and a sweep, {peak:.0} MiB at most",
        millis(start),
    ));
    match load {
        Ok(load) => report.line(format!("  {:.0} leases/s at 16 clients", load.rate())),
        Err(error) => report.line(format!("  no load: {error:#}")),
    }
    report.judge(
        at_start.max(after) < TARGET_MIB,
        &format!(
            "PostgreSQL {major}: {:.0} MiB of memory (under {TARGET_MIB})",
            at_start.max(after)
        ),
    );
    Ok(())
}

/// Writes through the store's own port, as the broker does. The live ones have their users on the server.
async fn fill(stack: &Stack, ended: usize, live: usize) -> Result<()> {
    let clock = system_clock();
    let options = SqliteOptions::new("demo".parse()?);
    let (path, theirs) = (stack.broker.store_file(), clock.clone());
    let store = tokio::task::spawn_blocking(move || SqliteStore::open(&path, options, theirs)).await??;
    let (store, clock) = (&store, &clock);
    futures_util::stream::iter(0..ended)
        .map(|number| over(store, clock, number))
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>()
        .await?;
    let booked: Vec<Lease> = futures_util::stream::iter(0..live)
        .map(|number| book(store, clock, number))
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await?;
    let mut active = Vec::with_capacity(booked.len());
    for some in booked.chunks(500) {
        active.extend(users(stack, some).await?);
    }
    futures_util::stream::iter(active)
        .map(|(lease, oid)| async move { change(store, clock, &lease, created(oid)).await.map(drop) })
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>()
        .await
}

async fn book(store: &SqliteStore, clock: &SharedClock, number: usize) -> Result<Lease> {
    let mut booking = booking(&format!("person{}", number % PEOPLE), 0);
    let now = clock.now();
    booking.now = now;
    booking.ends_at = (now + Duration::from_hours(1)).whole_second();
    booking.max_ends_at = (now + Duration::from_hours(2)).whole_second();
    booking.limits = Limits {
        per_person: u16::MAX,
        per_rule: u32::MAX,
        per_target: u32::MAX,
    };
    match store.book(booking).await? {
        Booked::New(lease) => Ok(lease),
        Booked::Replay(lease) => bail!("{} is a replay", lease.id),
    }
}

async fn over(store: &SqliteStore, clock: &SharedClock, number: usize) -> Result<()> {
    let lease = book(store, clock, number).await?;
    change(store, clock, &lease, created(u32::try_from(number)?)).await?;
    change(store, clock, &lease, end_due(EndReason::Expired)).await?;
    change(store, clock, &lease, LeaseEvent::Dropped { at: clock.now() }).await?;
    Ok(())
}

async fn change(store: &SqliteStore, clock: &SharedClock, lease: &Lease, event: LeaseEvent) -> Result<Lease> {
    Ok(store
        .record(Change::new(lease, event, Actor::Broker, clock.now()))
        .await?)
}

/// Makes their users as a superuser, for whom a thousand roles are no more work than one.
async fn users(stack: &Stack, leases: &[Lease]) -> Result<Vec<(Lease, u32)>> {
    let until = |end: Timestamp| end.to_string();
    let statements = leases.iter().map(|lease| {
        let issue = lease.issue().context("an adopted lease")?;
        Ok(format!(
            "CREATE ROLE \"{name}\" LOGIN PASSWORD NULL VALID UNTIL '{}'; \
             COMMENT ON ROLE \"{name}\" IS 'kdbt/1 demo {} max={} sub={} owner=-';",
            until(lease.ends_at),
            lease.id,
            lease.max_ends_at.as_unix(),
            issue.holder.subject_hash().as_str(),
            name = lease.username,
        ))
    });
    let sql = statements.collect::<Result<String>>()?;
    stack.postgres.execute("postgres", &sql).await?;
    let rows = stack
        .rows("SELECT rolname, oid FROM pg_roles WHERE rolname LIKE 'kdbt\\_person%'")
        .await?;
    let oids: std::collections::HashMap<&str, u32> = rows
        .iter()
        .filter_map(|row| Some((row.first()?.as_str(), row.get(1)?.parse().ok()?)))
        .collect();
    let found = leases.iter().map(|lease| {
        let oid = oids.get(lease.username.as_str()).context("a role was not made")?;
        Ok((lease.clone(), *oid))
    });
    found.collect()
}

/// A line of the broker's `/proc` status, in MiB.
fn memory(stack: &Stack, name: &str) -> Result<f64> {
    let pid = stack.broker.pid().context("the broker does not run")?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kib: f64 = line
        .and_then(|rest| rest.trim_matches([':', ' ', '\t']).split(' ').next()?.parse().ok())
        .with_context(|| format!("no {name}"))?;
    Ok(kib / 1024.0)
}
