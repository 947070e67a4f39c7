//! What leases can leave behind besides data, compared with what a reviewer has approved (S9). Pure.
//!
//! Tables and views are what leases are for. Routines, triggers, grants and the like make others do what their author
//! wants, long after the lease has ended: each is either in the approved file or a difference that somebody looks at.

mod approved;
mod default_privilege;

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use self::approved::Approved;
pub use self::default_privilege::DefaultPrivilege;

/// Kinds of residue, as the approved file and audit rows write them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A routine that runs with its owner's rights, whoever calls it.
    DefinerRoutine,
    /// A routine that runs with its caller's rights: the caller may be tricked into the call, by a view for one.
    Routine,
    /// A trigger on a table.
    Trigger,
    /// A rule on a table or view, other than the query of a view.
    Rule,
    /// A row policy.
    RowPolicy,
    /// An event trigger.
    EventTrigger,
    /// A right that every future object of a role gives to another role.
    DefaultPrivilege,
    /// A right of a role that no policy of ours knows.
    Grant,
    /// A schema that is called like a role: `"$user"` in a search path leads there.
    SchemaOfRole,
    /// An extension.
    Extension,
    /// An operator.
    Operator,
    /// A cast.
    Cast,
    /// A publication.
    Publication,
    /// A subscription.
    Subscription,
    /// A foreign server.
    ForeignServer,
    /// A user mapping to a foreign server.
    UserMapping,
    /// A foreign table.
    ForeignTable,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::DefinerRoutine,
        Self::Routine,
        Self::Trigger,
        Self::Rule,
        Self::RowPolicy,
        Self::EventTrigger,
        Self::DefaultPrivilege,
        Self::Grant,
        Self::SchemaOfRole,
        Self::Extension,
        Self::Operator,
        Self::Cast,
        Self::Publication,
        Self::Subscription,
        Self::ForeignServer,
        Self::UserMapping,
        Self::ForeignTable,
    ];

    /// The word in files and audit rows.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DefinerRoutine => "definer-routine",
            Self::Routine => "routine",
            Self::Trigger => "trigger",
            Self::Rule => "rule",
            Self::RowPolicy => "row-policy",
            Self::EventTrigger => "event-trigger",
            Self::DefaultPrivilege => "default-privilege",
            Self::Grant => "grant",
            Self::SchemaOfRole => "schema-of-role",
            Self::Extension => "extension",
            Self::Operator => "operator",
            Self::Cast => "cast",
            Self::Publication => "publication",
            Self::Subscription => "subscription",
            Self::ForeignServer => "foreign-server",
            Self::UserMapping => "user-mapping",
            Self::ForeignTable => "foreign-table",
        }
    }

    /// Whether its absence harms: a holder of a role's rights can drop what others gave that role or hid from it (S7).
    #[must_use]
    pub fn protects(self) -> bool {
        matches!(self, Self::RowPolicy | Self::DefaultPrivilege)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that names no kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no such kind; `kdbt-broker doctor --residue` prints those that there are")]
pub struct KindError;

impl FromStr for Kind {
    type Err = KindError;

    fn from_str(text: &str) -> Result<Self, KindError> {
        let found = Self::ALL.into_iter().find(|kind| kind.as_str() == text);
        found.ok_or(KindError)
    }
}

/// One thing that a role of the policy owns or gave, in one database. Two are the same only if all fields are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Residue {
    /// What it is.
    pub kind: Kind,
    /// Its name as the server writes it, with its schema; a default privilege is the statement that makes it.
    pub name: String,
    /// The role.
    pub owner: String,
    /// A hash of what it does, so that a change shows; empty where the name says all.
    pub fingerprint: String,
}

/// For terminals and logs: whoever makes a thing chooses its name, so what could steer or reorder a text is escaped.
impl fmt::Display for Residue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.kind)?;
        for character in self.name.chars() {
            if character == ' ' || character.is_ascii_graphic() || character.is_alphanumeric() {
                write!(f, "{character}")?;
            } else {
                write!(f, "{}", character.escape_unicode())?;
            }
        }
        write!(f, " of {}", self.owner)
    }
}

/// What a reviewer has to look at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Difference {
    /// It is there, and nobody has approved it as it is.
    Unapproved(Residue),
    /// It is approved and protects, and is gone or was changed.
    Lost(Residue),
}

impl Difference {
    /// What differs.
    #[must_use]
    pub fn residue(&self) -> &Residue {
        match self {
            Self::Unapproved(residue) | Self::Lost(residue) => residue,
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unapproved(residue) => residue.fmt(f),
            Self::Lost(residue) => write!(f, "lost: {residue}"),
        }
    }
}

/// How a database differs from what was approved for it.
#[must_use]
pub fn compare(approved: &BTreeSet<Residue>, now: &BTreeSet<Residue>) -> BTreeSet<Difference> {
    let unapproved = now.difference(approved).cloned().map(Difference::Unapproved);
    let lost = approved.difference(now).filter(|residue| residue.kind.protects());
    unapproved.chain(lost.cloned().map(Difference::Lost)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;

    pub(super) fn residue() -> impl Strategy<Value = Residue> {
        let kind = select(Kind::ALL.to_vec());
        (kind, ".{1,4}", "[ab]", "[01]").prop_map(|(kind, name, owner, fingerprint)| Residue {
            kind,
            name,
            owner,
            fingerprint,
        })
    }

    fn some() -> impl Strategy<Value = BTreeSet<Residue>> {
        proptest::collection::btree_set(residue(), 0..20)
    }

    proptest! {
        #[test]
        fn what_is_as_approved_differs_in_nothing(approved in some()) {
            prop_assert_eq!(compare(&approved, &approved), BTreeSet::new());
        }

        #[test]
        fn every_thing_is_approved_or_named_and_so_is_every_lost_protection(
            approved in some(), both in some(), now in some()
        ) {
            let approved = &approved | &both;
            let now = &now | &both;
            let differences = compare(&approved, &now);
            for residue in &now {
                let named = differences.contains(&Difference::Unapproved(residue.clone()));
                prop_assert_eq!(named, !approved.contains(residue));
            }
            for residue in &approved {
                let named = differences.contains(&Difference::Lost(residue.clone()));
                prop_assert_eq!(named, residue.kind.protects() && !now.contains(residue));
            }
            for difference in &differences {
                prop_assert!(approved.contains(difference.residue()) != now.contains(difference.residue()));
            }
        }
    }

    #[test]
    fn a_changed_definition_is_not_what_was_approved() {
        let approved = Residue {
            kind: Kind::DefinerRoutine,
            name: "marts.f()".into(),
            owner: "dbt_finance".into(),
            fingerprint: "1".into(),
        };
        let changed = Residue {
            fingerprint: "2".into(),
            ..approved.clone()
        };
        let differences = compare(&[approved].into(), &[changed.clone()].into());
        assert_eq!(differences, [Difference::Unapproved(changed)].into());
    }

    #[test]
    fn a_name_steers_no_terminal() {
        let residue = Residue {
            kind: Kind::Routine,
            name: "marts.\"ü\u{202e}\u{1b}[2K\n\"()".into(),
            owner: "dbt_finance".into(),
            fingerprint: String::new(),
        };
        let shown = residue.to_string();
        assert_eq!(shown, "routine marts.\"ü\\u{202e}\\u{1b}[2K\\u{a}\"() of dbt_finance");
    }

    #[test]
    fn every_kind_is_read_as_it_is_written() {
        for kind in Kind::ALL {
            assert_eq!(kind.as_str().parse(), Ok(kind));
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
    }
}
