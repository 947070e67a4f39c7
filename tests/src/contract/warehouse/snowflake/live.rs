//! Which live account the contract may run on, if any: environment variables say so.

use anyhow::{Context, Result, bail};
use kdbt_api::name::RoleName;
use kdbt_broker::warehouse::snowflake::Account;
use secrecy::SecretString;
use url::Url;

/// How the tests that need it are run: what the test binary gets. One at a time, so that an account is not hurried.
pub const RUN: [&str; 3] = ["--ignored", "--test-threads=1", "warehouse_contract::on_a_live_account"];

/// An account that our bootstrap was run on, and the broker's user there.
pub struct Live {
    pub(super) account: Account,
    pub(super) user: String,
    pub(super) private_key: SecretString,
    pub(super) role: String,
    pub(super) grant_role: RoleName,
    pub(super) session_role: RoleName,
    pub(super) base_url: Option<Url>,
}

impl Live {
    /// All of these, or none. They are the fields of `connect` in the broker's configuration and of a grant in a policy.
    pub const NEEDED: [&str; 6] = [
        "KDBT_SNOWFLAKE_LIVE_ACCOUNT",
        "KDBT_SNOWFLAKE_LIVE_USER",
        "KDBT_SNOWFLAKE_LIVE_PRIVATE_KEY_FILE",
        "KDBT_SNOWFLAKE_LIVE_ROLE",
        "KDBT_SNOWFLAKE_LIVE_GRANT_ROLE",
        "KDBT_SNOWFLAKE_LIVE_SESSION_ROLE",
    ];

    /// Dialled instead of the account's own address.
    pub const BASE_URL: &str = "KDBT_SNOWFLAKE_LIVE_BASE_URL";

    /// `None` if no variable is set; an error if some are missing, or if one is of no use.
    pub fn from_environment() -> Result<Option<Self>> {
        Self::of(|name| std::env::var(name).ok())
    }

    fn of(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let read = |name: &str| variable(name).filter(|text| !text.is_empty());
        let missing: Vec<&str> = Self::NEEDED.into_iter().filter(|name| read(name).is_none()).collect();
        if missing.len() == Self::NEEDED.len() {
            return Ok(None);
        }
        if !missing.is_empty() {
            bail!("a live account needs {} too", missing.join(", "));
        }
        let [account, user, file, role, grant_role, session_role] =
            Self::NEEDED.map(|name| (name, read(name).unwrap_or_default()));
        let key = std::fs::read_to_string(&file.1).with_context(|| format!("{}: read {}", file.0, file.1))?;
        let base_url = read(Self::BASE_URL).map(|text| text.parse().context(Self::BASE_URL));
        Ok(Some(Self {
            account: account.1.parse().context(account.0)?,
            user: user.1,
            private_key: key.into(),
            role: role.1,
            grant_role: grant_role.1.parse().context(grant_role.0)?,
            session_role: session_role.1.parse().context(session_role.0)?,
            base_url: base_url.transpose()?,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(changed: &[(&str, &str)]) -> Result<Option<Live>> {
        let given = ["myorg-myacct", "SVC", "/dev/null", "BROKER", "WRAPPER", "OWNER"];
        Live::of(|name| {
            let changed = changed.iter().find(|(changed, _)| *changed == name);
            let given = Live::NEEDED.into_iter().zip(given).find(|(needed, _)| *needed == name);
            changed.or(given.as_ref()).map(|(_, text)| (*text).to_owned())
        })
    }

    #[test]
    fn all_variables_lead_to_an_account_and_none_to_none() {
        let live = read(&[(Live::BASE_URL, "https://private.link")]).unwrap().unwrap();
        assert_eq!(live.account.host(), "myorg-myacct.snowflakecomputing.com");
        assert_eq!(live.base_url.unwrap().host_str(), Some("private.link"));
        assert!(read(&[]).unwrap().unwrap().base_url.is_none());
        assert!(read(&Live::NEEDED.map(|name| (name, ""))).unwrap().is_none());
    }

    #[test]
    fn what_is_missing_or_of_no_use_is_named() {
        for (name, text) in [
            (Live::NEEDED[0], "https://myorg-myacct.snowflakecomputing.com"),
            (Live::NEEDED[0], ""),
            (Live::NEEDED[1], ""),
            (Live::NEEDED[2], "/nowhere/key.p8"),
            (Live::NEEDED[3], ""),
            (Live::NEEDED[4], "kdbt__role"),
            (Live::NEEDED[5], ""),
            (Live::BASE_URL, "nowhere"),
        ] {
            let error = read(&[(name, text)]).err().unwrap();
            assert!(format!("{error:#}").contains(name), "{error:#}");
        }
    }
}
