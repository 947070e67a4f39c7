//! Why a request is not authenticated: one stable code per rule, and nothing of the token in any text.

use std::fmt;
use std::sync::Arc;

use kdbt_api::problem::{Problem, ProblemCode};

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $code:literal, $answer:ident, $text:literal $(, $hint:literal)?;)*) => {
        /// The rule that refused a request. Rules are numbered as in `docs/security.md`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason {
            $($(#[$doc])* $variant,)*
        }

        impl Reason {
            /// All of them, for the documentation and its test.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The stable kebab-case code: a promise to programs.
            #[must_use]
            pub fn code(self) -> &'static str {
                match self { $(Self::$variant => $code,)* }
            }

            /// What is wrong, for people: lower case, no full stop, no quotation mark, nothing from the token.
            #[must_use]
            pub fn text(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// What cures it, where the cure is not plain from the text.
            #[must_use]
            pub fn hint(self) -> Option<&'static str> {
                match self { $(Self::$variant => reasons!(@hint $($hint)?),)* }
            }

            /// How it is answered.
            #[must_use]
            pub fn answer(self) -> Answer {
                match self { $(Self::$variant => Answer::$answer,)* }
            }
        }
    };
    (@hint) => { None };
    (@hint $hint:literal) => { Some($hint) };
}

/// The class of an answer: its status, and the `error` that RFC 6750 section 3.1 has for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// 401 without an `error`: no token was sent.
    TokenMissing,
    /// 401 with `error="invalid_token"`.
    TokenInvalid,
    /// 400 with `error="invalid_request"`: more than one token, or more than one way of sending it.
    Ambiguous,
    /// 403: the token is good, but its role claims cannot be read.
    Forbidden,
    /// 503: this issuer's keys cannot be had now.
    Unavailable,
}

