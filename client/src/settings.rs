//! What surrounds a command: its global flags, the environment, the user's folders, the clock, chance.
//!
//! The only module that reads the environment (flags with a variable are read by clap).

use std::ffi::OsString;
use std::io::{BufRead as _, IsTerminal as _};
use std::path::{Path, PathBuf};

use kdbt_api::Timestamp;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::cli::Global;
use crate::exit::{Code, Failure, Outcome};
use crate::output::Output;

/// Everything a command may know of its surroundings.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Where to write.
    pub(crate) output: Output,
    /// `--broker`, if given.
    broker: Option<String>,
    /// `--token-file`, if given.
    pub(crate) token_file: Option<PathBuf>,
    /// `--ca-file`: what to trust instead of the system's authorities.
    pub(crate) ca_file: Option<PathBuf>,
    /// Whether the user takes connections without TLS, or without a check of the certificate.
    pub(crate) allow_insecure: bool,
    config_folder: PathBuf,
    state_folder: PathBuf,
}

/// The user's own settings, `config.json` in the configuration folder. Never a secret.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct UserConfig {
    broker: Option<String>,
}

impl Settings {
    /// From the global flags and the environment.
    pub(crate) fn load(global: Global) -> Outcome<Self> {
        let home = variable("HOME").map(PathBuf::from);
        let folder = |name: &str, below_home: &str| {
            let xdg = variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
            let folder = xdg.or_else(|| home.as_ref().map(|home| home.join(below_home)));
            folder.map(|folder| folder.join("kdbt")).ok_or_else(|| {
                Failure::new(Code::Usage, format!("neither {name} nor HOME is set"))
                    .hint(format!("set {name} to a folder that only you can read"))
            })
        };
        Ok(Self {
            output: Output::new(global.quiet, variable("NO_COLOR").is_none()),
            broker: global.broker,
            token_file: global.token_file,
            ca_file: global.ca_file,
            allow_insecure: global.allow_insecure,
            config_folder: folder("XDG_CONFIG_HOME", ".config")?,
            state_folder: folder("XDG_STATE_HOME", ".local/state")?,
        })
    }

    /// The broker's URL, with a slash at its end, if a flag or a variable names it.
    pub(crate) fn named_broker(&self) -> Outcome<Option<Url>> {
        let named = self.broker.as_deref().map(|text| parse_url(text, "the broker's URL"));
        Ok(named.transpose()?.map(with_slash))
    }

    /// The same in any case: from the user's configuration if nothing names it, else by one question on a terminal.
    pub(crate) fn broker_url(&self) -> Outcome<Url> {
        match self.named_broker()? {
            Some(url) => Ok(url),
            None => self.usual_broker().map(with_slash),
        }
    }

    fn usual_broker(&self) -> Outcome<Url> {
        let path = self.config_folder.join("config.json");
        match std::fs::read(&path) {
            Ok(bytes) => {
                let config: UserConfig = serde_json::from_slice(&bytes)
                    .map_err(|error| Failure::new(Code::Usage, format!("`{}`: {error}", path.display())))?;
                if let Some(text) = config.broker {
                    return parse_url(&text, &format!("`broker` in `{}`", path.display()));
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Failure::file("read", &path, &error)),
        }
        if !self.is_interactive() {
            return Err(Failure::new(Code::Usage, "no broker is configured")
                .hint("set KDBT_BROKER or use --broker, such as --broker https://kdbt.acme.example"));
        }
        self.output
            .ask("Which broker do you use? Its URL, such as https://kdbt.acme.example:");
        let mut answer = String::new();
        let read = std::io::stdin().lock().read_line(&mut answer);
        read.map_err(|error| Failure::new(Code::Failed, format!("cannot read the answer: {error}")))?;
        let url = parse_url(answer.trim(), "the broker's URL")?;
        let config = UserConfig {
            broker: Some(url.to_string()),
        };
        crate::private::create_folder(&self.config_folder)?;
        crate::private::write_json(&path, &config)?;
        self.output.note(&format!("Saved in {}", path.display()));
        Ok(url)
    }

    /// A file in the state folder, which exists then and is the user's alone.
    pub(crate) fn state_file(&self, kind: &str, name: &str) -> Outcome<PathBuf> {
        let folder = self.state_folder.join(kind);
        crate::private::create_folder(&folder)?;
        Ok(folder.join(name))
    }

    /// Whether somebody is there to be asked. Never in CI.
    #[expect(
        clippy::unused_self,
        reason = "a question about the surroundings, which this value stands for"
    )]
    pub(crate) fn is_interactive(&self) -> bool {
        std::io::stdin().is_terminal() && std::io::stderr().is_terminal() && !in_ci()
    }
}

