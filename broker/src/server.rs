//! One server as the use cases see it: its warehouse, its clock, and whether issuing there is safe.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kdbt_api::Timestamp;
use kdbt_api::lease::{Engine, SnowflakeAddress, SslMode};
use kdbt_api::name::ServerName;
use tokio::sync::{Notify, watch};

use crate::clock::SharedClock;
use crate::warehouse::Warehouse;

/// Past this offset between the two clocks nothing is issued (I3).
pub const SKEW_LIMIT: Duration = Duration::from_secs(5);

/// Issuing stops when the last full sweep is older than this many sweep intervals (I4).
const SWEEPS_MISSED: u32 = 6;

/// For how long a login may go on where no sweep has told yet: the most that PostgreSQL can be set to.
const LOGIN_AT_MOST: Duration = Duration::from_mins(10);

/// What a name rests beyond the longest login.
const REST_MARGIN: Duration = Duration::from_secs(5);

/// The address that dbt gets. It may differ from the one that the broker dials.
#[derive(Debug, Clone)]
pub enum PublicAddress {
    /// A PostgreSQL server.
    Postgres {
        /// Host name or address.
        host: String,
        /// TCP port.
        port: u16,
        /// How the connection is secured.
        sslmode: SslMode,
        /// The certificate authority as PEM.
        ca_pem: Option<String>,
    },
    /// A Snowflake account.
    Snowflake {
        /// The account identifier.
        account: String,
        /// Where it is, if not where its name says.
        address: Option<SnowflakeAddress>,
    },
}

impl PublicAddress {
    /// The engine of the server.
    #[must_use]
    pub fn engine(&self) -> Engine {
        match self {
            Self::Postgres { .. } => Engine::Postgres,
            Self::Snowflake { .. } => Engine::Snowflake,
        }
    }
}

/// A server, its reaper's bell, and what the last sweep saw.
pub struct Server {
    /// Its name.
    pub name: ServerName,
    /// The driver.
    pub warehouse: Arc<dyn Warehouse>,
    /// What goes into profiles.
    pub public: PublicAddress,
    /// How often the catalog is read.
    pub sweep_every: Duration,
    clock: SharedClock,
    seen: Mutex<Seen>,
    bell: Notify,
    /// When the reaper will look again by itself, in epoch milliseconds; the far future while it is at work.
    wakes_at: AtomicI64,
    passes: watch::Sender<u64>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    /// What our unjumping clock showed at the end of the last sweep, and what the server's clock showed then.
    swept: Option<(Duration, Timestamp)>,
    offset_millis: i64,
    dangerous: usize,
    login_within: Option<Duration>,
}

/// What a finished sweep tells about a server.
#[derive(Debug, Clone, Copy)]
pub struct SweepResult {
    /// The server's time now.
    pub server_time: Timestamp,
    /// How far the server's clock is ahead of ours.
    pub offset_millis: i64,
    /// Users that are overdue and can still log in or have sessions.
    pub dangerous: usize,
    /// The longest that a login may take.
    pub login_within: Duration,
}

/// Why nothing is issued on a server now. For operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Stop {
    /// The catalog has not been read since the broker started.
    #[error("no sweep has finished since the broker started")]
    NeverSwept,
    /// The catalog cannot be read any more.
    #[error("the last full sweep is {} s old", .0.as_secs())]
    SweepTooOld(Duration),
    /// The clocks disagree, by so many milliseconds that the server's is ahead.
    #[error(
        "the server's clock is {} s {} the broker's: run NTP on the broker's machine",
        .0.unsigned_abs().div_ceil(1000),
        if *.0 < 0 { "behind" } else { "ahead of" }
    )]
    Skew(i64),
    /// Users that should be gone can still log in or have sessions.
    #[error("{0} users are overdue and can still log in or have sessions")]
    Overdue(usize),
}

impl Server {
    /// A server that nothing is known of yet: it issues nothing before its first sweep.
    #[must_use]
    pub fn new(
        name: ServerName,
        warehouse: Arc<dyn Warehouse>,
        public: PublicAddress,
        sweep_every: Duration,
        clock: SharedClock,
    ) -> Self {
        let (passes, _) = watch::channel(0);
        Self {
            name,
            warehouse,
            public,
            sweep_every,
            clock,
            seen: Mutex::default(),
            bell: Notify::new(),
            wakes_at: AtomicI64::new(i64::MAX),
            passes,
        }
    }