reasons! {
    /// R1: no `Authorization` header. A token in the query, a form or a cookie counts as none.
    MissingToken = "missing-token", TokenMissing, "no access token in the Authorization header",
        "send the header Authorization: Bearer <access token>; kdbt-client login gets one";
    /// R1: another scheme than `Bearer` or `DPoP`.
    UnsupportedScheme = "unsupported-scheme", TokenMissing, "the authorization scheme is not Bearer",
        "send the header Authorization: Bearer <access token>";
    /// R1: two `Authorization` headers.
    SeveralHeaders = "several-authorization-headers", Ambiguous, "more than one Authorization header";
    /// R1: an `Authorization` header and `access_token` in the query.
    SeveralMethods = "several-token-methods", Ambiguous, "a token both in the Authorization header and in the query";
    /// R1: a comma list in one header.
    SeveralCredentials = "several-credentials", TokenInvalid, "more than one credential in the Authorization header";
    /// R1: a scheme without a token.
    EmptyToken = "empty-token", TokenInvalid, "the access token is empty";
    /// R1: the `DPoP` scheme; proofs are not verified by this broker.
    DpopScheme = "dpop-not-supported", TokenInvalid, "the DPoP scheme is not supported",
        "turn off DPoP-bound access tokens for this client; binding of its refresh tokens may stay on";
    /// R2: longer than the limit.
    TokenTooLong = "token-too-long", TokenInvalid, "the access token is too long",
        "map fewer roles and groups into the token: turn full scope off, and use the client roles of kdbt only";
    /// R2: five parts, a JWE.
    EncryptedToken = "encrypted-token", TokenInvalid, "the access token is encrypted",
        "turn off access token encryption for this client";
    /// R2: not three non-empty parts in strict base64url.
    MalformedToken = "malformed-token", TokenInvalid, "the access token is not a signed JWT";
    /// R9: the header is no strict JSON object.
    MalformedHeader = "malformed-header", TokenInvalid, "the token header is not a JSON object with unique names";
    /// R3: `alg` missing, `none`, a MAC, or not in this issuer's list.
    AlgorithmNotAllowed = "algorithm-not-allowed", TokenInvalid, "the signature algorithm is not allowed";
    /// R4: no `kid`, or one that cannot be.
    InvalidKeyId = "invalid-key-id", TokenInvalid, "the token names no key";
    /// R4: the header brings or names its own key (`jku`, `jwk`, `x5u`, `x5c`).
    KeyInHeader = "key-in-header", TokenInvalid, "the token header brings its own key";
    /// R4: the issuer does not publish this key.
    UnknownKey = "unknown-key", TokenInvalid, "the issuer does not publish the key of this token",
        "get a new token; after a key rotation the broker knows the new key within seconds";
    /// R5: `crit`.
    CriticalHeader = "critical-header", TokenInvalid, "the token header demands an extension";
    /// R5: `b64`, `zip`, `enc` or `cty`.
    UnsupportedHeader = "unsupported-header", TokenInvalid, "the token header has a member that access tokens do not have";
    /// R6: the header's `typ`.
    HeaderType = "header-type", TokenInvalid, "the header type is not that of an access token";
    /// R7: the issuer publishes the key, but not for this algorithm.
    KeyMismatch = "key-mismatch", TokenInvalid, "the key of this token is not for its algorithm";
    /// R8: the signature.
    BadSignature = "bad-signature", TokenInvalid, "the signature does not verify";
    /// R9: the payload is no strict JSON object.
    MalformedPayload = "malformed-payload", TokenInvalid, "the token payload is not a JSON object with unique names";
    /// R10: `iss` missing or not a string.
    InvalidIssuer = "invalid-issuer", TokenInvalid, "the token has no issuer";
    /// R10: `iss` is not byte-equal to a configured issuer.
    UnknownIssuer = "unknown-issuer", TokenInvalid, "the issuer of this token is not configured",
        "compare the iss claim with issuers[].issuer: host, port, path and the trailing slash must be equal";
    /// R11: `aud` missing.
    MissingAudience = "missing-audience", TokenInvalid, "the token has no audience",
        "add a mapper of type Audience for the broker to the client that gets the token";
    /// R11: `aud` is neither a string nor a non-empty array of strings.
    InvalidAudience = "invalid-audience", TokenInvalid, "the audience of the token is malformed";
    /// R11: `aud` without one of ours.
    WrongAudience = "wrong-audience", TokenInvalid, "the token is for another audience",
        "add a mapper of type Audience for the broker to the client that gets the token";
    /// R11, R18: neither subject nor audience nor roles: a lightweight access token.
    LightweightToken = "lightweight-token", TokenInvalid, "the token is a lightweight access token, without subject and audience",
        "turn off lightweight access tokens for this client, or switch on Add to lightweight access token in its mappers";
    /// R12: `exp` missing or not a number.
    InvalidExpiry = "invalid-expiry", TokenInvalid, "the token has no valid expiry";
    /// R12: past `exp`.
    Expired = "expired", TokenInvalid, "the token has expired", "get a new token";
    /// R13: `nbf` is not a number.
    InvalidNotBefore = "invalid-not-before", TokenInvalid, "the start of the token's validity is malformed";
    /// R13: before `nbf`.
    NotYetValid = "not-yet-valid", TokenInvalid, "the token is not valid yet",
        "compare the clocks of the broker and of the identity provider";
    /// R14: `iat` missing or not a number.
    InvalidIssuedAt = "invalid-issued-at", TokenInvalid, "the token does not say when it was issued";
    /// R14: `iat` lies ahead.
    IssuedInFuture = "issued-in-future", TokenInvalid, "the token was issued in the future",
        "compare the clocks of the broker and of the identity provider";
    /// R14: `iat` lies too far back.
    TokenTooOld = "token-too-old", TokenInvalid, "the token is too old", "get a new token";
    /// R14: `exp - iat` is above the limit.
    LifetimeTooLong = "lifetime-too-long", TokenInvalid, "the token lives longer than this broker accepts",
        "shorten the access token lifespan of the client, or raise max_token_lifetime of the issuer";
    /// R15: the payload's `typ` is not `Bearer`: an ID, refresh, offline or logout token.
    NotAnAccessToken = "not-an-access-token", TokenInvalid, "the token is not an access token",
        "send the access_token of the token response, not the id_token or the refresh_token";
    /// R16: claims that only ID tokens, logout tokens and events have.
    ForeignClaims = "foreign-claims", TokenInvalid, "the token has claims that an access token does not have",
        "send the access_token of the token response, not the id_token";
    /// R17: `azp` missing, or no client that may bring tokens here.
    UnauthorizedParty = "unauthorized-party", TokenInvalid, "the token was issued to a client that may not use this broker",
        "log in with kdbt-client; other clients must be listed in authorized_parties or, without a session, in service_clients";
    /// R18: `sub` missing or impossible.
    InvalidSubject = "invalid-subject", TokenInvalid, "the token has no valid subject",
        "give the client the default client scope basic, which brings sub since Keycloak 25; a lightweight token needs its mapper added";
    /// R19: `cnf`, or payload type `DPoP`.
    BoundToken = "bound-token", TokenInvalid, "the token is bound to a key, which this broker does not verify",
        "turn off DPoP-bound and certificate-bound access tokens for this client";
    /// R20: `act`.
    DelegatedToken = "delegated-token", TokenInvalid, "the token was issued for an impersonated session";
    /// R22: without the scope that the configuration requires.
    MissingScope = "missing-scope", TokenInvalid, "the token lacks the required scope",
        "ask for the scope that the configuration of the broker names in required_scope";
    /// A claim that decides something is of the wrong kind: `sid`, `jti`, `scope`, `auth_time`, `acr`.
    InvalidClaim = "invalid-claim", TokenInvalid, "a claim of the token is malformed";
    /// R23: a role or group claim is of the wrong kind or too long; no other claim makes up for it.
    InvalidRoles = "invalid-claims", Forbidden, "the role or group claims of the token cannot be read",
        "map roles and groups as lists of strings, at most 1000 in all";
    /// The issuer is configured, but its keys were never had or are too old.
    KeysUnavailable = "issuer-keys-unavailable", Unavailable, "the keys of the issuer are not available now";
}

