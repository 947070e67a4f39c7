//! The one way to learn the time. Code below it takes a [`Clock`], so tests wait for nothing.

use std::sync::Arc;

use kdbt_api::Timestamp;

/// Tells the wall-clock time. Lengths of waits on this machine are measured with `tokio::time::Instant`.
pub trait Clock: Send + Sync {
    /// The time now, UTC.
    fn now(&self) -> Timestamp;
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

    impl Clock for OffsetClock {
        fn now(&self) -> Timestamp {
            let text = std::fs::read_to_string(&self.0).unwrap_or_default();
            SystemClock.now().offset_by_millis(text.trim().parse().unwrap_or(0))
        }
    }
}

/// A clock that stands still until it is moved.
#[cfg(any(test, feature = "testkit"))]
#[derive(Debug)]
pub struct ManualClock(std::sync::atomic::AtomicI64);

#[cfg(any(test, feature = "testkit"))]
impl ManualClock {
    /// A clock that shows this time.
    #[must_use]
    pub fn at(now: Timestamp) -> Arc<Self> {
        Arc::new(Self(std::sync::atomic::AtomicI64::new(now.as_unix_millis())))
    }

    /// Moves it forward.
    pub fn advance(&self, by: std::time::Duration) {
        let millis = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
        self.0.fetch_add(millis, std::sync::atomic::Ordering::SeqCst);
    }
}

#[cfg(any(test, feature = "testkit"))]
impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_unix_millis(self.0.load(std::sync::atomic::Ordering::SeqCst))
    }
}
