//! The connections of the end lane: a few, opened once and kept, so that a server without free slots or lock space
//! can still be told to end a user (S4).

use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::connect::{Connector, Failure, Limits, Link};

pub(super) struct Pool {
    connector: Connector,
    size: usize,
    permits: Arc<Semaphore>,
    idle: Arc<Mutex<Idle>>,
}

struct Idle {
    links: Vec<Arc<Link>>,
    /// Before this no connection is tried.
    not_before: Instant,
    failures: u32,
}

/// A connection that goes back when it is dropped, if it is still good.
pub(super) struct Taken {
    link: Arc<Link>,
    idle: Arc<Mutex<Idle>>,
    _permit: OwnedSemaphorePermit,
}

impl Pool {
    pub(super) fn new(connector: Connector, size: usize) -> Self {
        let size = size.max(1);
        Self {
            connector,
            size,
            permits: Arc::new(Semaphore::new(size)),
            idle: Arc::new(Mutex::new(Idle {
                links: Vec::new(),
                not_before: Instant::now(),
                failures: 0,
            })),
        }
    }

    /// A connection; waits while all are in use.
    pub(super) async fn take(&self) -> Result<Taken, Failure> {
        let gone = || Failure::Lost("the end lane has stopped".to_owned());
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|_| gone())?;
        let link = {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.links.retain(|link| link.is_usable());
            idle.links.pop()
        };
        let link = match link {
            Some(link) => link,
            None => Arc::new(self.open().await?),
        };
        Ok(Taken {
            link,
            idle: Arc::clone(&self.idle),
            _permit: permit,
        })
    }

    /// Opens what is not in use and not open.
    pub(super) async fn warm(&self) -> Result<(), Failure> {
        let mut taken = Vec::new();
        while let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
            drop(permit);
            taken.push(self.take().await?);
            if taken.len() == self.size {
                break;
            }
        }
        Ok(())
    }

    async fn open(&self) -> Result<Link, Failure> {
        if Instant::now() < self.idle.lock().unwrap_or_else(PoisonError::into_inner).not_before {
            return Err(Failure::Lost("the last try to connect failed a moment ago".to_owned()));
        }
        let config = &self.connector.config;
        let limits = Limits {
            lock: config.end_lock_timeout,
            statement: config.end_timeout,
        };
        let result = self.connector.open(&config.database, limits).await;
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if result.is_ok() {
            idle.failures = 0;
        } else {
            idle.failures = (idle.failures + 1).min(6);
            idle.not_before = Instant::now() + Duration::from_millis(100) * 2_u32.pow(idle.failures);
        }
        result
    }
}

impl Deref for Taken {
    type Target = Link;

    fn deref(&self) -> &Link {
        &self.link
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if self.link.is_usable() {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.links.push(Arc::clone(&self.link));
        }
    }
}
