//! When users are ended: one task per server that sleeps until something is due. What is done: `end` and `sweep`.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::clock::SharedClock;
use crate::end::{self, BATCH, PROVISIONING_FOR};
use crate::metrics::Metrics;
use crate::server::Server;
use crate::store::LeaseStore;
use crate::sweep;

/// Between two failed attempts to reach the store or the server.
const RETRY: Duration = Duration::from_secs(1);

/// A pass that takes longer goes on beside the next: one user whose backend does not listen, or who has left much to clean
/// up, holds up neither the sweep nor the ends of others (S3).
const PATIENCE: Duration = Duration::from_millis(300);

/// So many passes at once. What they act on is claimed, so no two share a user.
const PASSES: usize = 4;

/// The reaper of one server.
#[derive(Clone)]
pub struct Reaper {
    /// The store.
    pub store: Arc<dyn LeaseStore>,
    /// The server.
    pub server: Arc<Server>,
    /// The clock.
    pub clock: SharedClock,
    /// What happened, in numbers.
    pub metrics: Arc<Metrics>,
}

impl Reaper {
    /// Sweeps at once, then ends what is due and sweeps again whenever its time has come, until told to stop.
    /// Steps that have begun are finished first.
    pub async fn run(self, stop: CancellationToken) {
        let mut next_sweep = tokio::time::Instant::now();
        let mut passes = JoinSet::new();
        while !stop.is_cancelled() {
            self.server.awake();
            if next_sweep <= tokio::time::Instant::now() {
                next_sweep = tokio::time::Instant::now() + self.sweep().await;
            }
            let reaper = self.clone();
            passes.spawn(async move { reaper.pass().await });
            let patience = if passes.len() < PASSES { PATIENCE } else { Duration::MAX };
            let pause = tokio::time::timeout(patience, passes.join_next()).await;
            let pause = pause.map_or(Duration::ZERO, pause_after);
            let until_sweep = next_sweep.saturating_duration_since(tokio::time::Instant::now());
            let pause = pause.min(until_sweep);
            self.server.asleep_until(self.server.now() + pause);
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.server.rung() => {}
                () = tokio::time::sleep(pause) => {}
                Some(pass) = passes.join_next() => { pause_after(Some(pass)); }
            }
        }
        while let Some(pass) = passes.join_next().await {
            pause_after(Some(pass));
        }
    }

    /// One sweep; returns how long until the next.
    async fn sweep(&self) -> Duration {
        match sweep::sweep(self.store.as_ref(), &self.server, self.clock.as_ref()).await {
            Ok(report) => {
                self.metrics.swept(&self.server.name, self.server.offset_millis());
                self.metrics.unreadable_leases(&self.server.name, report.unreadable);
                self.server.sweep_every
            }
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::error!(server = %self.server.name, error, "the sweep did not finish");
                RETRY
            }
        }
    }

    /// Ends one batch of what is due; returns how long until the next lease is. Only one, so that a storm of ends
    /// neither starves the sweep, which would stop issuing, nor holds up the broker's own stop.
    async fn pass(&self) -> Duration {
        let report = end::end_due(self.store.as_ref(), &self.server).await;
        self.server.pass_done();
        let claimed = match report {
            Ok(report) if report.claimed == BATCH => return Duration::ZERO,
            Ok(report) => report.claimed,
            Err(error) => return self.store_failed(&error),
        };
        match self.store.next_due(&self.server.name, PROVISIONING_FOR).await {
            // Due, and yet not to be had, as a row that cannot be read: asking again at once would spin.
            Ok(Some(at)) if claimed == 0 && at <= self.server.now() => RETRY,
            Ok(Some(at)) => at.since(self.server.now()),
            Ok(None) => self.server.sweep_every,
            Err(error) => self.store_failed(&error),
        }
    }

    fn store_failed(&self, error: &(dyn std::error::Error + 'static)) -> Duration {
        tracing::error!(server = %self.server.name, error, "the store failed the reaper");
        RETRY
    }
}

/// What a pass said, if it came to its end. A panic in it is one of the reaper's.
fn pause_after(pass: Option<Result<Duration, JoinError>>) -> Duration {
    match pass {
        Some(Ok(pause)) => pause,
        Some(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Some(Err(_)) | None => RETRY,
    }
}
