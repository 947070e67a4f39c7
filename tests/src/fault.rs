//! Faults: what kills, freezes and cuts a running broker, the load that it dies under, and what must hold afterwards.

pub mod caller;
pub mod check;
pub mod kills;
pub mod load;
pub mod proxy;
pub mod stalled;
pub mod steps;

use std::fs;

use anyhow::Result;
use kdbt_broker::failpoint::Point;

use crate::broker::{Broker, BrokerOptions, test_policies};
use crate::postgres::{PgOptions, PgVersion};
use crate::stack::{Stack, StackOptions};

/// What a broker does at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Dies, as by `kill -9`.
    Kill,
    /// Waits for as long as the step is in the script.
    Pause,
    /// Panics, with a text that no log may show.
    Panic,
}

/// What is started for faults: a server of its own, and limits that a load does not meet.
pub fn options(version: PgVersion) -> StackOptions {
    StackOptions {
        version,
        postgres: PgOptions::default(),
        keycloak: false,
        broker: BrokerOptions {
            more: "limits: { leases_per_person: 200, leases_per_rule: 5000, leases_per_target: 5000 }\n".to_owned(),
            ..BrokerOptions::new(test_policies())
        },
    }
}

/// A stack of these.
pub async fn stack(version: PgVersion) -> Result<Stack> {
    Stack::start(&options(version), |_| {}).await
}

impl Broker {
    /// From now on, through restarts, it does this at this step and passes all others.
    pub fn script(&self, point: Point, act: Act) -> Result<()> {
        let act = match act {
            Act::Kill => "kill",
            Act::Pause => "pause",
            Act::Panic => "panic",
        };
        // Put in its place whole: the broker reads at any time.
        let draft = self.failpoints_file().with_extension("draft");
        fs::write(&draft, format!("{}={act}\n", point.name()))?;
        Ok(fs::rename(draft, self.failpoints_file())?)
    }

    /// It passes all steps again, and goes on where it waits.
    pub fn clear_script(&self) -> Result<()> {
        match fs::remove_file(self.failpoints_file()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Waits until it has come to the step at which it pauses, since its log had so many bytes.
    pub async fn wait_at(&self, point: Point, since: usize) -> Result<()> {
        let line = format!("waiting at {}", point.name());
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while !self.log()?.get(since..).is_some_and(|log| log.contains(&line)) {
            anyhow::ensure!(
                std::time::Instant::now() < deadline,
                "the broker does not come to {}. Its log:\n{}",
                point.name(),
                self.log_tail(30)
            );
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        Ok(())
    }
}
