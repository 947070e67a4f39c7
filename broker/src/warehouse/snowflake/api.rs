//! One statement to an account and back: Snowflake's SQL API v2 over HTTPS, with a fresh token per request.
//!
//! A statement keeps one `requestId` however often it is sent; `retry=true` stands on repetitions only, and makes the
//! account answer what it answered before instead of running the statement again (Snowflake SQL API, "Resubmitting a
//! request"). What was not answered for sure is never called refused. Tokens are in no error and in no log.

use std::time::Duration;

use kdbt_api::Timestamp;
use reqwest::StatusCode;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use uuid::Uuid;

use self::answer::Rows;
use self::login::Login;
use self::wire::{Answer, Broken, Question, Wire};
use super::error::{CANCELLED, Failure, HANDLE_UNKNOWN, Refusal, TIMED_OUT};
use super::sql::Statement;
use super::{SnowflakeConfig, SnowflakeError};
use crate::clock::SharedClock;

mod answer;
mod login;
mod wire;

pub(super) use answer::Row;

/// Before the first repetition and the first question after an unasked 202, about; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// No pause is longer, whatever the account asks for.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The two lanes: a storm on one never stops the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// Making and extending users.
    Issue,
    /// Looking at users and ending them.
    End,
}

/// What a statement brought.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) rows: Rows,
    /// The account's clock when it began.
    pub(super) server_time: Option<Timestamp>,
    /// From the first send to the last byte.
    pub(super) took: Duration,
}

/// One account.
pub(super) struct Api {
    wire: Wire,
    login: Login,
    issue: Semaphore,
    end: Semaphore,
}

/// How one try stands.
enum Try {
    Done(Answer),
    /// The account works on it: ask again by this handle.
    Running(String),
    /// Nothing is known.
    Again(String),
    /// It was not run, for sure.
    Busy(String, Option<Duration>),
    /// It was not even sent.
    NoConnection(String),
    Failed(Failure),
}

impl Api {
    pub(super) fn new(config: &SnowflakeConfig, clock: SharedClock) -> Result<Self, SnowflakeError> {
        Ok(Self {
            wire: Wire::new(config, clock)?,
            login: Login::new(),
            issue: Semaphore::new(config.issue_calls.max(1)),
            end: Semaphore::new(config.end_calls.max(1)),
        })
    }

    /// The account's time as far as it is known.
    pub(super) fn now(&self) -> Timestamp {
        self.wire.now()
    }

    /// The broker's own clock, whatever the account's shows.
    pub(super) fn clock_now(&self) -> Timestamp {
        self.wire.clock_now()
    }

    /// The public half of the broker's key: base64 of the SPKI.
    pub(super) fn public_key(&self) -> &str {
        self.wire.public_key()
    }

    /// Runs a statement. Nothing is sent after `until`; an answer may come `request_timeout` later.
    pub(super) async fn run(&self, lane: Lane, statement: &Statement, until: Instant) -> Result<Done, Failure> {
        let started = Instant::now();
        let mut pauses = Pauses::new(Uuid::now_v7());
        let first = self.settle(lane, statement, &mut pauses, until).await?;
        let mut rows = Rows {
            columns: first.body.columns(),
            rows: first.body.rows(),
        };
        for partition in 1..first.body.partitions() {
            let handle = first.body.handle();
            let handle = handle.ok_or_else(|| Failure::Unknown("the rest of the result has no handle".to_owned()))?;
            let more = self.partition(lane, &handle, partition, &mut pauses, until).await?;
            rows.rows.extend(more.body.rows());
        }
        Ok(Done {
            rows,
            server_time: first.body.created_on().or(first.date),
            took: started.elapsed(),
        })
    }

    /// Sends and asks until the account has said yes or no.
    async fn settle(
        &self,
        lane: Lane,
        statement: &Statement,
        pauses: &mut Pauses,
        until: Instant,
    ) -> Result<Answer, Failure> {
        let text = statement.text();
        let request = pauses.request;
        let mut handle: Option<String> = None;
        // Whether the account has seen the request; whether it may have run it without telling.
        let (mut seen, mut unsure) = (false, false);
        loop {
            let question = match &handle {
                None => Question::Submit {
                    text: &text,
                    request,
                    again: seen,
                    until,
                },
                Some(handle) => Question::Ask {
                    handle,
                    partition: None,
                },
            };
            let maybe_run = unsure || handle.is_some();
            let (why, asked_for) = match self.attempt(lane, until, &question).await {
                Try::Done(answer) => return Ok(answer),
                Try::Failed(Failure::Refused(refusal)) if maybe_run && !refusal.judged => {
                    return Err(Failure::Unknown(format!("{}{}", refusal.code, refusal.in_brackets())));
                }
                Try::Failed(Failure::Refused(refusal)) => {
                    return Err(Failure::Refused(Refusal {
                        repeated: unsure,
                        ..refusal
                    }));
                }
                Try::Failed(Failure::NotRun(why)) if maybe_run => return Err(Failure::Unknown(why)),
                Try::Failed(failure) => return Err(failure),
                Try::Running(known) => {
                    handle = Some(known);
                    ("the account still works on it".to_owned(), None)
                }
                Try::Again(why) => {
                    (seen, unsure) = (true, true);
                    (why, None)
                }
                Try::Busy(why, asked_for) => {
                    seen = true;
                    (why, asked_for)
                }
                Try::NoConnection(why) => (why, None),
            };
            if !pauses.wait(asked_for, until).await {
                let maybe_run = unsure || handle.is_some();
                return Err(if maybe_run {
                    Failure::Unknown(why)
                } else {
                    Failure::NotRun(why)
                });
            }
        }
    }

