//! Looking at users: what SHOW USERS says of each. It shows every name, and more than names only of users that our
//! role owns (Snowflake SQL reference, SHOW USERS); so a name that is listed exists, whoever owns it.

use std::time::Duration;

use kdbt_api::Timestamp;
use tokio::time::Instant;

use super::SnowflakeWarehouse;
use super::api::{Lane, Row};
use super::error::Failure;
use super::sql::{Statement, ident, ownership};
use crate::warehouse::WarehouseError;

/// A listing that is not complete after so many pages never ends.
const MOST_PAGES: usize = 1000;
/// Nothing is done to a user that was looked at longer ago: its name may have gone to another one since (S5).
pub(super) const FRESH: Duration = Duration::from_secs(10);
/// For a look, so that some of its freshness is left to act in.
const LOOK: Duration = Duration::from_secs(7);

/// One user, as far as our role may see it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Listed {
    pub(super) name: String,
    pub(super) comment: Option<String>,
    pub(super) owner: Option<String>,
    pub(super) disabled: bool,
    /// Whether its sessions use all its roles at once.
    pub(super) all_roles: bool,
    /// When it can log in no more, as the account counts it.
    pub(super) expires_at: Option<Timestamp>,
}

/// All users whose name starts alike.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) users: Vec<Listed>,
    /// The account's clock as it began to answer the first page.
    pub(super) server_time: Option<Timestamp>,
    /// How long the first page took.
    pub(super) took: Duration,
}

/// What stands behind a name.
#[derive(Debug)]
pub(super) enum Seen {
    /// Nobody.
    Absent,
    /// Somebody who bears another mark or none: not ours to touch.
    Other,
    /// Ours, with its comment, and when it was looked at.
    Ours(String, Instant),
}

impl SnowflakeWarehouse {
    /// Every user, or those whose name starts so, page by page.
    pub(super) async fn list(&self, prefix: Option<&str>, until: Instant) -> Result<Listing, WarehouseError> {
        let limit = self.config.page.clamp(1, 10_000);
        let mut statement = Statement::ShowUsers {
            prefix: prefix.map(str::to_owned),
            limit,
            after: None,
        };
        let failed = |failure: Failure, statement: &Statement| failure.of(statement, &self.config.role);
        let mut page = self.api.run(Lane::End, &statement, until).await;
        let mut listing = Listing {
            users: Vec::new(),
            server_time: None,
            took: Duration::ZERO,
        };
        for number in 0..MOST_PAGES {
            let done = page.map_err(|failure| failed(failure, &statement))?;
            // Without these an absent user and one that is not shown would look alike.
            if let Some(column) = ["name", "comment"].into_iter().find(|column| !done.rows.shows(column)) {
                return Err(WarehouseError::Unsafe(format!("SHOW USERS has no column `{column}`")));
            }
            if number == 0 {
                listing.server_time = done.server_time;
                listing.took = done.took;
            }
            let now = done.server_time.unwrap_or_else(|| self.api.now());
            let full = u32::try_from(done.rows.len()).is_ok_and(|rows| rows >= limit);
            let before = listing.users.len();
            listing
                .users
                .extend(done.rows.iter().filter_map(|row| listed(row, now)));
            let last = listing.users.last().filter(|_| full && listing.users.len() > before);
            let Some(last) = last else { return Ok(listing) };
            statement = Statement::ShowUsers {
                prefix: prefix.map(str::to_owned),
                limit,
                after: Some(last.name.clone()),
            };
            page = self.api.run(Lane::End, &statement, until).await;
        }
        Err(WarehouseError::Unsafe("the list of users does not end".to_owned()))
    }

    /// Who has this name now; `mine` knows the comment of the one that is meant. Nothing is sent after `last`.
    pub(super) async fn look(
        &self,
        name: &str,
        mine: impl Fn(&str) -> bool + Send,
        last: Instant,
    ) -> Result<Seen, WarehouseError> {
        let at = Instant::now();
        let until = (at + LOOK.min(self.config.call_timeout)).min(last);
        let listing = self.list(Some(name), until).await?;
        let Some(user) = listing.users.into_iter().find(|user| user.name == name) else {
            return Ok(Seen::Absent);
        };
        match user.comment {
            Some(comment) if mine(&comment) => Ok(Seen::Ours(comment, at)),
            Some(_) => Ok(Seen::Other),
            None if user.owner.as_deref() == Some(self.config.role.as_str()) => Ok(Seen::Other),
            None => Err(WarehouseError::Server {
                what: "look at a user",
                code: "not-owned".to_owned(),
                hint: Some(format!(
                    "`{name}` exists, but role `{}` does not see whose it is; if it is a lease's, run as SECURITYADMIN: {}",
                    self.config.role,
                    ownership(name, &ident(&self.config.role))
                )),
            }),
        }
    }
}

/// A row without a name says nothing.
fn listed(row: Row<'_>, now: Timestamp) -> Option<Listed> {
    let filled = |column: &str| row.get(column).filter(|text| !text.is_empty()).map(str::to_owned);
    let expires_at = row.get("expires_at_time").and_then(epoch);
    Some(Listed {
        name: filled("name")?,
        comment: filled("comment"),
        owner: filled("owner"),
        disabled: row
            .get("disabled")
            .is_some_and(|text| text.eq_ignore_ascii_case("true")),
        all_roles: row
            .get("default_secondary_roles")
            .is_some_and(|text| text.contains("ALL")),
        expires_at: expires_at.or_else(|| in_days(row.get("days_to_expiry")?, now)),
    })
}

/// Seconds since the epoch with a fraction, and perhaps a time zone behind.
pub(super) fn epoch(text: &str) -> Option<Timestamp> {
    let seconds = text.split(['.', ' ']).next()?;
    seconds.parse().ok().map(Timestamp::from_unix)
}

/// Days from now, with a fraction; fewer than none: it is over.
fn in_days(text: &str, now: Timestamp) -> Option<Timestamp> {
    let days: f64 = text.parse().ok()?;
    if days.is_nan() {
        return None;
    }
    let left = Duration::try_from_secs_f64(days.max(0.0) * 86_400.0).ok()?;
    Some(now + left)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expiry_is_read_in_every_form_that_is_shown() {
        let now = Timestamp::from_unix(1_000_000);
        assert_eq!(epoch("1587000000.123000000"), Some(Timestamp::from_unix(1_587_000_000)));
        assert_eq!(
            epoch("1587000000.123000000 960"),
            Some(Timestamp::from_unix(1_587_000_000))
        );
        for text in ["", "never", "-", "."] {
            assert_eq!(epoch(text), None, "{text}");
        }
        for (text, end) in [
            ("1", Some(1_086_400)),
            ("0.5", Some(1_043_200)),
            ("-3.2", Some(1_000_000)),
        ] {
            assert_eq!(in_days(text, now), end.map(Timestamp::from_unix), "{text}");
        }
        for text in ["", "null", "NaN", "1e300"] {
            assert_eq!(in_days(text, now), None, "{text}");
        }
    }
}
