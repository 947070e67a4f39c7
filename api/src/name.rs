//! The names that kdbt passes around, each checked once, where it comes in.
//!
//! A value of one of these types can be quoted into SQL, YAML and logs without a further look:
//! none can hold a quote, a brace, a space or a control character.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Why a text is not a name of the kind asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// There is no text.
    #[error("{what} must not be empty")]
    Empty {
        /// The kind of name.
        what: &'static str,
    },
    /// More bytes than the engine or the design allows; engines would cut it without a word.
    #[error("{what} has {len} characters, at most {max} fit")]
    TooLong {
        /// The kind of name.
        what: &'static str,
        /// How many bytes there are.
        len: usize,
        /// How many fit.
        max: usize,
    },
    /// A character outside the alphabet of this kind.
    #[error("{what} must be {form}")]
    Malformed {
        /// The kind of name.
        what: &'static str,
        /// The form that fits, for people.
        form: &'static str,
    },
    /// A word that the engine or kdbt gives a meaning of its own.
    #[error("`{name}` is reserved and cannot be {what}")]
    Reserved {
        /// The kind of name.
        what: &'static str,
        /// The name as given; it has passed the alphabet already.
        name: String,
    },
}

/// The rule of one kind of name.
struct Rule {
    what: &'static str,
    form: &'static str,
    max: usize,
    first: fn(u8) -> bool,
    rest: fn(u8) -> bool,
    allowed: fn(&str) -> bool,
}

impl Rule {
    fn check(&self, text: &str) -> Result<(), NameError> {
        let what = self.what;
        let Some((first, rest)) = text.as_bytes().split_first() else {
            return Err(NameError::Empty { what });
        };
        if !(self.first)(*first) || !rest.iter().all(|byte| (self.rest)(*byte)) {
            return Err(NameError::Malformed { what, form: self.form });
        }
        if text.len() > self.max {
            return Err(NameError::TooLong {
                what,
                len: text.len(),
                max: self.max,
            });
        }
        if !(self.allowed)(text) {
            return Err(NameError::Reserved {
                what,
                name: text.to_owned(),
            });
        }
        Ok(())
    }
}

fn lower(byte: u8) -> bool {
    byte.is_ascii_lowercase()
}

fn lower_digit_dash(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_' || byte == b'-'
}

fn identifier_first(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_'
}

fn identifier_rest(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$'
}

/// Even the quoted `"public"` in `GRANT … TO` means everyone, and `pg_` belongs to the server.
fn unreserved(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    !lower.starts_with("pg_")
        && !["public", "none", "current_user", "session_user", "current_role", "user"].contains(&lower.as_str())
}

/// `kdbt_…` names lease users, and `kdbt__…` the broker's own roles: a policy must never name one. Capitals are another
/// name: `KDBT_…` is what DBAs call the wrapper roles on Snowflake that they hand to the broker.
fn not_ours(name: &str) -> bool {
    unreserved(name) && !name.starts_with("kdbt_") && !name.to_ascii_lowercase().starts_with("kdbt__")
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $pattern:expr, $rule:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(String);

        impl $type {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                let rule: &Rule = &$rule;
                rule.check(text)?;
                Ok(Self(text.to_owned()))
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        text_form!($type, $pattern);
    };
}

macro_rules! text_form {
    ($type:ident, $pattern:expr) => {
        impl $type {
            /// What every one of them matches, as a regular expression of JSON Schema. Words that are reserved match too.
            pub const PATTERN: &str = $pattern;
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }

        #[cfg(feature = "openapi")]
        impl utoipa::PartialSchema for $type {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
                crate::openapi::text($type::PATTERN)
            }
        }

        #[cfg(feature = "openapi")]
        impl utoipa::ToSchema for $type {}
    };
}

const LABEL_PATTERN: &str = "^[a-z][a-z0-9_-]{0,62}$";
const IDENTIFIER_PATTERN: &str = "^[A-Za-z_][A-Za-z0-9_$]{0,62}$";

