//! Login with a code on another device (RFC 8628), with PKCE as Keycloak can demand it.

use std::time::Duration;

use secrecy::ExposeSecret as _;
use serde::Deserialize;

use super::{Pkce, Provider, TokenError, Tokens};
use crate::exit::{Code, Failure, Outcome};
use crate::output::{Output, clean};

/// RFC 8628 section 3.2. No `Debug`: the device code is secret.
#[derive(Deserialize)]
struct Started {
    device_code: String,
    user_code: String,
    verification_uri: String,
    verification_uri_complete: Option<String>,
    expires_in: u64,
    #[serde(default = "five")]
    interval: u64,
}

fn five() -> u64 {
    5
}

/// Shows the code and waits until somebody has entered it.
pub(crate) async fn login(provider: &Provider, broker: &str, output: Output) -> Outcome<Tokens> {
    let endpoint = provider.device_endpoint.clone().ok_or_else(|| {
        Failure::new(
            Code::LoginNeeded,
            format!("`{}` offers no login by device", provider.issuer.issuer),
        )
        .hint("use `kdbt-client login --browser`")
    })?;
    let pkce = Pkce::generate();
    let scope = provider.scope();
    let form = [
        ("client_id", provider.issuer.client_id.as_str()),
        ("scope", &scope),
        ("code_challenge", &pkce.challenge),
        ("code_challenge_method", "S256"),
    ];
    let answer = provider
        .http
        .send(provider.http.client().post(endpoint).form(&form))
        .await?;
    if !answer.status.is_success() {
        let refused: super::OAuthError = answer.json("the answer of the device endpoint")?;
        return Err(TokenError::Refused(refused).into_failure(&provider.issuer.issuer));
    }
    let started: Started = answer.json("the answer of the device endpoint")?;
    output.ask(&format!("To log in to {broker}, open"));
    output.ask(&format!("  {}", clean(&started.verification_uri)));
    output.ask(&format!("and enter the code {}", clean(&started.user_code)));
    if let Some(complete) = &started.verification_uri_complete {
        output.ask(&format!("(or open {})", clean(complete)));
    }
    output.ask("Only enter a code that you asked for yourself, here and now.");
    // An hour is longer than any realm lets a code live.
    let patience = Duration::from_secs(started.expires_in.min(3600));
    let poll = poll(provider, &started, &pkce);
    match tokio::time::timeout(patience, poll).await {
        Ok(result) => result,
        Err(_) => Err(expired()),
    }
}

async fn poll(provider: &Provider, started: &Started, pkce: &Pkce) -> Outcome<Tokens> {
    let mut interval = Duration::from_secs(started.interval.clamp(1, 60));
    let form = [
        ("grant_type", "urn:ietf:params:oauth:grant-type:device_code"),
        ("client_id", provider.issuer.client_id.as_str()),
        ("device_code", &started.device_code),
        ("code_verifier", pkce.verifier.expose_secret()),
    ];
    loop {
        tokio::time::sleep(interval).await;
        match provider.token(&form).await {
            Ok(tokens) => return Ok(tokens),
            Err(TokenError::Refused(refused)) => match refused.error.as_str() {
                "authorization_pending" => {}
                "slow_down" => interval += Duration::from_secs(5),
                "expired_token" => return Err(expired()),
                "access_denied" => {
                    return Err(Failure::new(
                        Code::LoginNeeded,
                        "the login was refused on the other device",
                    ));
                }
                _ => return Err(TokenError::Refused(refused).into_failure(&provider.issuer.issuer)),
            },
            // RFC 8628 section 3.5: back off and try again; the code's life ends this.
            Err(TokenError::Failed(_)) => interval = (interval * 2).min(Duration::from_mins(1)),
        }
    }
}

fn expired() -> Failure {
    Failure::new(Code::LoginNeeded, "nobody entered the code in time").hint("kdbt-client login --device")
}
