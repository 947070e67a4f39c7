//! An account identifier becomes the host to dial and the account that a JWT must name. Pure.
//!
//! The rules are those of Snowflake's own connectors (`parse_account` in the Python connector), which differ from the
//! sample on the vendor's SQL API page; the vectors in `tests/fixtures/snowflake` hold both to each other.

use std::fmt;
use std::str::FromStr;

/// An account as its owner writes it: `myorg-myacct`, or a locator with its region, `xy12345.eu-central-1`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account(String);

impl Account {
    /// The host name. Host names have no underscore, so `_` becomes `-`; accounts in China live below `.cn`.
    #[must_use]
    pub fn host(&self) -> String {
        let name = self.0.to_ascii_lowercase().replace('_', "-");
        let region = name.split_once('.').map_or("", |(_, region)| region);
        let top = if region.starts_with("cn-") { "cn" } else { "com" };
        format!("{name}.snowflakecomputing.{top}")
    }

    /// The account in a JWT's `iss` and `sub`: upper case, without region, cloud or `privatelink`; for a `.global`
    /// one also without the part that makes the connection's name unique.
    #[must_use]
    pub fn in_jwt(&self) -> String {
        let (name, region) = self.0.split_once('.').unwrap_or((&self.0, ""));
        let name = match name.rsplit_once('-') {
            Some((connection, _)) if region.eq_ignore_ascii_case("global") => connection,
            _ => name,
        };
        name.to_ascii_uppercase()
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text is no account identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AccountError {
    /// There is no text.
    #[error("the account is empty: write its identifier, such as `myorg-myacct`")]
    Empty,
    /// The address of the account instead of its identifier.
    #[error("`{text}` is an address: write the account identifier alone, such as `{alone}`")]
    Address {
        /// What was written.
        text: String,
        /// What is likely meant.
        alone: String,
    },
    /// A character that no identifier has.
    #[error("the account `{text}` holds {character:?}: an identifier has letters, digits, `-`, `_` and dots only")]
    Character {
        /// What was written.
        text: String,
        /// The first such character.
        character: char,
    },
    /// A dot or a hyphen too many.
    #[error("every part of the account `{0}` must begin and end with a letter or digit, with one dot between parts")]
    Part(String),
    /// No host has such a long name.
    #[error("the account has {0} characters: a host name holds {LONGEST}")]
    TooLong(usize),
}

/// What a host name (253 octets, RFC 1035) leaves beside `.snowflakecomputing.com`.
const LONGEST: usize = 230;

impl FromStr for Account {
    type Err = AccountError;

    fn from_str(text: &str) -> Result<Self, AccountError> {
        if text.is_empty() {
            return Err(AccountError::Empty);
        }
        if text.len() > LONGEST {
            return Err(AccountError::TooLong(text.len()));
        }
        if let Some(alone) = out_of_address(text) {
            let text = text.to_owned();
            return Err(AccountError::Address { text, alone });
        }
        let fits = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if let Some(character) = text.chars().find(|c| !fits(c)) {
            let text = text.escape_debug().to_string();
            return Err(AccountError::Character { text, character });
        }
        let whole = |part: &str| {
            part.starts_with(|c: char| c.is_ascii_alphanumeric()) && part.ends_with(|c: char| c.is_ascii_alphanumeric())
        };
        if !text.split('.').all(whole) {
            return Err(AccountError::Part(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

/// The identifier inside a pasted address: of the account, or of Snowsight (`app.snowflake.com/myorg/myacct`).
fn out_of_address(text: &str) -> Option<String> {
    let lower = text.trim().to_ascii_lowercase();
    let bare = lower.split_once("://").map_or(&*lower, |(_, bare)| bare);
    let (host, path) = bare.split_once('/').unwrap_or((bare, ""));
    let host = host.split_once(':').map_or(host, |(host, _)| host);
    let mut steps = path.split('/');
    let alone = match host.split_once(".snowflakecomputing") {
        Some((account, _)) => account.to_owned(),
        None if host == "app.snowflake.com" => match (steps.next(), steps.next()) {
            (Some(org), Some(account)) => format!("{org}-{account}"),
            _ => String::new(),
        },
        None if bare.len() < lower.len() || host.len() < bare.len() => host.to_owned(),
        None => return None,
    };
    Some(if alone.parse::<Account>().is_ok() {
        alone
    } else {
        "myorg-myacct".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn host_and_account_are_those_of_snowflakes_own_connector() {
        for vector in super::super::tests::jwt_vectors() {
            let account: Account = vector.account.parse().unwrap();
            assert_eq!(account.in_jwt(), vector.jwt_account, "{account}");
            assert_eq!(account.host(), vector.host, "{account}");
        }
    }

    #[test]
    fn every_odd_form_is_refused_and_the_error_says_what_to_write() {
        for (text, says) in [
            ("", "the account is empty"),
            ("https://myorg-myacct.snowflakecomputing.com", "such as `myorg-myacct`"),
            (
                "https://MYORG-MYACCT.snowflakecomputing.com/console/login",
                "such as `myorg-myacct`",
            ),
            ("http://myorg-myacct", "such as `myorg-myacct`"),
            ("myorg-myacct.snowflakecomputing.com", "such as `myorg-myacct`"),
            (
                "xy12345.eu-central-1.snowflakecomputing.com:443",
                "such as `xy12345.eu-central-1`",
            ),
            (
                "xy12345.cn-north-1.snowflakecomputing.cn",
                "such as `xy12345.cn-north-1`",
            ),
            (
                "https://app.snowflake.com/myorg/myacct/#/homepage",
                "such as `myorg-myacct`",
            ),
            ("https://app.snowflake.com", "such as `myorg-myacct`"),
            ("https://", "such as `myorg-myacct`"),
            (".snowflakecomputing.com", "such as `myorg-myacct`"),
            ("myorg-myacct:443", "such as `myorg-myacct`"),
            ("myorg/myacct", "is an address"),
            (" myorg-myacct", "holds ' '"),
            ("myorg myacct", "holds ' '"),
            ("myorg-myacct\n", r"holds '\n'"),
            ("konto-größe", "holds 'ö'"),
            ("my'org", r"holds '\''"),
            (".myorg-myacct", "must begin and end"),
            ("myorg-myacct.", "must begin and end"),
            ("xy12345..eu-central-1", "must begin and end"),
            ("-myorg", "must begin and end"),
            ("myorg-", "must begin and end"),
            (&"a".repeat(231), "has 231 characters"),
        ] {
            let error = text.parse::<Account>().unwrap_err().to_string();
            assert!(error.contains(says), "{text:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_makes_a_host_that_is_one(text in "[a-zA-Z0-9._-]{1,40}") {
            if let Ok(account) = text.parse::<Account>() {
                let url = url::Url::parse(&format!("https://{}/", account.host())).unwrap();
                prop_assert_eq!(url.host_str(), Some(&*account.host()));
            }
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".*", rest in ".*") {
            let _ = text.parse::<Account>();
            let _ = format!("https://{text}.snowflakecomputing.com/{rest}").parse::<Account>();
        }
    }
}