    /// Whether a sweep has been complete since this broker started: whatever it did not make was there to be seen.
    #[must_use]
    pub fn has_swept(&self) -> bool {
        self.seen().swept.is_some()
    }

    fn seen(&self) -> Seen {
        // A poisoned lock holds plain numbers: they are as good as ever.
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server's time: what the last sweep read, and how long that is ago. All ends are stored in it. Whoever sets
    /// the broker's clock neither ends a lease early nor keeps one alive.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        match self.seen().swept {
            Some((at, server_time)) => server_time + self.clock.elapsed().saturating_sub(at),
            None => self.clock.now(),
        }
    }

    /// Takes note of a full sweep.
    pub fn swept(&self, result: SweepResult) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        *seen = Seen {
            swept: Some((self.clock.elapsed(), result.server_time)),
            offset_millis: result.offset_millis,
            dangerous: result.dangerous,
            // What began under a longer setting still has its time.
            login_within: seen.login_within.max(Some(result.login_within)),
        };
    }

    /// How long a name rests after an end for cause: until no login that began before it can come to its end (S26).
    #[must_use]
    pub fn name_rests(&self) -> Duration {
        self.seen().login_within.unwrap_or(LOGIN_AT_MOST) + REST_MARGIN
    }

    /// How long ago the last full sweep was.
    #[must_use]
    pub fn sweep_age(&self) -> Option<Duration> {
        self.seen().swept.map(|(at, _)| self.clock.elapsed().saturating_sub(at))
    }

    /// How far the server's clock is ahead of ours, as the last sweep measured it.
    #[must_use]
    pub fn offset_millis(&self) -> i64 {
        self.seen().offset_millis
    }

    /// Whether users may be made here: only where ending them works (I4) and the clocks agree (I3).
    pub fn may_issue(&self) -> Result<(), Stop> {
        let seen = self.seen();
        let age = self.sweep_age().ok_or(Stop::NeverSwept)?;
        if age > self.sweep_every * SWEEPS_MISSED {
            return Err(Stop::SweepTooOld(age));
        }
        if u128::from(seen.offset_millis.unsigned_abs()) > SKEW_LIMIT.as_millis() {
            return Err(Stop::Skew(seen.offset_millis));
        }
        match seen.dangerous {
            0 => Ok(()),
            overdue => Err(Stop::Overdue(overdue)),
        }
    }

    /// Wakes the reaper: something is due.
    pub fn ring(&self) {
        self.bell.notify_one();
    }

    /// Something will be due then: wakes the reaper if it would sleep past it.
    pub fn ring_before(&self, due: Timestamp) {
        if due.as_unix_millis() < self.wakes_at.load(Ordering::SeqCst) {
            self.ring();
        }
    }

    /// The reaper is at work: what it reads from now on may be out of date when it goes to sleep, so everybody rings.
    pub fn awake(&self) {
        self.wakes_at.store(i64::MAX, Ordering::SeqCst);
    }

    /// The reaper goes to sleep until this time of the server's.
    pub fn asleep_until(&self, at: Timestamp) {
        self.wakes_at.store(at.as_unix_millis(), Ordering::SeqCst);
    }

    /// Until the reaper is wanted.
    pub async fn rung(&self) {
        self.bell.notified().await;
    }

    /// Tells those who wait that the reaper has finished a pass.
    pub fn pass_done(&self) {
        self.passes.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// A view that changes with each finished pass of the reaper.
    #[must_use]
    pub fn passes(&self) -> watch::Receiver<u64> {
        self.passes.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock as _, ManualClock};
    use crate::testing::NoWarehouse;

    fn server(clock: &Arc<ManualClock>) -> Server {
        let public = PublicAddress::Postgres {
            host: "h".into(),
            port: 1,
            sslmode: SslMode::Disable,
            ca_pem: None,
        };
        let name = "dwh".parse().unwrap();
        Server::new(
            name,
            Arc::new(NoWarehouse),
            public,
            Duration::from_secs(10),
            clock.clone(),
        )
    }

    #[test]
    fn nothing_is_issued_before_the_first_sweep_nor_long_after_the_last() {
        let clock = ManualClock::at(Timestamp::from_unix(1_000_000));
        let server = server(&clock);
        assert_eq!(server.may_issue(), Err(Stop::NeverSwept));
        server.swept(SweepResult {
            server_time: clock.now().offset_by_millis(0),
            offset_millis: 0,
            dangerous: 0,
            login_within: Duration::from_mins(1),
        });
        assert_eq!(server.may_issue(), Ok(()));
        clock.advance(Duration::from_secs(61));
        assert!(matches!(server.may_issue(), Err(Stop::SweepTooOld(_))));
    }

    #[test]
    fn a_clock_five_seconds_off_in_either_direction_stops_issuing() {
        let clock = ManualClock::at(Timestamp::from_unix(1_000_000));
        let server = server(&clock);
        for (offset_millis, ok) in [(5_000, true), (-5_000, true), (5_001, false), (-5_001, false)] {
            server.swept(SweepResult {
                server_time: clock.now().offset_by_millis(offset_millis),
                offset_millis,
                dangerous: 0,
                login_within: Duration::from_mins(1),
            });
            assert_eq!(server.may_issue().is_ok(), ok, "{offset_millis}");
            let says = server
                .may_issue()
                .err()
                .map(|stop| stop.to_string())
                .unwrap_or_default();
            let way = if offset_millis < 0 {
                "6 s behind"
            } else {
                "6 s ahead of"
            };
            assert!(ok || says.contains(way), "{says}");
            assert_eq!(server.now(), clock.now().offset_by_millis(offset_millis));
        }
    }

    #[test]
    fn one_overdue_user_that_can_still_log_in_stops_issuing() {
        let clock = ManualClock::at(Timestamp::from_unix(1_000_000));
        let server = server(&clock);
        server.swept(SweepResult {
            server_time: clock.now().offset_by_millis(0),
            offset_millis: 0,
            dangerous: 1,
            login_within: Duration::from_mins(1),
        });
        assert_eq!(server.may_issue(), Err(Stop::Overdue(1)));
    }

    #[tokio::test]
    async fn whoever_adds_what_is_due_before_the_reaper_wakes_wakes_it() {
        let clock = ManualClock::at(Timestamp::from_unix(1_000_000));
        let server = server(&clock);
        let rung = |wait: u64| tokio::time::timeout(Duration::from_millis(wait), server.rung());
        server.asleep_until(clock.now() + Duration::from_secs(10));
        server.ring_before(clock.now() + Duration::from_secs(11));
        assert!(rung(1).await.is_err(), "it wakes early enough by itself");
        server.ring_before(clock.now() + Duration::from_secs(3));
        assert!(rung(1000).await.is_ok());
        server.awake();
        server.ring_before(clock.now() + Duration::from_hours(1));
        assert!(rung(1000).await.is_ok(), "what it has read may be out of date");
    }

    #[test]
    fn setting_the_brokers_clock_neither_ends_a_lease_early_nor_hides_an_old_sweep() {
        let clock = ManualClock::at(Timestamp::from_unix(1_000_000));
        let server = server(&clock);
        let server_time = clock.now();
        server.swept(SweepResult {
            server_time,
            offset_millis: 0,
            dangerous: 0,
            login_within: Duration::from_mins(1),
        });
        clock.set_ahead(3_600_000);
        assert_eq!(server.now(), server_time);
        clock.set_ahead(-7_200_000);
        clock.advance(Duration::from_secs(61));
        assert_eq!(server.now(), server_time + Duration::from_secs(61));
        assert!(matches!(server.may_issue(), Err(Stop::SweepTooOld(_))));
    }

    /// S26
    #[test]
    fn a_name_rests_for_the_longest_login_that_a_sweep_has_seen_and_for_ten_minutes_before_the_first() {
        let clock = ManualClock::at(Timestamp::from_unix(1_000_000));
        let server = server(&clock);
        assert_eq!(server.name_rests(), Duration::from_secs(605));
        for (seconds, rests) in [(60, 65), (300, 305), (30, 305)] {
            server.swept(SweepResult {
                server_time: clock.now(),
                offset_millis: 0,
                dangerous: 0,
                login_within: Duration::from_secs(seconds),
            });
            assert_eq!(server.name_rests(), Duration::from_secs(rests), "{seconds}");
        }
    }
}
