//! The one way to learn the time. Code below it takes a [`Clock`], so tests wait for nothing.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use kdbt_api::Timestamp;

/// Tells the time. Lengths of waits on this machine are measured with `tokio::time::Instant`.
pub trait Clock: Send + Sync {
    /// The wall-clock time now, UTC. It jumps when somebody sets the machine's clock.
    fn now(&self) -> Timestamp;

    /// How long ago some fixed moment was; it never jumps, so two of these say how much time has passed.
    fn elapsed(&self) -> Duration;
}

/// A shared clock.
pub type SharedClock = Arc<dyn Clock>;

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the Clock that all others ask")]
    fn now(&self) -> Timestamp {
        jiff::Timestamp::now().into()
    }

    fn elapsed(&self) -> Duration {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        START.elapsed()
    }
}

/// The clock of this process.
#[must_use]
pub fn system_clock() -> SharedClock {
    #[cfg(feature = "testkit")]
    if let Some(file) = offset::file() {
        return Arc::new(offset::OffsetClock(file));
    }
    Arc::new(SystemClock)
}

/// The machine's clock, moved by what a file says: how tests let time pass in a real broker.
#[cfg(feature = "testkit")]
mod offset {
    use std::path::PathBuf;
    use std::time::Duration;

    use kdbt_api::Timestamp;

    use super::{Clock, SystemClock};

    /// Names the file that holds a number of milliseconds.
    #[expect(
        clippy::disallowed_methods,
        reason = "test builds only; a release reads no such variable"
    )]
    pub(super) fn file() -> Option<PathBuf> {
        std::env::var("KDBT_TESTKIT_CLOCK_OFFSET_FILE").ok().map(PathBuf::from)
    }

    pub(super) struct OffsetClock(pub(super) PathBuf);

    impl OffsetClock {
        fn offset(&self) -> i64 {
            let text = std::fs::read_to_string(&self.0).unwrap_or_default();
            text.trim().parse().unwrap_or(0)
        }
    }

    impl Clock for OffsetClock {
        fn now(&self) -> Timestamp {
            SystemClock.now().offset_by_millis(self.offset())
        }

        /// Time that a test lets pass has passed.
        fn elapsed(&self) -> Duration {
            SystemClock.elapsed() + Duration::from_millis(u64::try_from(self.offset()).unwrap_or(0))
        }
    }
}

/// A clock that stands still until it is moved.
#[cfg(any(test, feature = "testkit"))]
#[derive(Debug)]
pub struct ManualClock {
    wall: std::sync::atomic::AtomicI64,
    elapsed: std::sync::atomic::AtomicU64,
}

#[cfg(any(test, feature = "testkit"))]
impl ManualClock {
    /// A clock that shows this time.
    #[must_use]
    pub fn at(now: Timestamp) -> Arc<Self> {
        Arc::new(Self {
            wall: now.as_unix_millis().into(),
            elapsed: 0.into(),
        })
    }

    /// Lets time pass.
    pub fn advance(&self, by: Duration) {
        let millis = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        self.elapsed.fetch_add(millis, std::sync::atomic::Ordering::SeqCst);
        self.set_ahead(i64::try_from(millis).unwrap_or(i64::MAX));
    }

    /// Somebody sets the wall clock: it jumps by so many milliseconds, while no time passes.
    pub fn set_ahead(&self, millis: i64) {
        self.wall.fetch_add(millis, std::sync::atomic::Ordering::SeqCst);
    }
}

#[cfg(any(test, feature = "testkit"))]
impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_unix_millis(self.wall.load(std::sync::atomic::Ordering::SeqCst))
    }

    fn elapsed(&self) -> Duration {
        Duration::from_millis(self.elapsed.load(std::sync::atomic::Ordering::SeqCst))
    }
}
