//! A person's login: how it is done, where it is kept, how it stays fresh.
//!
//! Tokens lie in one file 0600 per broker, issuer and client. A lock across processes guards each refresh, because
//! a realm may let a refresh token be used only once.

use std::path::PathBuf;

use kdbt_api::Timestamp;
use kdbt_api::lease::ClientIssuer;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use url::Url;

use crate::cli::Login;
use crate::exit::{Code, Failure, Outcome};
use crate::oauth::{Provider, TokenError, Tokens, browser, device};
use crate::settings::{Settings, has_display, in_ci, now};

/// A token with less than this left is refreshed first.
const LEAST_LEFT: std::time::Duration = std::time::Duration::from_mins(1);

/// What the file holds. No `Debug`: all of it is secret.
#[derive(Serialize, Deserialize)]
struct Stored {
    access_token: String,
    expires_at: Timestamp,
    refresh_token: Option<String>,
}

/// The stored login at one broker, by one issuer and client.
#[derive(Debug)]
pub(crate) struct StoredLogin {
    file: PathBuf,
    lock: PathBuf,
}

impl StoredLogin {
    /// Where the login at this broker is kept, whether there is one or not. Another broker could name the same issuer
    /// to be sent tokens that the first one takes, so it gets none before somebody has logged in for it.
    pub(crate) fn of(settings: &Settings, broker: &Url, issuer: &ClientIssuer) -> Outcome<Self> {
        let scopes = issuer.scopes.join(" ");
        let name = file_name(&[broker.as_str(), &issuer.issuer, &issuer.client_id, &scopes]);
        Ok(Self {
            file: settings.state_file("logins", &format!("{name}.json"))?,
            lock: settings.state_file("logins", &format!("{name}.lock"))?,
        })
    }

    /// An access token with a while left. `fresh` asks for a new one even so.
    pub(crate) async fn token(&self, settings: &Settings, issuer: &ClientIssuer, fresh: bool) -> Outcome<SecretString> {
        let usable = |stored: &Stored| !fresh && stored.expires_at > now() + LEAST_LEFT;
        if let Some(stored) = self.read()?.filter(usable) {
            return Ok(stored.access_token.into());
        }
        let _lock = self.lock().await?;
        // Another process may have refreshed while this one waited.
        let stored = self.read()?.ok_or_else(needed)?;
        if usable(&stored) {
            return Ok(stored.access_token.into());
        }
        let refresh = SecretString::from(stored.refresh_token.ok_or_else(needed)?);
        let provider = Provider::discover(settings, issuer).await?;
        match provider.refresh(&refresh).await {
            Ok(tokens) => {
                self.write(&tokens, Some(&refresh))?;
                Ok(tokens.access)
            }
            Err(TokenError::Refused(refused)) if refused.error == "invalid_grant" => {
                crate::private::remove(&self.file)?;
                Err(needed())
            }
            Err(error) => Err(error.into_failure(&issuer.issuer)),
        }
    }

    /// Logs in and keeps what comes of it.
    pub(crate) async fn begin(
        &self,
        settings: &Settings,
        issuer: &ClientIssuer,
        broker: &str,
        how: &Login,
    ) -> Outcome<()> {
        let provider = Provider::discover(settings, issuer).await?;
        let output = settings.output;
        let tokens = match way(how, has_display())? {
            Way::Browser => browser::login(&provider, !how.no_open, output).await?,
            Way::Device => device::login(&provider, broker, output).await?,
        };
        let _lock = self.lock().await?;
        self.write(&tokens, None)
    }

    /// Ends the session at the issuer and forgets it here. `false` if there was none.
    pub(crate) async fn end(&self, settings: &Settings, issuer: &ClientIssuer) -> Outcome<bool> {
        let _lock = self.lock().await?;
        let Some(stored) = self.read()? else { return Ok(false) };
        // Forgotten here first: whatever the issuer answers, this machine no longer has it.
        crate::private::remove(&self.file)?;
        if let Some(refresh) = stored.refresh_token {
            let provider = Provider::discover(settings, issuer).await?;
            provider.end_session(&refresh.into()).await?;
        }
        Ok(true)
    }

    async fn lock(&self) -> Outcome<std::fs::File> {
        let path = self.lock.clone();
        let locked = tokio::task::spawn_blocking(move || crate::private::lock(&path)).await;
        locked.map_err(|_| Failure::new(Code::Failed, "the wait for another kdbt-client was broken off"))?
    }

    fn read(&self) -> Outcome<Option<Stored>> {
        crate::private::read_json(&self.file)
    }

    fn write(&self, tokens: &Tokens, old_refresh: Option<&SecretString>) -> Outcome<()> {
        // An issuer that does not rotate refresh tokens need not repeat them (RFC 6749 section 6).
        let refresh = tokens.refresh.as_ref().or(old_refresh);
        let stored = Stored {
            access_token: tokens.access.expose_secret().to_owned(),
            expires_at: tokens.expires_at,
            refresh_token: refresh.map(|token| token.expose_secret().to_owned()),
        };
        crate::private::write_json(&self.file, &stored)
    }
}

/// A file name for a thing that these texts identify together.
pub(crate) fn file_name(parts: &[&str]) -> String {
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, parts.join("\n").as_bytes());
    let mut name = kdbt_api::hex::encode(hash.as_ref());
    name.truncate(32);
    name
}

fn needed() -> Failure {
    Failure::new(Code::LoginNeeded, "you are not logged in, or your login has ended").hint("kdbt-client login")
}

/// How a person logs in.
#[derive(Debug, PartialEq, Eq)]
enum Way {
    Browser,
    Device,
}

/// What was asked for; else the browser where one can be seen. In CI nobody would see either.
fn way(how: &Login, has_display: bool) -> Outcome<Way> {
    if how.device {
        return Ok(Way::Device);
    }
    if how.browser || how.no_open {
        return Ok(Way::Browser);
    }
    if in_ci() {
        return Err(Failure::new(Code::LoginNeeded, "nobody can log in here (CI is set)")
            .hint("set KDBT_CLIENT_ID and KDBT_CLIENT_SECRET_FILE, or KDBT_TOKEN_FILE"));
    }
    Ok(if has_display { Way::Browser } else { Way::Device })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_beats_what_would_be_guessed() {
        let how = |device, browser, no_open| Login {
            device,
            browser,
            no_open,
            trust_issuer: false,
        };
        assert_eq!(way(&how(true, false, false), true).unwrap(), Way::Device);
        assert_eq!(way(&how(false, true, false), false).unwrap(), Way::Browser);
        assert_eq!(way(&how(false, false, true), false).unwrap(), Way::Browser);
    }

    #[test]
    fn things_that_differ_in_any_part_have_different_files() {
        assert_ne!(file_name(&["a", "b"]), file_name(&["a", "c"]));
        assert_eq!(file_name(&["a"]).len(), 32);
    }
}