const LABEL: &str = "a lower-case letter, then letters, digits, `_` or `-`";
const IDENTIFIER: &str = "a letter or `_`, then letters, digits, `_` or `$`";

macro_rules! label {
    ($what:literal) => {
        Rule {
            what: $what,
            form: LABEL,
            max: 63,
            first: lower,
            rest: lower_digit_dash,
            allowed: |_| true,
        }
    };
}

macro_rules! identifier {
    ($what:literal, $allowed:expr) => {
        Rule {
            what: $what,
            form: IDENTIFIER,
            max: 63,
            first: identifier_first,
            rest: identifier_rest,
            allowed: $allowed,
        }
    };
}

name!(
    /// A server and a database in it, as policies and people name it: `prod`.
    TargetName, LABEL_PATTERN, label!("a target name")
);
name!(
    /// One PostgreSQL cluster or one Snowflake account: `dwh`.
    ServerName, LABEL_PATTERN, label!("a server name")
);
name!(
    /// The id of a policy rule: `analyst-read`.
    RuleId, LABEL_PATTERN, label!("a rule id")
);
name!(
    /// One broker deployment; it stands in every mark, and other installations' users are never touched.
    InstallationName, LABEL_PATTERN, label!("an installation name")
);
name!(
    /// A durable role of the warehouse that a policy names. Never one of kdbt's own.
    RoleName, IDENTIFIER_PATTERN, identifier!("a role name", not_ours)
);
name!(
    /// A schema of the warehouse.
    SchemaName, IDENTIFIER_PATTERN, identifier!("a schema name", unreserved)
);
name!(
    /// A database of the warehouse.
    DatabaseName, IDENTIFIER_PATTERN, identifier!("a database name", unreserved)
);
name!(
    /// A virtual warehouse of Snowflake: what computes, and what costs.
    WarehouseName, IDENTIFIER_PATTERN, identifier!("a warehouse name", unreserved)
);
name!(
    /// The name of a profile in `dbt_project.yml` and `profiles.yml`.
    ProfileName,
    "^[A-Za-z_][A-Za-z0-9_.-]{0,127}$",
    Rule {
        what: "a profile name",
        form: "a letter or `_`, then letters, digits, `_`, `-` or `.`",
        max: 128,
        first: identifier_first,
        rest: |byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'),
        allowed: |_| true,
    }
);

/// A person's or project's short name in user and schema names: at most 24 of `[a-z0-9_]`, a letter
/// first, no two underscores in a row and none at the end, so that it can never form one of the
/// durable names, which all start `kdbt__`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slug(String);

impl Slug {
    /// The longest slug, in characters.
    pub const LONGEST: usize = 24;

    /// The slug that a name asks for: ASCII letters lowered, every run of anything else than letters
    /// and digits one `_`, none at the ends, `u` before a digit or where nothing is left, cut to 24.
    #[must_use]
    pub fn from_name(name: &str) -> Self {
        let mut slug = String::with_capacity(Self::LONGEST);
        for c in name.chars() {
            if c.is_ascii_alphanumeric() {
                if slug.is_empty() && c.is_ascii_digit() {
                    slug.push('u');
                }
                slug.push(c.to_ascii_lowercase());
            } else if !slug.is_empty() && !slug.ends_with('_') {
                slug.push('_');
            }
        }
        if slug.is_empty() {
            slug.push('u');
        }
        Self(cut(&slug, Self::LONGEST))
    }

    /// The slug of the second person who asks for this one: cut to make room for `_` and six hex digits.
    #[must_use]
    pub fn with_suffix(&self, hex: [u8; 3]) -> Self {
        let [a, b, c] = hex;
        Self(format!("{}_{a:02x}{b:02x}{c:02x}", cut(&self.0, Self::LONGEST - 7)))
    }