/// A request that was not authenticated. No text of it holds a claim value or a byte of the token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthError {
    /// The rule.
    pub reason: Reason,
    /// The configured issuer that the token claimed to be from; for the log.
    pub issuer: Option<Arc<str>>,
}

impl AuthError {
    /// The HTTP status: 401, 400, 403 or 503.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self.reason.answer() {
            Answer::TokenMissing | Answer::TokenInvalid => 401,
            Answer::Ambiguous => 400,
            Answer::Forbidden => 403,
            Answer::Unavailable => 503,
        }
    }

    /// The value of `WWW-Authenticate` (RFC 6750 section 3); `None` where the status has none.
    #[must_use]
    pub fn www_authenticate(&self) -> Option<String> {
        let error = match self.reason.answer() {
            Answer::TokenMissing => return Some(r#"Bearer realm="kdbt""#.to_owned()),
            Answer::TokenInvalid => "invalid_token",
            Answer::Ambiguous => "invalid_request",
            Answer::Forbidden | Answer::Unavailable => return None,
        };
        let text = self.reason.text();
        Some(format!(
            r#"Bearer realm="kdbt", error="{error}", error_description="{text}""#
        ))
    }

    /// The problem document for the caller.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let code = match self.reason.answer() {
            Answer::TokenMissing => ProblemCode::TokenMissing,
            Answer::TokenInvalid => ProblemCode::TokenInvalid,
            Answer::Ambiguous => ProblemCode::AmbiguousCredentials,
            Answer::Forbidden => ProblemCode::PolicyDenied,
            Answer::Unavailable => ProblemCode::Unavailable,
        };
        let problem = Problem::new(code).detail(self.reason.text()).reason(self.reason.code());
        match self.reason.hint() {
            Some(hint) => problem.hint(hint),
            None => problem,
        }
    }
}

impl From<Reason> for AuthError {
    fn from(reason: Reason) -> Self {
        Self { reason, issuer: None }
    }
}

impl fmt::Display for AuthError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason.text())
    }
}

impl std::error::Error for AuthError {}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    // R25
    #[test]
    fn every_reason_has_a_code_of_its_own_in_kebab_case() {
        let codes: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.code()).collect();
        assert_eq!(codes.len(), Reason::ALL.len());
        for code in codes {
            assert!(
                code.split('-')
                    .all(|w| !w.is_empty() && w.bytes().all(|b| b.is_ascii_lowercase())),
                "{code}"
            );
        }
    }

    // RFC 6750 section 3: `error_description` takes neither quotation marks nor backslashes.
    #[test]
    fn every_text_fits_into_a_challenge() {
        for reason in Reason::ALL {
            let fits = |b: u8| matches!(b, 0x20..=0x21 | 0x23..=0x5b | 0x5d..=0x7e);
            assert!(reason.text().bytes().all(fits), "{reason:?}");
        }
    }

    // R25
    #[test]
    fn a_challenge_names_an_error_only_if_a_token_was_sent() {
        let challenge = |reason| AuthError::from(reason).www_authenticate();
        assert_eq!(
            challenge(Reason::MissingToken).as_deref(),
            Some(r#"Bearer realm="kdbt""#)
        );
        assert_eq!(
            challenge(Reason::Expired).as_deref(),
            Some(r#"Bearer realm="kdbt", error="invalid_token", error_description="the token has expired""#)
        );
        assert!(challenge(Reason::SeveralHeaders).is_some_and(|c| c.contains(r#"error="invalid_request""#)));
        assert_eq!(challenge(Reason::KeysUnavailable), None);
    }

    // R25
    #[test]
    fn the_status_of_an_answer_is_that_of_its_problem() {
        for reason in Reason::ALL {
            let error = AuthError::from(*reason);
            assert_eq!(error.status(), error.problem().status, "{reason:?}");
        }
    }

    #[test]
    fn a_token_that_lacks_what_keycloak_can_add_is_answered_with_the_cure() {
        assert!(
            Reason::MissingAudience
                .hint()
                .is_some_and(|hint| hint.contains("mapper of type Audience"))
        );
        assert!(
            Reason::LightweightToken
                .hint()
                .is_some_and(|hint| hint.contains("lightweight"))
        );
        assert!(Reason::InvalidSubject.hint().is_some_and(|hint| hint.contains("basic")));
    }
}
