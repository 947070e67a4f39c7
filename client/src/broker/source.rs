//! Where access tokens come from, and which issuer they must come from.

use std::path::PathBuf;
use std::time::Duration;

use kdbt_api::lease::{ClientConfig, ClientIssuer};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use url::Url;

use crate::exit::{Code, Failure, Outcome};
use crate::login::{StoredLogin, file_name};
use crate::oauth::{Provider, Tokens};
use crate::output::clean;
use crate::settings::{Settings, now, secret_file, secret_variable, text_variable, variable};
use crate::token::Claims;

/// Where access tokens come from.
#[derive(Debug)]
pub(super) enum Source {
    /// `KDBT_TOKEN`.
    Given(SecretString),
    /// `--token-file`, read anew each time.
    File(PathBuf),
    /// Client credentials of a machine, with the last token.
    Machine { id: String, last: Mutex<Option<Tokens>> },
    /// A person's stored login.
    Person(StoredLogin),
}

/// Which issuer a broker named when it was first seen.
#[derive(Debug, Serialize, Deserialize)]
struct Pin {
    broker: String,
    issuer: String,
}

impl Source {
    /// An access token, not checked yet. `fresh` asks for one that was not used before.
    pub(super) async fn token(&self, settings: &Settings, issuer: &ClientIssuer, fresh: bool) -> Outcome<SecretString> {
        match self {
            Self::Given(token) => Ok(token.clone()),
            Self::File(path) => secret_file(path),
            Self::Person(login) => login.token(settings, issuer, fresh).await,
            Self::Machine { id, last } => {
                let mut last = last.lock().await;
                let usable = |tokens: &&Tokens| !fresh && tokens.expires_at > now() + Duration::from_secs(30);
                if let Some(tokens) = last.as_ref().filter(usable) {
                    Ok(tokens.access.clone())
                } else {
                    let provider = Provider::discover(settings, issuer).await?;
                    let tokens = provider.machine(id, &machine_secret()?).await;
                    let tokens = tokens.map_err(|error| error.into_failure(&issuer.issuer))?;
                    Ok(last.insert(tokens).access.clone())
                }
            }
        }
    }

    /// The stored login, where tokens come from one.
    pub(super) fn login(&self) -> Option<&StoredLogin> {
        match self {
            Self::Person(login) => Some(login),
            Self::Given(_) | Self::File(_) | Self::Machine { .. } => None,
        }
    }

    /// Whether it can fetch another token for one that the broker no longer takes.
    pub(super) fn has_others(&self) -> bool {
        matches!(self, Self::Person(_) | Self::Machine { .. })
    }
}

/// The source of tokens, first found: file, variable, client credentials, stored login; and its issuer.
pub(super) fn identify(
    settings: &Settings,
    url: &Url,
    config: &ClientConfig,
    trust: bool,
) -> Outcome<(Source, ClientIssuer)> {
    let given = match &settings.token_file {
        Some(path) => Some((secret_file(path)?, Source::File(path.clone()))),
        None => secret_variable("KDBT_TOKEN")?.map(|token| (token.clone(), Source::Given(token))),
    };
    if let Some((token, source)) = given {
        let named = Claims::read(token.expose_secret())?.iss;
        let issuer = config
            .issuers
            .iter()
            .find(|issuer| issuer.issuer == named)
            .ok_or_else(|| {
                let known: Vec<&str> = config.issuers.iter().map(|issuer| issuer.issuer.as_str()).collect();
                Failure::new(Code::LoginNeeded, format!("the token is from `{}`", clean(&named)))
                    .hint(format!("the broker takes tokens of {}", clean(&known.join(", "))))
            })?;
        return Ok((source, issuer.clone()));
    }
    let issuer = pinned(settings, url, config, trust)?;
    let source = match text_variable("KDBT_CLIENT_ID")? {
        Some(id) => Source::Machine {
            id,
            last: Mutex::new(None),
        },
        None => Source::Person(StoredLogin::of(settings, url, &issuer)?),
    };
    Ok((source, issuer))
}

/// The issuer that this broker named when it was first seen: a broker must not quietly send its users,
/// and their secrets, to another one.
fn pinned(settings: &Settings, url: &Url, config: &ClientConfig, trust: bool) -> Outcome<ClientIssuer> {
    let first = config.issuers.first().ok_or_else(|| {
        Failure::new(Code::Failed, "the broker names no issuer to log in at").hint("ask its operator to configure one")
    })?;
    let path = settings.state_file("brokers", &format!("{}.json", file_name(&[url.as_str()])))?;
    let pin: Option<Pin> = crate::private::read_json(&path)?;
    if let Some(pin) = pin.filter(|_| !trust) {
        let known = config.issuers.iter().find(|issuer| issuer.issuer == pin.issuer);
        return known.cloned().ok_or_else(|| {
            Failure::new(
                Code::Failed,
                format!(
                    "{url} now names the issuer `{}`; until now it was `{}`",
                    clean(&first.issuer),
                    clean(&pin.issuer)
                ),
            )
            .hint("ask the broker's operator; if it is right: kdbt-client login --trust-issuer")
        });
    }
    let pin = Pin {
        broker: url.to_string(),
        issuer: first.issuer.clone(),
    };
    crate::private::write_json(&path, &pin)?;
    Ok(first.clone())
}

/// The client secret, read anew each time because it may be rotated.
fn machine_secret() -> Outcome<SecretString> {
    if let Some(path) = variable("KDBT_CLIENT_SECRET_FILE") {
        return secret_file(&PathBuf::from(path));
    }
    secret_variable("KDBT_CLIENT_SECRET")?.ok_or_else(|| {
        Failure::new(Code::Usage, "KDBT_CLIENT_ID is set, but no secret is")
            .hint("set KDBT_CLIENT_SECRET_FILE to the file that holds it")
    })
}