    /// The slug as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The first `max` characters, without an underscore at the end. ASCII only.
fn cut(text: &str, max: usize) -> String {
    let head: String = text.chars().take(max).collect();
    head.trim_end_matches('_').to_owned()
}

impl FromStr for Slug {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        const WHAT: &str = "a user slug";
        const RULE: Rule = Rule {
            what: WHAT,
            form: "a lower-case letter, then letters, digits or single `_`, not at the end",
            max: Slug::LONGEST,
            first: lower,
            rest: |byte| lower(byte) || byte.is_ascii_digit() || byte == b'_',
            allowed: |_| true,
        };
        RULE.check(text)?;
        if text.contains("__") || text.ends_with('_') {
            return Err(NameError::Malformed {
                what: WHAT,
                form: RULE.form,
            });
        }
        Ok(Self(text.to_owned()))
    }
}

text_form!(Slug, "^[a-z][a-z0-9_]{0,23}$");

/// The name of an ephemeral user: `kdbt_<slug>_<n>`, where n is a slot of that person on that server.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DbUsername {
    text: String,
    slug: Slug,
    slot: u16,
}

impl DbUsername {
    /// The user of a person's slot.
    #[must_use]
    pub fn new(slug: &Slug, slot: u16) -> Self {
        Self {
            text: format!("kdbt_{slug}_{slot}"),
            slug: slug.clone(),
            slot,
        }
    }

    /// Whose user it is.
    #[must_use]
    pub fn slug(&self) -> &Slug {
        &self.slug
    }

    /// Which of that person's slots.
    #[must_use]
    pub fn slot(&self) -> u16 {
        self.slot
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for DbUsername {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let malformed = NameError::Malformed {
            what: "a lease user name",
            form: "`kdbt_<slug>_<n>`",
        };
        let parts = text.strip_prefix("kdbt_").and_then(|rest| rest.rsplit_once('_'));
        let (slug, slot) = parts.ok_or_else(|| malformed.clone())?;
        let name = Self::new(&slug.parse()?, slot.parse().map_err(|_| malformed.clone())?);
        // One text per name: no leading zero, no sign.
        if name.text == text { Ok(name) } else { Err(malformed) }
    }
}

text_form!(DbUsername, "^kdbt_[a-z][a-z0-9_]{0,23}_[0-9]{1,5}$");

/// The name of an ephemeral user as Snowflake stores it and its logs show it: in capitals, so that it needs no quotes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnowflakeUsername(String);

impl SnowflakeUsername {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&DbUsername> for SnowflakeUsername {
    fn from(name: &DbUsername) -> Self {
        Self(name.as_str().to_ascii_uppercase())
    }
}

impl FromStr for SnowflakeUsername {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let name: DbUsername = text.to_ascii_lowercase().parse()?;
        let name = Self::from(&name);
        if name.0 == text {
            Ok(name)
        } else {
            Err(NameError::Malformed {
                what: "a lease user name",
                form: "`KDBT_<SLUG>_<N>`",
            })
        }
    }
}

text_form!(SnowflakeUsername, "^KDBT_[A-Z][A-Z0-9_]{0,23}_[0-9]{1,5}$");

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_that_want_to_be_sql_yaml_or_jinja_are_refused() {
        for text in [
            "", "a b", "a\"b", "a;b", "{{x}}", "a'b", "a\nb", "a\\b", "é", "1a", "a\u{0}",
        ] {
            assert!(text.parse::<TargetName>().is_err(), "target {text:?}");
            assert!(text.parse::<RoleName>().is_err(), "role {text:?}");
            assert!(text.parse::<SchemaName>().is_err(), "schema {text:?}");
            assert!(text.parse::<ProfileName>().is_err(), "profile {text:?}");
        }
    }

    #[test]
    fn words_that_the_server_gives_a_meaning_are_no_role_names() {
        for text in [
            "public",
            "PUBLIC",
            "none",
            "pg_monitor",
            "PG_x",
            "current_user",
            "session_user",
        ] {
            assert!(
                matches!(text.parse::<RoleName>(), Err(NameError::Reserved { .. })),
                "{text}"
            );
        }
        for ours in ["kdbt__broker", "KDBT__BROKER", "kdbt_ada_0"] {
            assert!(
                matches!(ours.parse::<RoleName>(), Err(NameError::Reserved { .. })),
                "{ours}"
            );
        }
        assert!("KDBT_ENT_MARTS_READER".parse::<RoleName>().is_ok(), "a DBA's wrapper");
        assert!(
            "a".repeat(64).parse::<RoleName>().is_err(),
            "PostgreSQL would cut it without a word"
        );
    }

