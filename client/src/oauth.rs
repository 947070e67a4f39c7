//! OAuth 2.1 and `OpenID` Connect, as far as a command line needs them: discovery, PKCE, the token endpoint.

pub(crate) mod browser;
pub(crate) mod device;

use std::time::Duration;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kdbt_api::Timestamp;
use kdbt_api::lease::ClientIssuer;
use rand::Rng as _;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use url::Url;

use crate::exit::{Code, Failure, Outcome};
use crate::http::{Http, foreign_url};
use crate::output::clean;
use crate::settings::{Settings, now, rng};
use crate::token::Claims;

/// An issuer whose discovery document was read, and our client there.
#[derive(Debug)]
pub(crate) struct Provider {
    pub(crate) issuer: ClientIssuer,
    pub(crate) http: Http,
    pub(crate) authorization_endpoint: Url,
    token_endpoint: Url,
    pub(crate) device_endpoint: Option<Url>,
    end_session_endpoint: Option<Url>,
    revocation_endpoint: Option<Url>,
    /// Whether the callback must carry `iss` (RFC 9207).
    pub(crate) names_itself: bool,
}

/// `OpenID` Connect Discovery 1.0 section 3, what is used of it.
#[derive(Debug, Deserialize)]
struct Discovery {
    issuer: String,
    authorization_endpoint: String,
    token_endpoint: String,
    device_authorization_endpoint: Option<String>,
    end_session_endpoint: Option<String>,
    revocation_endpoint: Option<String>,
    #[serde(default)]
    authorization_response_iss_parameter_supported: bool,
}

/// RFC 6749 section 5.1. No `Debug`: nearly all of it is secret.
#[derive(Deserialize)]
struct TokenResponse {
    access_token: String,
    token_type: String,
    expires_in: Option<u64>,
    refresh_token: Option<String>,
    id_token: Option<String>,
}

/// RFC 6749 section 5.2.
#[derive(Debug, Deserialize)]
pub(crate) struct OAuthError {
    pub(crate) error: String,
    error_description: Option<String>,
}

/// Why the token endpoint gave no token.
#[derive(Debug)]
pub(crate) enum TokenError {
    /// It said why.
    Refused(OAuthError),
    /// It could not be asked, or answered something else.
    Failed(Failure),
}

impl TokenError {
    /// As the failure of a command.
    pub(crate) fn into_failure(self, issuer: &str) -> Failure {
        match self {
            Self::Failed(failure) => failure,
            Self::Refused(refused) => Failure::new(Code::LoginNeeded, format!("{issuer} refuses: {refused}")),
        }
    }
}

impl std::fmt::Display for OAuthError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&clean(&self.error))?;
        self.error_description
            .as_ref()
            .map_or(Ok(()), |text| write!(f, " ({})", clean(text)))
    }
}

/// What a login or a refresh yields.
#[derive(Debug)]
pub(crate) struct Tokens {
    pub(crate) access: SecretString,
    pub(crate) expires_at: Timestamp,
    pub(crate) refresh: Option<SecretString>,
    id: Option<SecretString>,
}

impl Tokens {
    /// Checks the ID token against its login (`OpenID` Connect Core 3.1.3.7; it came straight from the
    /// token endpoint, so its signature adds nothing).
    pub(crate) fn check_nonce(&self, issuer: &ClientIssuer, nonce: &str) -> Outcome<()> {
        let wrong = |what: &str| {
            Failure::new(
                Code::LoginNeeded,
                format!("the login is not the one that was started: {what}"),
            )
        };
        let id = self.id.as_ref().ok_or_else(|| wrong("no ID token came back"))?;
        let claims = Claims::read(id.expose_secret())?;
        if claims.iss != issuer.issuer || !claims.is_for(&issuer.client_id) {
            return Err(wrong("its ID token is for another client or from another issuer"));
        }
        if claims.nonce.as_deref() != Some(nonce) {
            return Err(wrong("its nonce differs"));
        }
        Ok(())
    }
}

