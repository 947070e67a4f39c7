//! For each named step: what leads a broker there, so that it dies, and what must be so when it is back.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kdbt_broker::failpoint::Point;
use rustix::process::Signal;
use serde_json::json;

use super::caller::{Caller, Held};
use super::{Act, check};
use crate::stack::Stack;

/// The code of a process that `kill -9` ended.
const KILLED: i32 = 128 + 9;

/// How soon it must come to its step. The rarest look is taken every five seconds.
const SOON: Duration = Duration::from_secs(20);

/// How soon an end that was cut is done by the next broker.
const ENDED_SOON: Duration = Duration::from_secs(15);

/// Ninety-one days: ended leases are forgotten after ninety.
const LONG_AFTER_MILLIS: i64 = 91 * 24 * 3_600_000;

/// What leads to a step.
enum Way {
    /// A start.
    Start,
    /// A start with a user whose row was lost.
    StartWithoutStore { ttl: &'static str, wait: Duration },
    /// A reload of the policies.
    Reload,
    /// An order for this target.
    Order(&'static str),
    /// A renewal.
    Renew,
    /// A revocation, of a lease with a session and something of its own.
    Revoke,
    /// Ninety-one days.
    Time,
}

fn way(point: Point) -> Way {
    use Point as P;
    match point {
        P::StartConfigured
        | P::StartOpened
        | P::StartListening
        | P::SweepCatalogRead
        | P::SweepStoreRead
        | P::SweepRecorded => Way::Start,
        P::SweepAdopted => Way::StartWithoutStore {
            ttl: "1m",
            wait: Duration::ZERO,
        },
        P::SweepStrayEnded => Way::StartWithoutStore {
            // Long enough to be alive still when the broker is killed.
            ttl: "4s",
            wait: Duration::from_millis(4500),
        },
        P::PolicyLoaded | P::PolicyRecorded | P::PolicyActive => Way::Reload,
        P::CreateOwnerReady => Way::Order("dev"),
        P::IssueDecided | P::IssueBooked | P::CreateConnected | P::CreateMade | P::IssueCreated | P::IssueActivated => {
            Way::Order("team")
        }
        P::RenewDecided | P::ExtendFound | P::RenewExtended | P::RenewRecorded => Way::Renew,
        P::RevokeFound
        | P::RevokeRecorded
        | P::EndClaimed
        | P::EndFound
        | P::EndLoginsStopped
        | P::EndMembershipsRevoked
        | P::EndSessionsEnded
        | P::EndJoined
        | P::EndCleaned
        | P::EndDropped
        | P::EndReported
        | P::EndRecorded => Way::Revoke,
        P::PurgeDue | P::PurgeDone => Way::Time,
    }
}

/// Lets a running broker die at a step, starts it again, and checks what it left.
pub async fn die_at(stack: &mut Stack, point: Point) -> Result<()> {
    die(stack, point)
        .await
        .with_context(|| format!("killed at {}", point.name()))
}

async fn die(stack: &mut Stack, point: Point) -> Result<()> {
    let ada = Caller::person(stack, "ada")?;
    match way(point) {
        Way::Start => {
            stack.broker.kill().await?;
            stack.broker.script(point, Act::Kill)?;
            stack.broker.spawn()?;
            back(stack).await
        }
        Way::StartWithoutStore { ttl, wait } => {
            let lease = ada.take("team", ttl).await?;
            stack.broker.kill().await?;
            tokio::time::sleep(wait).await;
            remove_store(stack);
            stack.broker.script(point, Act::Kill)?;
            stack.broker.spawn()?;
            back(stack).await?;
            if point == Point::SweepAdopted {
                lease.connect(stack).await.map(drop)
            } else {
                gone(stack, &lease).await
            }
        }
        Way::Reload => {
            stack.broker.script(point, Act::Kill)?;
            stack.broker.signal(Signal::HUP)?;
            back(stack).await
        }
        Way::Order(target) => {
            stack.broker.script(point, Act::Kill)?;
            let answer = ada.order(&json!({ "target": target, "ttl": "1m" })).await;
            ensure!(answer.is_err(), "it was answered: {answer:?}");
            back(stack).await
        }
        Way::Renew => {
            let lease = ada.take("team", "1m").await?;
            stack.broker.script(point, Act::Kill)?;
            let answer = ada.renew(&lease.id, "10m").await;
            ensure!(answer.is_err(), "it was answered: {answer:?}");
            back(stack).await?;
            lease.connect(stack).await?;
            let again = ada.renew(&lease.id, "10m").await?;
            ensure!(again.status == 200, "it cannot be renewed any more: {again:?}");
            Ok(())
        }
        Way::Revoke => {
            let lease = ada.take("team", "10m").await?;
            let _session = with_something_of_its_own(stack, &lease).await?;
            stack.broker.script(point, Act::Kill)?;
            let answer = ada.revoke(&lease.id).await;
            ensure!(answer.is_err(), "it was answered: {answer:?}");
            back(stack).await?;
            if point == Point::RevokeFound {
                // Nothing was written down, so nothing was promised.
                lease.connect(stack).await?;
                ada.revoke(&lease.id).await?;
            }
            gone(stack, &lease).await
        }
        Way::Time => {
            let lease = ada.take("team", "10m").await?;
            ada.revoke(&lease.id).await?;
            stack.broker.script(point, Act::Kill)?;
            stack.broker.set_clock_ahead(LONG_AFTER_MILLIS)?;
            let died = died(stack).await;
            stack.broker.set_clock_ahead(0)?;
            died?;
            start_again(stack).await
        }
    }
}

/// Waits for its death, starts it again, and waits until users and leases explain each other.
async fn back(stack: &mut Stack) -> Result<()> {
    died(stack).await?;
    start_again(stack).await
}

async fn died(stack: &mut Stack) -> Result<()> {
    let status = stack.broker.wait(SOON).await?;
    ensure!(status.code() == Some(KILLED), "it ended with {status}");
    Ok(())
}

async fn start_again(stack: &mut Stack) -> Result<()> {
    stack.broker.clear_script()?;
    stack.broker.start().await?;
    check::settled(stack).await.map(drop)
}

async fn gone(stack: &Stack, lease: &Held) -> Result<()> {
    let start = Instant::now();
    while stack.lease_users().await?.contains(&lease.user) {
        ensure!(
            start.elapsed() < ENDED_SOON,
            "{} is still there. The broker's log:\n{}",
            lease.user,
            stack.broker.log_tail(40)
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Logs in as the lease's user and leaves a large object that belongs to the login itself.
pub async fn with_something_of_its_own(stack: &Stack, lease: &Held) -> Result<tokio_postgres::Client> {
    let session = lease.connect(stack).await?;
    session.batch_execute("SET ROLE NONE; SELECT lo_create(0)").await?;
    Ok(session)
}

/// The store's file and all that lies beside it.
pub fn remove_store(stack: &Stack) {
    for end in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(format!("{}{end}", stack.broker.store_file().display()));
    }
}
