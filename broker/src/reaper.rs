//! When users are ended: one task per server that sleeps until something is due. What is done: `end` and `sweep`.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::clock::SharedClock;
use crate::end::{self, BATCH, PROVISIONING_FOR};
use crate::metrics::Metrics;
use crate::server::Server;
use crate::store::LeaseStore;
use crate::sweep;

/// Between two failed attempts to reach the store or the server.
const RETRY: Duration = Duration::from_secs(1);

/// The reaper of one server.
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
    /// A step that has begun is finished first.
    pub async fn run(self, stop: CancellationToken) {
        let mut next_sweep = tokio::time::Instant::now();
        while !stop.is_cancelled() {
            self.server.awake();
            if next_sweep <= tokio::time::Instant::now() {
                next_sweep = tokio::time::Instant::now() + self.sweep().await;
            }
            let until_sweep = next_sweep.saturating_duration_since(tokio::time::Instant::now());
            let pause = self.pass().await.min(until_sweep);
            self.server.asleep_until(self.server.now() + pause);
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.server.rung() => {}
                () = tokio::time::sleep(pause) => {}
            }
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