impl Provider {
    /// Reads the discovery document; its `issuer` must be the very one that was asked for.
    pub(crate) async fn discover(settings: &Settings, issuer: &ClientIssuer) -> Outcome<Self> {
        let base = foreign_url(&issuer.issuer, "the issuer that the broker names")?;
        let http = Http::new(settings, &base)?;
        let path = "/.well-known/openid-configuration";
        let url = foreign_url(&format!("{}{path}", issuer.issuer.trim_end_matches('/')), "the issuer")?;
        let answer = http.send(http.client().get(url)).await?;
        if !answer.status.is_success() {
            return Err(Failure::new(
                Code::Unreachable,
                format!("`{}` answers {} to discovery", issuer.issuer, answer.status),
            )
            .hint("does the realm exist, and is Keycloak up?"));
        }
        let found: Discovery = answer.json("the discovery document of the issuer")?;
        if found.issuer != issuer.issuer {
            return Err(Failure::new(
                Code::Failed,
                format!("`{}` calls itself `{}`", issuer.issuer, clean(&found.issuer)),
            )
            .hint("the broker's configuration must name the issuer exactly as Keycloak does"));
        }
        let optional = |text: Option<String>, what| text.map(|text| foreign_url(&text, what)).transpose();
        Ok(Self {
            authorization_endpoint: foreign_url(&found.authorization_endpoint, "the authorization endpoint")?,
            token_endpoint: foreign_url(&found.token_endpoint, "the token endpoint")?,
            device_endpoint: optional(found.device_authorization_endpoint, "the device endpoint")?,
            end_session_endpoint: optional(found.end_session_endpoint, "the end session endpoint")?,
            revocation_endpoint: optional(found.revocation_endpoint, "the revocation endpoint")?,
            names_itself: found.authorization_response_iss_parameter_supported,
            issuer: issuer.clone(),
            http,
        })
    }

    /// The scopes to ask for, `openid` among them.
    pub(crate) fn scope(&self) -> String {
        let mut scopes = self.issuer.scopes.clone();
        if !scopes.iter().any(|scope| scope == "openid") {
            scopes.insert(0, "openid".into());
        }
        scopes.join(" ")
    }

    /// One request to the token endpoint.
    pub(crate) async fn token(&self, form: &[(&str, &str)]) -> Result<Tokens, TokenError> {
        let started = now();
        let request = self.http.client().post(self.token_endpoint.clone()).form(form);
        let answer = self.http.send(request).await.map_err(TokenError::Failed)?;
        if answer.status.is_client_error() {
            let refused = answer
                .json("the answer of the token endpoint")
                .map_err(TokenError::Failed)?;
            return Err(TokenError::Refused(refused));
        }
        if !answer.status.is_success() {
            let text = format!("the token endpoint answers {}", answer.status);
            return Err(TokenError::Failed(Failure::new(Code::Unreachable, text)));
        }
        let response: TokenResponse = answer
            .json("the answer of the token endpoint")
            .map_err(TokenError::Failed)?;
        if !response.token_type.eq_ignore_ascii_case("bearer") {
            let text = format!(
                "the token endpoint gave a token of type `{}`",
                clean(&response.token_type)
            );
            return Err(TokenError::Failed(Failure::new(Code::LoginNeeded, text)));
        }
        Ok(Tokens {
            access: response.access_token.into(),
            expires_at: started + Duration::from_secs(response.expires_in.unwrap_or(60)),
            refresh: response.refresh_token.map(SecretString::from),
            id: response.id_token.map(SecretString::from),
        })
    }

    /// Trades a refresh token.
    pub(crate) async fn refresh(&self, refresh: &SecretString) -> Result<Tokens, TokenError> {
        self.token(&[
            ("grant_type", "refresh_token"),
            ("client_id", &self.issuer.client_id),
            ("refresh_token", refresh.expose_secret()),
        ])
        .await
    }

