//! Ending a user: look, disable, drop. DISABLED aborts what runs and lets nobody in; DROP alone is not documented to.
//!
//! Snowflake acts on names only, so each rung acts on what was looked at a few seconds ago at most, and bore our mark
//! then (S5). A user that is there but does not show whose it is is never called dropped; one that is not there is looked
//! for under every other name.

use futures_util::StreamExt;
use kdbt_api::Timestamp;
use kdbt_api::name::SnowflakeUsername;
use tokio::time::Instant;

use super::SnowflakeWarehouse;
use super::api::Lane;
use super::error::Failure;
use super::listing::{FRESH, Listing, Seen};
use super::sql::Statement;
use crate::lease::UserRef;
use crate::mark::{self, Mark};
use crate::warehouse::{EndOutcome, MarkedUser, WarehouseError};

impl SnowflakeWarehouse {
    /// The whole ladder for the users of leases, side by side. One outcome each, in order.
    pub(super) async fn end(&self, users: &[UserRef]) -> Vec<Result<EndOutcome, WarehouseError>> {
        let last = self.last_act();
        let ladders: Vec<_> = users
            .iter()
            .map(|user| async move {
                let name = SnowflakeUsername::from(&user.username);
                self.ladder(name.as_str(), self.is_of(user), last).await
            })
            .collect();
        let side_by_side = futures_util::stream::iter(ladders).buffered(self.config.end_calls.max(1));
        let ends: Vec<_> = side_by_side.collect().await;
        let is_missing = |(user, end): (&UserRef, &Result<_, _>)| was_made(user) && matches!(end, Ok(None));
        let everybody = if users.iter().zip(&ends).any(is_missing) {
            Some(self.list(None, last).await)
        } else {
            None
        };
        let mut outcomes = Vec::with_capacity(users.len());
        for (user, end) in users.iter().zip(ends) {
            let outcome = match (end, &everybody) {
                (Ok(None), Some(everybody)) if was_made(user) => self.end_renamed(user, everybody, last).await,
                (end, _) => end.map(|outcome| outcome.unwrap_or(EndOutcome::Dropped)),
            };
            outcomes.push(outcome);
        }
        outcomes
    }

    /// A user that was made and does not stand behind its name any more: somebody has dropped it, or renamed it.
    async fn end_renamed(
        &self,
        user: &UserRef,
        everybody: &Result<Listing, WarehouseError>,
        last: Instant,
    ) -> Result<EndOutcome, WarehouseError> {
        let everybody = everybody.as_ref().map_err(|error| {
            WarehouseError::Unreachable(format!("it cannot be told whether the user was renamed: {error}"))
        })?;
        let is_it = self.is_of(user);
        let mut named = everybody.users.iter();
        let Some(found) = named.find(|user| user.comment.as_deref().is_some_and(&is_it)) else {
            return Ok(EndOutcome::Dropped);
        };
        tracing::warn!(lease = %user.lease, user = %user.username, now = found.name, "the user of a lease was renamed");
        self.ladder(&found.name, &is_it, last)
            .await?
            .ok_or(WarehouseError::Gone)
    }

    /// The whole ladder for a user that no lease explains, if it still bears the mark that the sweep saw.
    pub(super) async fn end_stray(&self, user: &MarkedUser) -> Result<EndOutcome, WarehouseError> {
        let prefix = mark::prefix(&self.config.installation);
        let same = |comment: &str| {
            comment.starts_with(&prefix)
                && match (&user.mark, comment.parse::<Mark>()) {
                    (Ok(seen), Ok(now)) => seen.lease == now.lease,
                    (Err(_), Err(_)) => true,
                    (Ok(_), Err(_)) | (Err(_), Ok(_)) => false,
                }
        };
        let ended = self.ladder(&user.rolname, same, self.last_act()).await?;
        Ok(ended.unwrap_or(EndOutcome::Dropped))
    }

    /// Ends the user of this name if its comment is `mine`; `None` if it is not. Nothing is sent after `last`.
    pub(super) async fn ladder(
        &self,
        name: &str,
        mine: impl Fn(&str) -> bool + Send + Sync,
        last: Instant,
    ) -> Result<Option<EndOutcome>, WarehouseError> {
        let user = name.to_owned();
        let Seen::Ours(_, mut seen) = self.look(name, &mine, last).await? else {
            return Ok(None);
        };
        let disable = Statement::Disable { user: user.clone() };
        self.act(Lane::End, &disable, last.min(seen + FRESH)).await?;
        // A slow account has used up the first look.
        if seen.elapsed() > FRESH / 2 {
            let Seen::Ours(_, again) = self.look(name, &mine, last).await? else {
                return Ok(None);
            };
            seen = again;
        }
        let drop = Statement::Drop { user };
        match self.api.run(Lane::End, &drop, last.min(seen + FRESH)).await {
            Ok(_) => Ok(Some(EndOutcome::Dropped)),
            Err(refused @ Failure::Refused(_)) => {
                let why = refused.of(&drop, &self.config.role);
                Ok(Some(EndOutcome::Blocked(vec![why.to_string()])))
            }
            Err(failure) => Err(failure.of(&drop, &self.config.role)),
        }
    }

    /// Moves the end, in the mark and in the native expiry, by one statement.
    pub(super) async fn extend(&self, user: &UserRef, ends_at: Timestamp) -> Result<(), WarehouseError> {
        let name = SnowflakeUsername::from(&user.username);
        let Seen::Ours(comment, seen) = self.look(name.as_str(), self.is_of(user), self.patience()).await? else {
            return Err(WarehouseError::Gone);
        };
        let mark: Mark = comment
            .parse()
            .map_err(|error| WarehouseError::Unsafe(format!("the user's mark is damaged: {error}")))?;
        let extend = Statement::Extend {
            user: name.as_str().to_owned(),
            days: self.days_until(ends_at),
            comment: Mark {
                ends_at: Some(ends_at),
                ..mark
            }
            .to_string(),
        };
        self.act(Lane::Issue, &extend, seen + FRESH).await
    }

    /// Ends what runs now. Sessions stay open; how many there are, the account does not tell without a warehouse.
    pub(super) async fn abort_queries(&self, user: &UserRef) -> Result<(), WarehouseError> {
        let name = SnowflakeUsername::from(&user.username);
        let Seen::Ours(_, seen) = self.look(name.as_str(), self.is_of(user), self.patience()).await? else {
            return Err(WarehouseError::Gone);
        };
        let abort = Statement::AbortQueries {
            user: name.as_str().to_owned(),
        };
        self.act(Lane::End, &abort, seen + FRESH).await
    }

    /// Whether a comment is the mark of this lease.
    fn is_of(&self, user: &UserRef) -> impl Fn(&str) -> bool + Send + Sync + use<> {
        let mine = format!("{}{} ", mark::prefix(&self.config.installation), user.lease);
        move |comment: &str| comment.starts_with(&mine)
    }
}

/// Whether it is known that there was such a user.
fn was_made(user: &UserRef) -> bool {
    user.engine_id.is_some()
}
