//! When the broker may log in: at will while it is let in; after a refusal one try at a time, with a growing pause
//! between tries.
//!
//! Five refused logins in a row may lock the broker's user for a quarter of an hour (the vendor says so of passwords,
//! and leaves keys open), and while it is locked nobody's lease ends. Both lanes share one value.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

use super::Lane;

/// After the second refusal in a row; the first may be the clock's, and the answer to it sets that right.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// Each pause is so many times as long as the one before.
const GROWTH: u32 = 6;
/// The longest. It follows the fifth refusal and outlasts the lock that this one may bring.
const LONGEST_PAUSE: Duration = Duration::from_mins(16);

/// What is known of the broker's login on one account.
#[derive(Debug)]
pub(super) struct Login {
    /// Whose turn it is to try, while it is doubtful.
    turn: Semaphore,
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// Nothing speaks against it.
    Good,
    /// Refused so often in a row, and not to be tried before then.
    Refused { times: u32, until: Instant },
}

/// Leave to log in once. What came of it is told by one of its methods; if it is dropped, nothing came of it.
pub(super) struct Leave<'a> {
    login: &'a Login,
    turn: Option<SemaphorePermit<'a>>,
}

impl Login {
    pub(super) fn new() -> Self {
        Self {
            turn: Semaphore::new(1),
            state: Mutex::new(State::Good),
        }
    }

    fn state(&self) -> State {
        // A poisoned lock holds plain numbers: they are as good as ever.
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, state: State) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// Waits for leave to log in; if that cannot come before the deadline, says why. For an order it says so at once,
    /// since somebody waits for it; the ending of users has nothing better to do than to wait.
    pub(super) async fn leave(&self, lane: Lane, deadline: Instant) -> Result<Leave<'_>, String> {
        loop {
            let State::Refused { times, until } = self.state() else {
                return Ok(Leave {
                    login: self,
                    turn: None,
                });
            };
            let now = Instant::now();
            if now < until && deadline <= until {
                let why = format!(
                    "the account has refused the broker's login {times} times in a row, the next try is in {} s",
                    (until - now).as_secs()
                );
                if lane == Lane::End {
                    tokio::time::sleep_until(deadline).await;
                }
                return Err(why);
            }
            tokio::time::sleep_until(until).await;
            let Ok(Ok(turn)) = tokio::time::timeout_at(deadline, self.turn.acquire()).await else {
                return Err("another login is being tried".to_owned());
            };
            // Whoever had the turn before may have learnt more.
            if matches!(self.state(), State::Refused { until, .. } if until <= Instant::now()) {
                return Ok(Leave {
                    login: self,
                    turn: Some(turn),
                });
            }
        }
    }
}

impl State {
    /// After one more refusal, and whether this is the first that anybody hears of it. Many logins may be under way
    /// when the first is refused: without a turn, all of them are one refusal.
    fn refused(self, now: Instant, has_turn: bool, for_good: bool) -> (Self, bool) {
        let before = match self {
            Self::Good => 0,
            Self::Refused { .. } if !has_turn => return (self, false),
            Self::Refused { times, .. } => times,
        };
        let times = (before + 1).max(if for_good { 2 } else { 1 });
        let until = now + pause(times);
        (Self::Refused { times, until }, before < 2 && times >= 2)
    }
}

impl Leave<'_> {
    /// The account has let the broker in.
    pub(super) fn used(self) {
        if let State::Refused { times, .. } = self.login.state() {
            self.login.set(State::Good);
            tracing::info!(refused = times, "the account lets the broker in again");
        }
    }

    /// The account has not. With `for_good` a fresh token would change nothing. Says whether this is the first that
    /// anybody hears of it.
    pub(super) fn refused(self, for_good: bool) -> bool {
        let state = self.login.state();
        let (state, is_news) = state.refused(Instant::now(), self.turn.is_some(), for_good);
        self.login.set(state);
        is_news
    }
}

fn pause(times: u32) -> Duration {
    match times.checked_sub(2) {
        None => Duration::ZERO,
        Some(more) => FIRST_PAUSE
            .saturating_mul(GROWTH.saturating_pow(more))
            .min(LONGEST_PAUSE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[test]
    fn the_pauses_grow_and_the_one_after_the_fifth_refusal_outlasts_a_lock() {
        let start = Instant::now();
        let (mut state, mut now, mut at, mut news) = (State::Good, start, Vec::new(), Vec::new());
        for _ in 0..7 {
            let (next, is_news) = state.refused(now, true, false);
            at.push((now - start).as_secs());
            news.push(is_news);
            let State::Refused { until, .. } = next else { panic!() };
            (state, now) = (next, until);
        }
        assert_eq!(at, [0, 0, 5, 35, 215, 1175, 2135]);
        assert!(at[5] - at[4] > 15 * 60);
        assert_eq!(news, [false, true, false, false, false, false, false]);
    }

    #[test]
    fn what_a_fresh_token_does_not_cure_is_news_at_once_and_followed_by_a_pause() {
        let now = Instant::now();
        let (state, is_news) = State::Good.refused(now, false, true);
        assert!(is_news && matches!(state, State::Refused { until, .. } if until == now + FIRST_PAUSE));
        assert!(!state.refused(now, true, true).1);
    }

    #[tokio::test]
    async fn an_order_is_told_at_once_and_an_end_waits_as_long_as_it_may() {
        let login = Login::new();
        login.leave(Lane::End, soon()).await.unwrap().refused(true);
        let start = Instant::now();
        let deadline = start + Duration::from_millis(200);
        let why = login.leave(Lane::Issue, deadline).await.err().unwrap();
        assert!(why.contains("2 times in a row, the next try is in 4 s"), "{why}");
        assert!(start.elapsed() < Duration::from_millis(150));
        assert!(login.leave(Lane::End, deadline).await.is_err());
        assert!(start.elapsed() >= Duration::from_millis(200));
    }

    #[tokio::test]
    async fn whatever_is_under_way_is_one_refusal_and_then_there_is_one_try_at_a_time() {
        let login = Login::new();
        let mut under_way = Vec::new();
        for _ in 0..20 {
            under_way.push(login.leave(Lane::Issue, soon()).await.unwrap());
        }
        for leave in under_way {
            assert!(!leave.refused(false), "the next one comes with a fresh token");
        }
        let first = login.leave(Lane::Issue, soon()).await.unwrap();
        let second = login.leave(Lane::End, Instant::now() + Duration::from_millis(50)).await;
        assert!(second.is_err(), "both lanes tried at once");
        assert!(first.refused(false), "now it is news");
    }

    #[tokio::test]
    async fn those_who_wait_for_a_try_that_succeeds_go_on_together_and_its_pauses_are_forgotten() {
        let login = Login::new();
        login.leave(Lane::Issue, soon()).await.unwrap().refused(false);
        let first = login.leave(Lane::Issue, soon()).await.unwrap();
        let others = futures_util::future::join_all((0..8).map(|_| login.leave(Lane::End, soon())));
        let (others, ()) = tokio::join!(others, async { first.used() });
        let others: Vec<_> = others.into_iter().map(Result::unwrap).collect();
        for leave in others {
            assert!(!leave.refused(false), "it is the first refusal again");
        }
    }
}