    /// A token for a machine: client credentials, RFC 6749 section 4.4.
    pub(crate) async fn machine(&self, id: &str, secret: &SecretString) -> Result<Tokens, TokenError> {
        self.token(&[
            ("grant_type", "client_credentials"),
            ("client_id", id),
            ("client_secret", secret.expose_secret()),
            ("scope", &self.scope()),
        ])
        .await
    }

    /// Ends the session first, since a revoked refresh token can no longer name it; then revokes the token.
    pub(crate) async fn end_session(&self, refresh: &SecretString) -> Outcome<()> {
        let id = ("client_id", self.issuer.client_id.as_str());
        let ended = match &self.end_session_endpoint {
            Some(url) => self.post(url, &[id, ("refresh_token", refresh.expose_secret())]).await,
            None => Ok(()),
        };
        let hint = ("token_type_hint", "refresh_token");
        let revoked = match &self.revocation_endpoint {
            Some(url) => self.post(url, &[id, hint, ("token", refresh.expose_secret())]).await,
            None => Ok(()),
        };
        // Either alone makes the refresh token useless.
        ended.or(revoked)
    }

    async fn post(&self, url: &Url, form: &[(&str, &str)]) -> Outcome<()> {
        let answer = self.http.send(self.http.client().post(url.clone()).form(form)).await?;
        if answer.status.is_success() || answer.status.is_redirection() {
            return Ok(());
        }
        Err(Failure::new(
            Code::Unreachable,
            format!("{} answers {}", url.path(), answer.status),
        ))
    }
}

/// A secret of one login and what may be shown of it (RFC 7636, method S256).
#[derive(Debug)]
pub(crate) struct Pkce {
    pub(crate) verifier: SecretString,
    pub(crate) challenge: String,
}

impl Pkce {
    /// A fresh pair.
    pub(crate) fn generate() -> Self {
        Self::of(random_text())
    }

    fn of(verifier: String) -> Self {
        let hash = digest::digest(&digest::SHA256, verifier.as_bytes());
        Self {
            challenge: URL_SAFE_NO_PAD.encode(hash),
            verifier: verifier.into(),
        }
    }
}

/// 32 random bytes as 43 characters, for verifier, state and nonce.
pub(crate) fn random_text() -> String {
    let mut bytes = [0_u8; 32];
    rng().fill_bytes(&mut bytes);
    URL_SAFE_NO_PAD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_challenge_is_the_one_of_rfc_7636() {
        let pkce = Pkce::of("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk".into());
        assert_eq!(pkce.challenge, "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
    }

    #[test]
    fn an_id_token_of_another_login_client_or_issuer_is_refused() {
        let issuer = ClientIssuer {
            issuer: "https://sso/realms/data".into(),
            client_id: "kdbt-cli".into(),
            audiences: vec![],
            scopes: vec![],
        };
        for (payload, good) in [
            (
                r#"{"iss":"https://sso/realms/data","aud":"kdbt-cli","nonce":"n"}"#,
                true,
            ),
            (
                r#"{"iss":"https://sso/realms/data","aud":"kdbt-cli","nonce":"m"}"#,
                false,
            ),
            (r#"{"iss":"https://sso/realms/data","aud":"kdbt-cli"}"#, false),
            (r#"{"iss":"https://sso/realms/data","aud":"other","nonce":"n"}"#, false),
            (
                r#"{"iss":"https://evil/realms/data","aud":"kdbt-cli","nonce":"n"}"#,
                false,
            ),
        ] {
            let tokens = Tokens {
                access: "a".into(),
                expires_at: now(),
                refresh: None,
                id: Some(format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(payload)).into()),
            };
            assert_eq!(tokens.check_nonce(&issuer, "n").is_ok(), good, "{payload}");
        }
    }
}