    #[test]
    fn people_get_the_slug_that_their_name_suggests() {
        for (name, slug) in [
            ("ada", "ada"),
            ("Ada.Lovelace", "ada_lovelace"),
            ("ada@acme.example", "ada_acme_example"),
            ("__x__", "x"),
            ("王伟", "u"),
            ("7of9", "u7of9"),
            ("", "u"),
            ("login", "login"),
            ("u_alice", "u_alice"),
            ("abcdefghijklmnopqrstuvw_xyz", "abcdefghijklmnopqrstuvw"),
        ] {
            assert_eq!(Slug::from_name(name).as_str(), slug, "{name}");
        }
    }

    #[test]
    fn a_user_name_has_exactly_one_text() {
        for text in [
            "kdbt_ada_00",
            "kdbt_ada_+1",
            "kdbt_ada_",
            "kdbt_ada",
            "kdbt__broker",
            "kdbt__login_1",
            "kdbt_Ada_0",
            "ada_0",
        ] {
            assert!(text.parse::<DbUsername>().is_err(), "{text}");
        }
        let name: DbUsername = "kdbt_ada_lovelace_12".parse().unwrap();
        assert_eq!((name.slug().as_str(), name.slot()), ("ada_lovelace", 12));
    }

    #[test]
    fn snowflake_shows_a_lease_name_in_capitals_and_only_so() {
        let name: DbUsername = "kdbt_ada_l_0".parse().unwrap();
        let shown = SnowflakeUsername::from(&name);
        assert_eq!(shown.as_str(), "KDBT_ADA_L_0");
        assert_eq!("KDBT_ADA_L_0".parse(), Ok(shown));
        for other in ["kdbt_ada_l_0", "Kdbt_ADA_L_0", "KDBT__BROKER", "KDBT_ADA_00"] {
            assert!(other.parse::<SnowflakeUsername>().is_err(), "{other}");
        }
    }

    /// The strategy that makes texts of a pattern knows no anchors.
    fn texts_of(pattern: &str) -> impl Strategy<Value = String> + use<> {
        let inner = pattern.trim_start_matches('^').trim_end_matches('$');
        proptest::string::string_regex(inner).unwrap()
    }

    proptest! {
        #[test]
        fn every_text_of_a_documented_pattern_is_a_name(
            label in texts_of(TargetName::PATTERN),
            profile in texts_of(ProfileName::PATTERN),
            identifier in texts_of(RoleName::PATTERN),
        ) {
            prop_assert!(label.parse::<TargetName>().is_ok(), "{label}");
            prop_assert!(label.parse::<RuleId>().is_ok(), "{label}");
            prop_assert!(profile.parse::<ProfileName>().is_ok(), "{profile}");
            let name = identifier.parse::<RoleName>();
            prop_assert!(matches!(name, Ok(_) | Err(NameError::Reserved { .. })), "{identifier}");
        }

        #[test]
        fn every_name_yields_a_valid_slug_and_never_a_durable_name(name in ".*", slot: u16, hex: [u8; 3]) {
            for slug in [Slug::from_name(&name), Slug::from_name(&name).with_suffix(hex)] {
                prop_assert_eq!(slug.as_str().parse::<Slug>(), Ok(slug.clone()));
                let user = DbUsername::new(&slug, slot);
                prop_assert!(!user.as_str().starts_with("kdbt__"));
                prop_assert!(user.as_str().len() <= 63);
                prop_assert_eq!(user.as_str().parse::<DbUsername>(), Ok(user));
            }
        }

        #[test]
        fn a_suffix_keeps_two_people_apart(name in "[a-z]{1,30}", a: [u8; 3], b: [u8; 3]) {
            prop_assume!(a != b);
            let slug = Slug::from_name(&name);
            prop_assert_ne!(slug.with_suffix(a), slug.with_suffix(b));
        }
    }
}
