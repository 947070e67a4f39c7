//! Kills at random moments under load, each followed by a restart and a check.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::load::{Load, Tally};
use super::{caller, check};
use crate::stack::Stack;

/// How long a broker may live between two kills.
const LIFE: std::ops::Range<u64> = 5..900;

/// How often the whole audit is read again.
const AUDIT_EVERY: u32 = 20;

/// Tokens live for five minutes.
const TOKENS_EVERY: Duration = Duration::from_mins(2);

/// What a run came to.
#[derive(Debug, Clone)]
pub struct Report {
    /// How often the broker was killed, and started again.
    pub kills: u32,
    /// What its clients saw.
    pub tally: Tally,
    /// The longest that users and leases took to explain each other after a restart.
    pub slowest: Duration,
    /// From the first request to the last user's end.
    pub took: Duration,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kills,
            tally,
            slowest,
            took,
        } = self;
        write!(
            f,
            "{kills} kills and restarts in {:.0} s, 0 orphans, settled after {:.1} s at most; {tally:?}",
            took.as_secs_f32(),
            slowest.as_secs_f32()
        )
    }
}

/// Kills so often, checks after each restart, and leaves a broker that runs and a server without a lease user.
pub async fn random_kills(stack: &mut Stack, kills: u32, seed: u64) -> Result<Report> {
    let start = Instant::now();
    let mut rng = StdRng::seed_from_u64(seed);
    let mut load = Load::start(stack, seed)?;
    let mut tokens_given = Instant::now();
    let (mut slowest, mut head) = (Duration::ZERO, None);
    for kill in 1..=kills {
        if tokens_given.elapsed() > TOKENS_EVERY {
            load.give_tokens(stack.identity.played());
            tokens_given = Instant::now();
        }
        tokio::time::sleep(Duration::from_millis(rng.random_range(LIFE))).await;
        stack.broker.kill().await?;
        stack.broker.start().await?;
        let what = || format!("kill {kill} of {kills}, seed {seed}, {:?}", load.tally());
        slowest = slowest.max(check::settled(stack).await.with_context(what)?);
        if kill % AUDIT_EVERY == 0 {
            head = Some(check::audit(stack, head).with_context(what)?);
            eprintln!("{}, {:.0} s", what(), start.elapsed().as_secs_f32());
        }
    }
    let (tally, secrets) = load.stop().await;
    caller::revoke_all(stack).await?;
    check::empty(stack, Duration::from_secs(30)).await?;
    check::settled(stack).await?;
    check::audit(stack, head)?;
    check::no_secret(stack, &secrets).await?;
    Ok(Report {
        kills,
        tally,
        slowest,
        took: start.elapsed(),
    })
}
