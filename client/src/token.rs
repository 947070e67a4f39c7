//! What can be read from an access token without checking it: enough to fail early with a good hint.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kdbt_api::Timestamp;
use kdbt_api::lease::ClientIssuer;
use serde::Deserialize;

use crate::exit::{Code, Failure, Outcome};

/// The claims that the client looks at. The broker alone checks tokens.
#[derive(Debug, Deserialize)]
pub(crate) struct Claims {
    /// Who issued it.
    pub(crate) iss: String,
    /// Whom it is about; lightweight tokens have none.
    pub(crate) sub: Option<String>,
    #[serde(default)]
    aud: Audience,
    exp: Option<i64>,
    /// The session; callers without one are machines.
    pub(crate) sid: Option<String>,
    /// The name to show.
    pub(crate) preferred_username: Option<String>,
    /// What ties an ID token to its login.
    pub(crate) nonce: Option<String>,
    realm_access: Option<Roles>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(untagged)]
enum Audience {
    #[default]
    None,
    One(String),
    Many(Vec<String>),
}

#[derive(Debug, Deserialize)]
struct Roles {
    #[serde(default)]
    roles: Vec<String>,
}

impl Claims {
    /// Of a signed JWT, unchecked.
    pub(crate) fn read(token: &str) -> Outcome<Self> {
        let claims = match token.split('.').collect::<Vec<_>>().as_slice() {
            [_, payload, _] => URL_SAFE_NO_PAD.decode(payload).ok(),
            _ => None,
        };
        let claims = claims.and_then(|json| serde_json::from_slice(&json).ok());
        claims.ok_or_else(|| {
            Failure::new(Code::LoginNeeded, "the access token is not a signed JWT")
                .hint("pass an access token of Keycloak, without `Bearer` and without quotes")
        })
    }

    /// When it expires.
    pub(crate) fn expires_at(&self) -> Option<Timestamp> {
        self.exp.map(Timestamp::from_unix)
    }

    /// Whether the token is meant for this audience.
    pub(crate) fn is_for(&self, audience: &str) -> bool {
        match &self.aud {
            Audience::None => false,
            Audience::One(one) => one == audience,
            Audience::Many(many) => many.iter().any(|one| one == audience),
        }
    }

    /// The roles of the realm, for `whoami`.
    pub(crate) fn realm_roles(&self) -> &[String] {
        self.realm_access.as_ref().map_or(&[], |access| &access.roles)
    }

    /// That the token goes to whom it is meant for, or a broker could pass it on to another one (S17).
    pub(crate) fn check(&self, issuer: &ClientIssuer) -> Outcome<()> {
        if self.iss != issuer.issuer {
            return Err(Failure::new(
                Code::LoginNeeded,
                format!(
                    "the access token is from `{}`, the broker wants one from `{}`",
                    crate::output::clean(&self.iss),
                    issuer.issuer
                ),
            ));
        }
        if issuer.audiences.iter().any(|audience| self.is_for(audience)) {
            return Ok(());
        }
        Err(Failure::new(
            Code::LoginNeeded,
            format!(
                "the access token is not meant for this broker (audience {})",
                issuer.audiences.join(" or ")
            ),
        )
        .hint(format!(
            "in Keycloak, give the client `{}` an audience mapper for it; lightweight access tokens carry no audience",
            issuer.client_id
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(payload: &str) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(payload))
    }

    fn issuer() -> ClientIssuer {
        ClientIssuer {
            issuer: "https://sso/realms/data".into(),
            client_id: "kdbt-cli".into(),
            audiences: vec!["kdbt-broker".into()],
            scopes: vec![],
        }
    }

    #[test]
    fn a_token_for_another_audience_or_of_another_issuer_is_not_sent() {
        for (payload, good) in [
            (r#"{"iss":"https://sso/realms/data","aud":"kdbt-broker"}"#, true),
            (
                r#"{"iss":"https://sso/realms/data","aud":["account","kdbt-broker"]}"#,
                true,
            ),
            (r#"{"iss":"https://sso/realms/data","aud":"kdbt-broker-dev"}"#, false),
            (r#"{"iss":"https://sso/realms/data"}"#, false),
            (r#"{"iss":"https://sso/realms/other","aud":"kdbt-broker"}"#, false),
        ] {
            let claims = Claims::read(&token(payload)).unwrap();
            assert_eq!(claims.check(&issuer()).is_ok(), good, "{payload}");
        }
    }

    #[test]
    fn what_is_no_jwt_is_refused_without_being_quoted() {
        for text in ["", "hunter2", "a.b", "a.b.c.d", "e30.!!.c"] {
            let failure = Claims::read(text).unwrap_err();
            assert!(text.is_empty() || !failure.to_string().contains(text), "{text}");
        }
    }
}
