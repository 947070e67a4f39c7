//! The one thread that owns the connection: it takes what has piled up, runs each job in a savepoint of its own, and
//! answers only after the commit. A job that fails takes back its own savepoint and nothing else.

use std::fs::File;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use kdbt_api::Timestamp;
use rusqlite::{Connection, params};
use tokio::sync::oneshot;

use super::schema::Place;
use crate::audit::AuditEvent;
use crate::audit::chain::Chain;
use crate::clock::SharedClock;
use crate::store::StoreError;

/// How many jobs may wait; one more is told [`StoreError::Busy`].
const QUEUE: usize = 1024;

/// How many jobs share a commit.
const BATCH: usize = 256;

/// What a job works with: the connection inside a transaction, and the end of the audit chain.
pub(super) struct Session {
    pub(super) db: Connection,
    pub(super) chain: Chain,
    pub(super) clock: SharedClock,
    pub(super) file: Place,
}

impl Session {
    /// The time for audit rows, by the broker's clock.
    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// What is written to a file that was removed or replaced is lost with this process.
    pub(super) fn in_place(&self) -> Result<(), StoreError> {
        if self.file.holds() {
            return Ok(());
        }
        Err(StoreError::Unavailable(
            "its file was removed or replaced; restart the broker, which then takes what is there".to_owned(),
        ))
    }

    /// Appends to the audit, in the commit at hand.
    pub(super) fn audit(&mut self, event: &AuditEvent) -> Result<(), StoreError> {
        let row = self
            .chain
            .append(event)
            .map_err(|error| StoreError::Unavailable(format!("an audit event has no JSON form: {error}")))?;
        let mut insert = self
            .db
            .prepare_cached("INSERT INTO audit (row, chain, n, prev, hash, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?;
        insert.execute(params![row.row, row.chain, row.n, row.prev, row.hash, row.body])?;
        Ok(())
    }

    /// Runs one job in a savepoint: an error takes back all that the job wrote, and its audit rows.
    pub(super) fn savepoint<T, E: From<StoreError>>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, E>,
    ) -> Result<T, E> {
        let end = self.chain.end();
        let sql = |session: &Self, sql: &str| session.db.execute_batch(sql).map_err(|e| E::from(e.into()));
        sql(self, "SAVEPOINT job")?;
        let outcome = work(self);
        if outcome.is_ok() {
            sql(self, "RELEASE job")?;
        } else {
            self.chain.rewind(end);
            // After some errors (a full disk) SQLite has rolled back the whole transaction already.
            if !self.db.is_autocommit() {
                sql(self, "ROLLBACK TO job; RELEASE job")?;
            }
        }
        outcome
    }

    /// One commit for all jobs, or the reason why there was none.
    fn commit(&mut self, jobs: &mut [Box<dyn Job>]) -> Result<(), String> {
        let end = self.chain.end();
        let done = self.try_commit(jobs);
        if done.is_err() {
            self.chain.rewind(end);
            if !self.db.is_autocommit()
                && let Err(error) = self.db.execute_batch("ROLLBACK")
            {
                tracing::error!(%error, "the store could not roll back");
            }
        }
        done
    }

    fn try_commit(&mut self, jobs: &mut [Box<dyn Job>]) -> Result<(), String> {
        let sql = |session: &Self, sql: &str| session.db.execute_batch(sql).map_err(|error| error.to_string());
        sql(self, "BEGIN")?;
        for job in jobs {
            job.run(self);
            if self.db.is_autocommit() {
                return Err(job.error().unwrap_or_default());
            }
        }
        sql(self, "COMMIT")
    }
}

/// A piece of work whose answer waits for the commit.
pub(super) trait Job: Send {
    /// Does it, inside a transaction.
    fn run(&mut self, session: &mut Session);
    /// What went wrong in it, if anything did.
    fn error(&self) -> Option<String>;
    /// Tells the caller: the outcome, or why nothing was committed.
    fn answer(self: Box<Self>, failed: Option<&str>);
}

struct Task<W, T, E> {
    work: Option<W>,
    outcome: Option<Result<T, E>>,
    caller: oneshot::Sender<Result<T, E>>,
}

impl<W, T, E> Job for Task<W, T, E>
where
    W: FnOnce(&mut Session) -> Result<T, E> + Send,
    T: Send,
    E: From<StoreError> + ToString + Send,
{
    fn run(&mut self, session: &mut Session) {
        if let Some(work) = self.work.take() {
            self.outcome = Some(session.savepoint(work));
        }
    }

    fn error(&self) -> Option<String> {
        let outcome = self.outcome.as_ref()?;
        outcome.as_ref().err().map(E::to_string)
    }

    fn answer(self: Box<Self>, failed: Option<&str>) {
        let outcome = match (failed, self.outcome) {
            (None, Some(outcome)) => outcome,
            (Some(why), _) => Err(StoreError::Unavailable(why.to_owned()).into()),
            (None, None) => Err(StoreError::Unavailable("the job was not run".to_owned()).into()),
        };
        // A caller that has gone wants no answer; what was committed stays.
        drop(self.caller.send(outcome));
    }
}

/// The way to the thread. Dropping it lets the thread finish what waits, and waits for that.
pub(super) struct Writer {
    queue: Option<SyncSender<Box<dyn Job>>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts the thread; it holds the lock until it ends.
    pub(super) fn start(session: Session, lock: File) -> std::io::Result<Self> {
        let (queue, jobs) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new().name("store".to_owned()).spawn(move || {
            serve(session, &jobs);
            // Closing is not enough: a process that is just being started elsewhere in this one has a copy, until it
            // has become its program.
            let _ = lock.unlock();
        })?;
        Ok(Self {
            queue: Some(queue),
            thread: Some(thread),
        })
    }

    /// Hands in a job and waits for its commit. Dropping the future does not take the job back.
    pub(super) async fn run<T, E>(
        &self,
        work: impl FnOnce(&mut Session) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + ToString + Send + 'static,
    {
        let gone = || StoreError::Unavailable("the store's thread has ended".to_owned());
        let (caller, answer) = oneshot::channel();
        let task = Task {
            work: Some(work),
            outcome: None,
            caller,
        };
        let queue = self.queue.as_ref().ok_or_else(gone)?;
        queue.try_send(Box::new(task)).map_err(|error| match error {
            TrySendError::Full(_) => StoreError::Busy,
            TrySendError::Disconnected(_) => gone(),
        })?;
        answer.await.unwrap_or_else(|_| Err(gone().into()))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn serve(mut session: Session, jobs: &Receiver<Box<dyn Job>>) {
    while let Ok(first) = jobs.recv() {
        let mut batch: Vec<_> = std::iter::once(first).chain(jobs.try_iter().take(BATCH - 1)).collect();
        let done = session.commit(&mut batch);
        if let Err(why) = &done {
            tracing::error!(why, jobs = batch.len(), "the store could not commit");
        }
        for job in batch {
            job.answer(done.as_ref().err().map(String::as_str));
        }
    }
}
