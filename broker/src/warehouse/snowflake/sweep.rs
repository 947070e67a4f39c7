//! One full look at the account: every user that bears our mark, and the account's clock. Changes nothing.
//!
//! The name prefix only narrows the listing; the mark decides.

use std::time::Duration;

use kdbt_api::name::SnowflakeUsername;

use super::SnowflakeWarehouse;
use super::listing::Listed;
use crate::lease::EngineId;
use crate::mark::{self, Mark};
use crate::warehouse::{MarkedUser, Sweep, WarehouseError};

/// What every lease's name starts with.
pub(super) const PREFIX: &str = "KDBT_";

/// A login is one request here, and is refused by the next user's key whatever its name is.
const LOGIN_WITHIN: Duration = Duration::from_mins(1);

impl SnowflakeWarehouse {
    /// Every user of this installation.
    pub(super) async fn sweep(&self) -> Result<Sweep, WarehouseError> {
        let listing = self.list(Some(PREFIX), self.patience()).await?;
        let Some(server_time) = listing.server_time else {
            return Err(WarehouseError::Unsafe("the account's clock cannot be read".to_owned()));
        };
        let ours = mark::prefix(&self.config.installation);
        let users = listing.users.into_iter().filter_map(|user| {
            let comment = user.comment.clone().filter(|comment| comment.starts_with(&ours))?;
            let over = user.expires_at.is_some_and(|end| end <= server_time);
            Some(marked(user, &comment, over))
        });
        Ok(Sweep {
            users: users.collect(),
            server_time,
            round_trip: listing.took,
            login_within: LOGIN_WITHIN,
        })
    }
}

fn marked(user: Listed, comment: &str, over: bool) -> MarkedUser {
    let mark = comment.parse::<Mark>().map_err(|error| error.to_string());
    let end = mark.as_ref().ok().and_then(|mark| mark.ends_at);
    let name: Option<SnowflakeUsername> = user.name.parse().ok();
    MarkedUser {
        username: name.and_then(|name| name.as_str().to_ascii_lowercase().parse().ok()),
        rolname: user.name,
        engine_id: EngineId::Mark,
        mark,
        native_end: [end, user.expires_at].into_iter().flatten().min(),
        can_login: !user.disabled && !over,
        sessions: 0,
        powerless: false,
    }
}
