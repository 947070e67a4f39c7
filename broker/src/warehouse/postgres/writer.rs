//! The issue lane: one task, one connection, and a bounded queue in front. What has piled up goes out as one message
//! per owner role, because a commit costs more than a user and because, from 16 on, a GRANT locks the granted role.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use kdbt_api::name::DatabaseName;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::PostgresConfig;
use super::connect::{Connector, Failure, Limits, Link};
use super::plan;
use super::sql::{Era, ROAD_TO_LOGIN, ROW_POLICY};
use crate::failpoint::{self, Point};
use crate::lease::EngineId;
use crate::warehouse::{CreateError, NewUser, WarehouseError};

mod owner;

/// A user to make, and where the answer goes.
pub(super) struct Job {
    pub(super) user: NewUser,
    pub(super) answer: oneshot::Sender<Result<EngineId, CreateError>>,
}

/// Connections to target databases that are kept for the schemas of persons.
const DATABASES_OPEN: usize = 8;

pub(super) struct Writer {
    config: Arc<PostgresConfig>,
    connector: Connector,
    link: Option<Link>,
    databases: HashMap<DatabaseName, Link>,
    /// Before this no connection is tried: a dead server answers at once with an error, not after a time limit.
    not_before: Instant,
    failures: u32,
}

impl Writer {
    pub(super) fn new(config: Arc<PostgresConfig>, connector: Connector) -> Self {
        Self {
            config,
            connector,
            link: None,
            databases: HashMap::new(),
            not_before: Instant::now(),
            failures: 0,
        }
    }

    /// Runs until `stop`, then finishes what stands in the queue and cancels `closed`.
    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<Job>, stop: CancellationToken) {
        let mut waiting = VecDeque::new();
        loop {
            if waiting.is_empty() {
                let next = tokio::select! {
                    next = queue.recv() => next,
                    () = stop.cancelled() => {
                        queue.close();
                        queue.recv().await
                    }
                };
                match next {
                    Some(job) => waiting.push_back(job),
                    None => return,
                }
            }
            while waiting.len() < self.config.issue_batch_max.saturating_mul(4)
                && let Ok(job) = queue.try_recv()
            {
                waiting.push_back(job);
            }
            let batch = take_batch(&mut waiting, self.config.issue_batch_max);
            self.issue(batch).await;
        }
    }

    async fn issue(&mut self, jobs: Vec<Job>) {
        let mut jobs = in_time(jobs);
        let Some(first) = jobs.first() else { return };
        let personal = plan::personal(&first.user.access).is_some();
        let era = match self.connect().await {
            Ok(era) => era,
            Err(failure) => return refuse(jobs, &failure.into()),
        };
        if era == Era::Before16 && !self.config.accept_createrole {
            return refuse(
                jobs,
                &WarehouseError::Unsafe(
                    "before PostgreSQL 16 CREATEROLE is nearly superuser: set `accept_createrole: true` for this server, or upgrade".into(),
                ),
            );
        }
        failpoint::at(Point::CreateConnected).await;
        // All of a batch have one owner; the databases may differ.
        if personal {
            let mut ready = Vec::with_capacity(jobs.len());
            for job in jobs {
                match self.ensure_owner(&job.user).await {
                    Ok(()) => ready.push(job),
                    Err(failure) => refuse(vec![job], &failure.into()),
                }
            }
            jobs = ready;
            failpoint::at(Point::CreateOwnerReady).await;
        }
        self.send(jobs).await;
    }

    async fn send(&mut self, jobs: Vec<Job>) {
        // The reaper may take a lease for abandoned soon after its deadline, so this is looked at last.
        let jobs = in_time(jobs);
        if jobs.is_empty() {
            return;
        }
        let Some(link) = &self.link else {
            return refuse(jobs, &WarehouseError::Unreachable("the connection was lost".into()));
        };
        let users = jobs.iter().map(|job| &job.user);
        let steps = plan::create_users(users, &self.config.installation, link.era);
        let result = link.run("make users", &steps).await;
        failpoint::at(Point::CreateMade).await;
        match result {
            Ok(rows) => {
                let oids: HashMap<&str, u32> = rows
                    .iter()
                    .filter_map(|row| Some((row.get(0)?, row.get(1)?.parse().ok()?)))
                    .collect();
                for job in jobs {
                    let answer = match oids.get(job.user.username.as_str()) {
                        Some(oid) => Ok(EngineId::Oid(*oid)),
                        None => Err(CreateError::Unknown(WarehouseError::Unsafe(
                            "the server did not say which OID the new user has".into(),
                        ))),
                    };
                    let _ = job.answer.send(answer);
                }
            }
            Err(failure) => self.failed(jobs, failure).await,
        }
    }

    async fn failed(&mut self, jobs: Vec<Job>, failure: Failure) {
        match &failure {
            Failure::Lost(_) => {
                self.link = None;
                unknown(jobs, &failure);
            }
            Failure::Warned { .. } => unknown(jobs, &failure),
            Failure::Refused { code, .. } => {
                let redo = code.starts_with("42") || ["23505", ROAD_TO_LOGIN, ROW_POLICY, "XX000"].contains(&&**code);
                if jobs.len() > 1 && redo {
                    for job in jobs {
                        Box::pin(self.send(vec![job])).await;
                    }
                } else if code == "42710" || code == "23505" {
                    for job in jobs {
                        let _ = job.answer.send(Err(CreateError::NameTaken));
                    }
                } else {
                    refuse(jobs, &failure.into());
                }
            }
            Failure::Unsafe(_) => refuse(jobs, &failure.into()),
        }
    }

    /// The connection of this lane; once open it stays so. After a failure the next try waits, up to ten seconds.
    async fn connect(&mut self) -> Result<Era, Failure> {
        if let Some(link) = self.link.as_ref().filter(|link| link.is_usable()) {
            return Ok(link.era);
        }
        self.link = None;
        self.databases.clear();
        if Instant::now() < self.not_before {
            return Err(Failure::Lost("the last try to connect failed a moment ago".to_owned()));
        }
        match self.connector.open(&self.config.database, limits(&self.config)).await {
            Ok(link) => {
                self.failures = 0;
                let era = link.era;
                self.link = Some(link);
                Ok(era)
            }
            Err(failure) => {
                self.failures = (self.failures + 1).min(6);
                let pause = Duration::from_millis(150) * 2_u32.pow(self.failures);
                self.not_before = Instant::now() + pause;
                Err(failure)
            }
        }
    }
}

