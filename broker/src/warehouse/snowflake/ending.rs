//! Ending a user: look, disable, drop. DISABLED aborts what runs and lets nobody in; DROP alone is not documented to.
//!
//! Snowflake acts on names only, so each rung acts on what was looked at a few seconds ago at most, and bore our mark
//! then (S5). A user that is there but does not show whose it is is never called dropped.

use kdbt_api::Timestamp;
use kdbt_api::name::SnowflakeUsername;

use super::SnowflakeWarehouse;
use super::api::Lane;
use super::error::Failure;
use super::listing::{FRESH, Seen};
use super::sql::Statement;
use crate::lease::UserRef;
use crate::mark::{self, Mark};
use crate::warehouse::{EndOutcome, MarkedUser, WarehouseError};

impl SnowflakeWarehouse {
    /// The whole ladder for a lease's user.
    pub(super) async fn end(&self, user: &UserRef) -> Result<EndOutcome, WarehouseError> {
        let name = SnowflakeUsername::from(&user.username);
        self.ladder(name.as_str(), self.is_of(user)).await
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
        self.ladder(&user.rolname, same).await
    }

    /// Ends the user of this name if its comment is `mine`.
    pub(super) async fn ladder(
        &self,
        name: &str,
        mine: impl Fn(&str) -> bool + Send + Sync,
    ) -> Result<EndOutcome, WarehouseError> {
        let user = name.to_owned();
        let Seen::Ours(_, mut seen) = self.look(name, &mine).await? else {
            return Ok(EndOutcome::Dropped);
        };
        let disable = Statement::Disable { user: user.clone() };
        self.act(Lane::End, &disable, seen + FRESH).await?;
        // A slow account has used up the first look.
        if seen.elapsed() > FRESH / 2 {
            let Seen::Ours(_, again) = self.look(name, &mine).await? else {
                return Ok(EndOutcome::Dropped);
            };
            seen = again;
        }
        let drop = Statement::Drop { user };
        match self.api.run(Lane::End, &drop, seen + FRESH).await {
            Ok(_) => Ok(EndOutcome::Dropped),
            Err(refused @ Failure::Refused(_)) => {
                let why = refused.of(&drop, &self.config.role);
                Ok(EndOutcome::Blocked(vec![why.to_string()]))
            }
            Err(failure) => Err(failure.of(&drop, &self.config.role)),
        }
    }

    /// Moves the end, in the mark and in the native expiry, by one statement.
    pub(super) async fn extend(&self, user: &UserRef, ends_at: Timestamp) -> Result<(), WarehouseError> {
        let name = SnowflakeUsername::from(&user.username);
        let Seen::Ours(comment, seen) = self.look(name.as_str(), self.is_of(user)).await? else {
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
        let Seen::Ours(_, seen) = self.look(name.as_str(), self.is_of(user)).await? else {
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
