//! The keys of one issuer in memory: one task fetches them, requests only read, and no flood of requests makes it
//! fetch more often than every ten seconds.
//!
//! A fetched set replaces the one before it, so a key that the issuer took back stops working. A failed fetch keeps
//! the old set, until it is an hour old; then nothing verifies any more.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use kdbt_api::Timestamp;
use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::fetch::Fetcher;
use super::issuer::Issuer;
use super::jwks::KeySet;
use super::reason::Reason;
use crate::clock::SharedClock;

/// Between two fetches while all is well.
const REFRESH_EVERY: Duration = Duration::from_mins(5);
/// Between two fetches whatever happens: after a failure, or because of an unknown key.
const REFRESH_AT_MOST_EVERY: Duration = Duration::from_secs(10);
/// How long keys are used after the issuer was last heard.
const MAX_STALE: Duration = Duration::from_hours(1);
/// How long a key that the issuer did not know is not asked for again.
const MISSING_FOR: Duration = Duration::from_secs(30);
/// How many such keys are remembered.
const MAX_MISSING: usize = 1000;
/// How long a request waits for the first keys: a little more than the metadata and the keys may take together.
const WAIT_FOR_KEYS: Duration = Duration::from_secs(11);
/// How long a request waits for one key that the set does not hold, while others are served.
const WAIT_FOR_NEW_KEY: Duration = Duration::from_secs(3);
/// How many requests wait at once: far fewer than the broker serves, for anybody can name a key that nobody has.
const MAX_WAITING: usize = 64;

/// What is known of an issuer's keys, for readiness and the management page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuerHealth {
    /// The issuer.
    pub issuer: Arc<str>,
    /// Whether the broker is ready only with its keys.
    pub required: bool,
    /// How many keys can verify tokens now; 0 if they were never had or are too old.
    pub keys: usize,
    /// When its keys were last had.
    pub last_success: Option<Timestamp>,
    /// When they could last not be had, and why; `None` once they were had again.
    pub last_error: Option<(Timestamp, String)>,
}

/// A key set and when it was had.
#[derive(Debug)]
pub(super) struct Loaded {
    pub keys: KeySet,
    at: Timestamp,
}

#[derive(Default)]
struct State {
    /// A fetch is asked for or under way.
    in_flight: bool,
    last_started: Option<Timestamp>,
    last_error: Option<(Timestamp, String)>,
    /// Key ids that the issuer did not know when last asked, and when that was.
    missing: HashMap<String, Timestamp>,
}

pub(super) struct IssuerKeys {
    pub issuer: Arc<Issuer>,
    fetcher: Fetcher,
    clock: SharedClock,
    stop: CancellationToken,
    loaded: ArcSwapOption<Loaded>,
    state: Mutex<State>,
    wanted: Notify,
    /// Whether the last fetch succeeded.
    fetched: watch::Sender<bool>,
    waiting: Semaphore,
}

/// What came of asking the issuer for a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// The set is as new as the question.
    Heard,
    /// Nothing: the issuer was asked just now, and the set is what it said.
    Lately,
    /// The issuer failed or takes too long, or too many wait for it: whether it has the key is not known.
    InVain,
}

impl IssuerKeys {
    pub(super) fn new(issuer: Arc<Issuer>, fetcher: Fetcher, clock: SharedClock, stop: CancellationToken) -> Self {
        Self {
            issuer,
            fetcher,
            clock,
            stop,
            loaded: ArcSwapOption::empty(),
            state: Mutex::default(),
            wanted: Notify::new(),
            fetched: watch::Sender::new(false),
            waiting: Semaphore::new(MAX_WAITING),
        }
    }

    /// Fetches at once, then every few minutes and when a request asks for it, until the broker stops.
    pub(super) async fn keep_fresh(self: Arc<Self>) {
        let mut pause = Duration::ZERO;
        loop {
            let asked = tokio::select! {
                () = self.stop.cancelled() => return,
                () = self.wanted.notified() => true,
                () = tokio::time::sleep(pause) => false,
            };
            // The timer may have been quicker than the request whose wish it fulfilled.
            if asked && !self.state().in_flight {
                continue;
            }
            match self.stop.run_until_cancelled(self.refresh()).await {
                Some(true) => pause = REFRESH_EVERY,
                Some(false) => pause = REFRESH_AT_MOST_EVERY,
                None => return,
            }
        }
    }

    /// A set that holds this key id, after a fetch if need be and allowed.
    pub(super) async fn with_id(&self, key_id: &str) -> Result<Arc<Loaded>, Reason> {
        if let Ok(loaded) = self.lookup(key_id) {
            return Ok(loaded);
        }
        let asked = self.ask_for(key_id).await;
        match (self.lookup(key_id), asked) {
            (Err(Reason::UnknownKey), Asked::Heard) => {
                self.state().remember_missing(key_id, self.clock.now());
                Err(Reason::UnknownKey)
            }
            (Err(Reason::UnknownKey), Asked::InVain) => Err(Reason::KeysUnavailable),
            (found, _) => found,
        }
    }