    /// One more part of a result that stands: asking for it again costs nothing.
    async fn partition(
        &self,
        lane: Lane,
        handle: &str,
        n: usize,
        pauses: &mut Pauses,
        until: Instant,
    ) -> Result<Answer, Failure> {
        let partition = Some(n);
        loop {
            let question = Question::Ask { handle, partition };
            let (why, asked_for) = match self.attempt(lane, until, &question).await {
                Try::Done(answer) => return Ok(answer),
                Try::Failed(failure) => return Err(failure),
                Try::Running(_) => ("the account still works on it".to_owned(), None),
                Try::Again(why) | Try::NoConnection(why) => (why, None),
                Try::Busy(why, asked_for) => (why, asked_for),
            };
            if !pauses.wait(asked_for, until).await {
                return Err(Failure::Unknown(why));
            }
        }
    }

    /// One exchange; after a refused token one more with a fresh one, and never a third.
    async fn attempt(&self, lane: Lane, until: Instant, question: &Question<'_>) -> Try {
        let queue = match lane {
            Lane::Issue => &self.issue,
            Lane::End => &self.end,
        };
        let Ok(Ok(_permit)) = tokio::time::timeout_at(until, queue.acquire()).await else {
            return Try::Failed(Failure::NotRun("too many calls wait for the account".to_owned()));
        };
        for refused_before in [false, true] {
            let leave = match self.login.leave(lane, until).await {
                Ok(leave) => leave,
                Err(why) => return Try::Failed(Failure::NotRun(why)),
            };
            if Instant::now() >= until {
                break;
            }
            let answer = match self.wire.exchange(question).await {
                Ok(answer) => answer,
                Err(Broken::BeforeSending(why)) => return Try::NoConnection(why),
                Err(Broken::Sent(why)) => return Try::Again(why),
            };
            let keeps_out = answer.keeps_out();
            if keeps_out || answer.status == StatusCode::UNAUTHORIZED {
                self.wire.learn(&answer);
                let is_news = leave.refused(keeps_out);
                if !keeps_out && !refused_before {
                    continue;
                }
                let hint = if is_news {
                    self.wire.login_hint(&answer)
                } else {
                    self.wire.still_refused()
                };
                return refused(answer.body.code(), answer.status, Some(hint));
            }
            if lets_in(answer.status) {
                leave.used();
            }
            return judge(answer);
        }
        Try::Failed(Failure::NotRun("it is too late to send it".to_owned()))
    }
}

/// Whether such an answer comes to those only whom the account knows. A busy or broken one may not have asked.
fn lets_in(status: StatusCode) -> bool {
    [
        StatusCode::OK,
        StatusCode::ACCEPTED,
        StatusCode::REQUEST_TIMEOUT,
        StatusCode::UNPROCESSABLE_ENTITY,
    ]
    .contains(&status)
}

/// What an answer means. Statuses: SQL API reference, "Response codes for all operations".
fn judge(answer: Answer) -> Try {
    let status = answer.status;
    let says = || format!("the account answers {}", status.as_u16());
    match status {
        StatusCode::OK if answer.body.is_result() => Try::Done(answer),
        StatusCode::OK => Try::Again("the account answers 200 and no result".to_owned()),
        StatusCode::ACCEPTED => match answer.body.handle() {
            Some(handle) => Try::Running(handle),
            None => Try::Again("the account works on it, and gives no handle to ask by".to_owned()),
        },
        StatusCode::TOO_MANY_REQUESTS => Try::Busy(says(), answer.retry_after),
        StatusCode::UNPROCESSABLE_ENTITY => match answer.body.code() {
            Some(code) if [CANCELLED, TIMED_OUT, HANDLE_UNKNOWN].contains(&&*code) => {
                Try::Failed(Failure::Unknown(format!("the account answers {code}")))
            }
            code => refused(code, status, None),
        },
        // Timed out and cancelled, it says; who knows in which order.
        StatusCode::REQUEST_TIMEOUT => Try::Failed(Failure::Unknown(says())),
        status if status.is_server_error() => Try::Again(says()),
        status if status.is_redirection() || status == StatusCode::NOT_FOUND => refused(
            answer.body.code(),
            status,
            Some("there is no SQL API at this address: is the account identifier right?".to_owned()),
        ),
        _ => refused(answer.body.code(), status, None),
    }
}

fn refused(code: Option<String>, status: StatusCode, hint: Option<String>) -> Try {
    Try::Failed(Failure::Refused(Refusal {
        code: code.unwrap_or_else(|| format!("http-{}", status.as_u16())),
        hint,
        judged: status == StatusCode::UNPROCESSABLE_ENTITY,
        repeated: false,
    }))
}

/// Growing pauses that no two requests share: the random half of the request's id is the dice.
struct Pauses {
    request: Uuid,
    next: Duration,
    dice: u64,
}

impl Pauses {
    fn new(request: Uuid) -> Self {
        let (_, dice) = request.as_u64_pair();
        Self {
            request,
            next: FIRST_PAUSE,
            dice,
        }
    }

    /// Between half and all of the next pause, and at least what the account asks for; `false` if it would end too late.
    async fn wait(&mut self, asked_for: Option<Duration>, until: Instant) -> bool {
        let share = u32::try_from(self.dice & 0xff).unwrap_or(0);
        self.dice = self.dice.rotate_right(8);
        let pause = self.next / 2 + self.next * share / 512;
        self.next = (self.next * 2).min(LONGEST_PAUSE);
        let end = Instant::now() + pause.max(asked_for.unwrap_or_default().min(LONGEST_PAUSE));
        if end >= until {
            return false;
        }
        tokio::time::sleep_until(end).await;
        true
    }
}

#[cfg(test)]
mod tests;
