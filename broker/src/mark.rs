//! The mark that every user of ours bears, in its comment, so that a lost store loses nobody. Pure.
//!
//! `kdbt/1 <installation> <lease id> max=<epoch> sub=<16 hex> owner=<role|->`. On PostgreSQL the current end is the
//! native expiry, so a renewal is one statement; on Snowflake, which counts days, ` end=<epoch>` follows. A user is
//! known by its mark, never by its name.

use std::fmt;

use kdbt_api::Timestamp;
use kdbt_api::lease::LeaseId;
use kdbt_api::name::InstallationName;

use crate::grant::OwnerName;
use crate::lease::SubjectHash;

/// What the comment on a user says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// Whose user it is. Other installations' users are never touched.
    pub installation: InstallationName,
    /// The lease.
    pub lease: LeaseId,
    /// Past this no renewal goes.
    pub max_ends_at: Timestamp,
    /// The person.
    pub subject: SubjectHash,
    /// The durable owner of what the user creates.
    pub owner: Option<OwnerName>,
    /// When the lease ends, where the engine has no expiry of its own to say so.
    pub ends_at: Option<Timestamp>,
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            installation,
            lease,
            max_ends_at,
            subject,
            owner,
            ends_at,
        } = self;
        write!(
            f,
            "{}{lease} max={} sub={} owner=",
            prefix(installation),
            max_ends_at.as_unix(),
            subject.as_str()
        )?;
        match owner {
            Some(owner) => owner.fmt(f)?,
            None => f.write_str("-")?,
        }
        match ends_at {
            Some(end) => write!(f, " end={}", end.as_unix()),
            None => Ok(()),
        }
    }
}

/// What every mark of an installation starts with; the sweep asks the catalog for it.
#[must_use]
pub fn prefix(installation: &InstallationName) -> String {
    format!("kdbt/1 {installation} ")
}

/// Why a comment that starts like a mark is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the mark's {0} cannot be read")]
pub struct MarkError(&'static str);

impl std::str::FromStr for Mark {
    type Err = MarkError;

    fn from_str(text: &str) -> Result<Self, MarkError> {
        let mut words = text.split(' ');
        let mut next = |what| words.next().ok_or(MarkError(what));
        let epoch = |text: &str| text.parse().ok().map(Timestamp::from_unix);
        if next("version")? != "kdbt/1" {
            return Err(MarkError("version"));
        }
        let installation = next("installation")?.parse().map_err(|_| MarkError("installation"))?;
        let lease = next("lease")?.parse().map_err(|_| MarkError("lease"))?;
        let max_ends_at = next("max")?.strip_prefix("max=").and_then(epoch);
        let subject = next("sub")?.strip_prefix("sub=").and_then(|sub| sub.parse().ok());
        let owner = match next("owner")?.strip_prefix("owner=").ok_or(MarkError("owner"))? {
            "-" => None,
            owner => Some(owner.parse().map_err(|_| MarkError("owner"))?),
        };
        let ends_at = match words.next() {
            None => None,
            Some(end) => Some(end.strip_prefix("end=").and_then(epoch).ok_or(MarkError("form"))?),
        };
        let mark = Self {
            installation,
            lease,
            max_ends_at: max_ends_at.ok_or(MarkError("max"))?,
            subject: subject.ok_or(MarkError("sub"))?,
            owner,
            ends_at,
        };
        // One text per mark: no sign, no leading zero, nothing behind.
        if mark.to_string() == text {
            Ok(mark)
        } else {
            Err(MarkError("form"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: &str =
        "kdbt/1 acme-prod lse_019023b4c0de7abc8def0123456789ab max=1788307200 sub=9f2c000011112222 owner=";

    #[test]
    fn a_mark_survives_its_own_text() {
        for owner in ["-", "dbt_finance", "kdbt__own_ada", "- end=1788300000"] {
            let text = format!("{GOOD}{owner}");
            assert_eq!(text.parse::<Mark>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_stripped_or_forged_form_is_refused_with_the_part_that_is_wrong() {
        for (text, part) in [
            ("", "version"),
            ("kdbt/2 acme-prod", "version"),
            ("kdbt/1 Acme", "installation"),
            ("kdbt/1 acme-prod lse_1", "lease"),
            (&format!("{GOOD}kdbt__broker"), "owner"),
            (&format!("{GOOD}- "), "form"),
            (&format!("{GOOD}- end=x"), "form"),
            (&format!("{GOOD}- end=1 "), "form"),
            (&format!("{GOOD}- end=01"), "form"),
            (&format!("{GOOD}-").replace("max=", "max=+"), "form"),
            (&format!("{GOOD}-").replace("9f2c", "9F2C"), "sub"),
        ] {
            assert_eq!(text.parse::<Mark>(), Err(MarkError(part)), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_comment_makes_the_parser_panic(text in ".*", tail in ".*") {
            let _ = text.parse::<Mark>();
            let _ = format!("{GOOD}{tail}").parse::<Mark>();
        }
    }
}