    pub(super) fn health(&self) -> IssuerHealth {
        IssuerHealth {
            issuer: Arc::clone(&self.issuer.id),
            required: self.issuer.config.required,
            keys: self.fresh().map_or(0, |loaded| loaded.keys.len()),
            last_success: self.loaded.load().as_ref().map(|loaded| loaded.at),
            last_error: self.state().last_error.clone(),
        }
    }

    fn lookup(&self, key_id: &str) -> Result<Arc<Loaded>, Reason> {
        let loaded = self.fresh().ok_or(Reason::KeysUnavailable)?;
        if loaded.keys.with_id(key_id).next().is_none() {
            return Err(Reason::UnknownKey);
        }
        Ok(loaded)
    }

    /// The set, unless it is too old, or from the future of a clock that was set back.
    fn fresh(&self) -> Option<Arc<Loaded>> {
        let loaded = self.loaded.load_full()?;
        is_within(self.clock.now(), loaded.at, MAX_STALE).then_some(loaded)
    }

    /// Waits for the fetch under way, or asks for one if that is allowed and waits for it.
    async fn ask_for(&self, key_id: &str) -> Asked {
        // Who waits holds one of the requests that the broker serves at once, so only some may.
        let (Ok(_place), wait) = (self.waiting.try_acquire(), self.patience()) else {
            return Asked::InVain;
        };
        let mut fetched = {
            let mut state = self.state();
            if !state.in_flight {
                if !state.may_fetch_for(key_id, self.clock.now()) {
                    return Asked::Lately;
                }
                state.in_flight = true;
                self.wanted.notify_one();
            }
            self.fetched.subscribe()
        };
        let changed = self.stop.run_until_cancelled(fetched.changed());
        match tokio::time::timeout(wait, changed).await {
            Ok(Some(Ok(()))) if *fetched.borrow() => Asked::Heard,
            Ok(_) | Err(_) => Asked::InVain,
        }
    }

    /// With keys at hand a request waits for a new one only.
    fn patience(&self) -> Duration {
        match self.fresh() {
            Some(_) => WAIT_FOR_NEW_KEY,
            None => WAIT_FOR_KEYS,
        }
    }

    /// One fetch; whether it succeeded.
    async fn refresh(&self) -> bool {
        let started = self.clock.now();
        {
            let mut state = self.state();
            state.in_flight = true;
            state.last_started = Some(started);
        }
        let outcome = self.fetcher.keys().await;
        let mut state = self.state();
        state.in_flight = false;
        let succeeded = outcome.is_ok();
        match outcome {
            Ok(keys) => {
                tracing::debug!(issuer = %self.issuer.id, keys = keys.len(), "the keys of the issuer were read");
                state.last_error = (keys.len() == 0).then(|| {
                    (
                        started,
                        "the key set holds no key that can verify access tokens".to_owned(),
                    )
                });
                self.loaded.store(Some(Arc::new(Loaded { keys, at: started })));
            }
            Err(error) => {
                tracing::warn!(issuer = %self.issuer.id, %error, "the keys of the issuer cannot be read");
                state.last_error = Some((started, error.to_string()));
            }
        }
        // Under the lock, so that who asks for the next fetch does not hear of this one.
        self.fetched.send_replace(succeeded);
        succeeded
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn may_fetch_for(&self, key_id: &str, now: Timestamp) -> bool {
        let just_fetched = self
            .last_started
            .is_some_and(|at| is_within(now, at, REFRESH_AT_MOST_EVERY));
        let just_missed = self
            .missing
            .get(key_id)
            .is_some_and(|at| is_within(now, *at, MISSING_FOR));
        !just_fetched && !just_missed
    }

    fn remember_missing(&mut self, key_id: &str, now: Timestamp) {
        if self.missing.len() >= MAX_MISSING {
            self.missing.retain(|_, at| is_within(now, *at, MISSING_FOR));
        }
        if self.missing.len() < MAX_MISSING {
            self.missing.insert(key_id.to_owned(), now);
        }
    }
}

/// Whether `now` lies less than `limit` after `then`. A clock that was set back by more than it may differ says no.
fn is_within(now: Timestamp, then: Timestamp, limit: Duration) -> bool {
    now + super::rules::SKEW >= then && now.since(then) < limit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_set_back_makes_old_keys_too_old_not_young() {
        let then = Timestamp::from_unix(1_800_000_000);
        let limit = Duration::from_mins(1);
        for (now, within) in [
            (then, true),
            (then + Duration::from_secs(59), true),
            (then + limit, false),
            (then - Duration::from_secs(10), true),
            (then - Duration::from_secs(11), false),
            (then - Duration::from_hours(24), false),
        ] {
            assert_eq!(is_within(now, then, limit), within, "{now}");
        }
    }

    #[test]
    fn the_memory_of_missing_keys_is_bounded_and_forgets() {
        let mut state = State::default();
        let now = Timestamp::from_unix(1_800_000_000);
        for n in 0..2 * MAX_MISSING {
            state.remember_missing(&n.to_string(), now);
        }
        assert_eq!(state.missing.len(), MAX_MISSING);
        state.remember_missing("later", now + MISSING_FOR);
        assert_eq!(state.missing.len(), 1);
    }
}