/// Whether this runs in CI, by the variable that all of them set.
pub(crate) fn in_ci() -> bool {
    variable("CI").is_some_and(|ci| ci != "false" && ci != "0")
}

/// Whether a browser could be opened where the user sees it.
pub(crate) fn has_display() -> bool {
    let remote = variable("SSH_CONNECTION").is_some() || variable("SSH_TTY").is_some();
    let display = ["DISPLAY", "WAYLAND_DISPLAY", "BROWSER"]
        .iter()
        .any(|name| variable(name).is_some());
    !remote && (display || cfg!(target_os = "macos"))
}

/// A variable that is set and not empty.
pub(crate) fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// A variable as text.
pub(crate) fn text_variable(name: &str) -> Outcome<Option<String>> {
    let Some(value) = variable(name) else { return Ok(None) };
    let text = value.into_string();
    text.map(Some)
        .map_err(|_| Failure::new(Code::Usage, format!("{name} is not UTF-8")))
}

/// A secret in a variable.
pub(crate) fn secret_variable(name: &str) -> Outcome<Option<SecretString>> {
    Ok(text_variable(name)?.map(SecretString::from))
}

/// A secret in a file, without the line end that editors leave. Read anew each time: secrets rotate.
pub(crate) fn secret_file(path: &Path) -> Outcome<SecretString> {
    let text =
        std::fs::read_to_string(path).map_err(|error| Failure::file("read", path, &error).with_code(Code::Usage))?;
    let secret = text.trim_end_matches(['\r', '\n']);
    if secret.is_empty() {
        return Err(Failure::new(Code::Usage, format!("`{}` is empty", path.display())));
    }
    Ok(SecretString::from(secret))
}

/// The names of set variables that only the client may use: tokens, client secrets, what fetches either.
pub(crate) fn our_variables() -> Vec<OsString> {
    const OURS: [&str; 4] = [
        "KDBT_TOKEN",
        "KDBT_CLIENT_",
        "KDBT_OIDC_TOKEN",
        "ACTIONS_ID_TOKEN_REQUEST_",
    ];
    let names = std::env::vars_os().map(|(name, _)| name);
    let is_ours = |name: &OsString| {
        OURS.iter()
            .any(|ours| name.as_encoded_bytes().starts_with(ours.as_bytes()))
    };
    names.filter(is_ours).collect()
}

/// The time of this machine.
#[expect(clippy::disallowed_methods, reason = "the client's one clock")]
pub(crate) fn now() -> Timestamp {
    jiff::Timestamp::now().into()
}

/// The source of every secret that the client makes.
#[expect(clippy::disallowed_methods, reason = "the client's one generator")]
pub(crate) fn rng() -> impl rand::CryptoRng {
    rand::rng()
}

/// So that paths can be joined to it, and one broker has one spelling.
fn with_slash(mut url: Url) -> Url {
    if !url.path().ends_with('/') {
        url.set_path(&format!("{}/", url.path()));
    }
    url
}

/// A URL that secrets may go to: https, or http to this very machine.
pub(crate) fn parse_url(text: &str, what: &str) -> Outcome<Url> {
    let url = Url::parse(text).map_err(|error| {
        Failure::new(Code::Usage, format!("{what} is not a URL: {error}")).hint("such as https://kdbt.acme.example")
    })?;
    let secure = match url.scheme() {
        "https" => url.host().is_some(),
        "http" => is_loopback(&url),
        _ => false,
    };
    if !secure || !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
        return Err(Failure::new(
            Code::Usage,
            format!("{what} must be https without user and fragment (http on this machine only)"),
        ));
    }
    Ok(url)
}

/// Whether the URL points at this very machine.
pub(crate) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_go_over_https_or_stay_on_the_machine() {
        for good in [
            "https://kdbt.acme.example",
            "http://127.0.0.1:8700",
            "http://[::1]:1/",
            "http://localhost:1",
        ] {
            assert!(parse_url(good, "x").is_ok(), "{good}");
        }
        for bad in [
            "http://kdbt.acme.example",
            "http://127.0.0.1.evil.example",
            "https://user:secret@kdbt.acme.example",
            "ftp://localhost",
            "kdbt.acme.example",
            "",
        ] {
            assert!(parse_url(bad, "x").is_err(), "{bad}");
        }
    }
}