fn limits(config: &PostgresConfig) -> Limits {
    Limits {
        lock: config.issue_lock_timeout,
        statement: config.issue_timeout,
    }
}

/// The first in the queue, and those behind it with the same owner, in order.
fn take_batch(waiting: &mut VecDeque<Job>, limit: usize) -> Vec<Job> {
    let Some(first) = waiting.pop_front() else {
        return Vec::new();
    };
    let owner = plan::owner(&first.user.access);
    let mut batch = vec![first];
    let mut rest = VecDeque::with_capacity(waiting.len());
    for job in waiting.drain(..) {
        // A name twice in one message would fail it.
        let twice = batch.iter().any(|other| other.user.username == job.user.username);
        if batch.len() < limit.max(1) && !twice && plan::owner(&job.user.access) == owner {
            batch.push(job);
        } else {
            rest.push_back(job);
        }
    }
    *waiting = rest;
    batch
}

fn in_time(jobs: Vec<Job>) -> Vec<Job> {
    let now = Instant::now();
    let (good, late): (Vec<Job>, Vec<Job>) = jobs.into_iter().partition(|job| now < job.user.deadline);
    refuse(late, &WarehouseError::Unreachable("the issue lane is too slow".into()));
    good
}

fn refuse(jobs: Vec<Job>, error: &WarehouseError) {
    for job in jobs {
        let _ = job.answer.send(Err(CreateError::Refused(copy(error))));
    }
}

fn unknown(jobs: Vec<Job>, failure: &Failure) {
    for job in jobs {
        let _ = job.answer.send(Err(CreateError::Unknown(failure.clone().into())));
    }
}

/// One failure answers many jobs.
fn copy(error: &WarehouseError) -> WarehouseError {
    match error {
        WarehouseError::Unreachable(why) => WarehouseError::Unreachable(why.clone()),
        WarehouseError::Server { what, code, hint } => WarehouseError::Server {
            what,
            code: code.clone(),
            hint: hint.clone(),
        },
        WarehouseError::Unsafe(why) => WarehouseError::Unsafe(why.clone()),
        WarehouseError::Gone => WarehouseError::Gone,
    }
}
