//! The rules for the header and the claims of an access token; pure, and each names its own [`Reason`].
//!
//! They follow RFC 8725, RFC 9068 section 4 and what Keycloak's tokens look like. What a rule does not know it
//! refuses: a claim that decides something and is of the wrong kind is never read as absent.

use std::sync::Arc;
use std::time::Duration;

use kdbt_api::Timestamp;
use serde_json::{Map, Value};

use super::issuer::{Issuer, IssuerConfig};
use super::jwks::{Algorithm, MAX_KEY_ID_BYTES};
use super::reason::Reason;
use super::strict_json::parse_object;
use super::{Claims, Identity, Kind, Subject, plain_text};

/// How far the clocks of the issuer and the broker may differ.
pub(super) const SKEW: Duration = Duration::from_secs(10);
/// The last second of the year 9999.
const LAST_SECOND: f64 = 253_402_300_799.0;
/// How many roles and groups a token may name in all (R23).
const MAX_ROLES: usize = 1000;
/// The longest display name, in characters.
const MAX_DISPLAY_NAME: usize = 128;
/// The longest `sid` and `jti`, in bytes.
const MAX_ID_BYTES: usize = 255;
/// Members by which a header brings or names its own key (R4).
const KEY_MEMBERS: [&str; 4] = ["jku", "jwk", "x5u", "x5c"];
/// Members that change what is signed or how it is read (R5).
const CODING_MEMBERS: [&str; 4] = ["b64", "zip", "enc", "cty"];
/// Claims of ID tokens, logout tokens, security events and webhooks, which are signed with the same keys (R16).
const FOREIGN_CLAIMS: [&str; 7] = [
    "nonce",
    "at_hash",
    "c_hash",
    "s_hash",
    "events",
    "sub_id",
    "request_body_sha256",
];

/// What the header of an access token says.
pub(super) struct Header {
    pub algorithm: Algorithm,
    pub key_id: String,
    /// Whether its type is RFC 9068's.
    pub at_jwt: bool,
}

impl Header {
    /// R3 to R6, as far as they are the same for every issuer.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Reason> {
        let header = parse_object(bytes).map_err(|_| Reason::MalformedHeader)?;
        let algorithm = text(&header, "alg")
            .and_then(|name| name.parse().ok())
            .ok_or(Reason::AlgorithmNotAllowed)?;
        if header.contains_key("crit") {
            return Err(Reason::CriticalHeader);
        }
        if has_any(&header, &CODING_MEMBERS) {
            return Err(Reason::UnsupportedHeader);
        }
        if has_any(&header, &KEY_MEMBERS) {
            return Err(Reason::KeyInHeader);
        }
        let at_jwt = match header.get("typ") {
            None => false,
            Some(Value::String(kind)) => match kind.to_ascii_lowercase().as_str() {
                "jwt" => false,
                "at+jwt" | "application/at+jwt" => true,
                _ => return Err(Reason::HeaderType),
            },
            Some(_) => return Err(Reason::HeaderType),
        };
        let key_id = match text(&header, "kid") {
            Some(id) if !id.is_empty() && id.len() <= MAX_KEY_ID_BYTES => id.to_owned(),
            _ => return Err(Reason::InvalidKeyId),
        };
        Ok(Self {
            algorithm,
            key_id,
            at_jwt,
        })
    }

    /// R3 and R6, as this issuer's configuration has them.
    pub(super) fn check_for(&self, config: &IssuerConfig) -> Result<(), Reason> {
        if !config.algorithms.contains(&self.algorithm) {
            return Err(Reason::AlgorithmNotAllowed);
        }
        if config.require_at_jwt && !self.at_jwt {
            return Err(Reason::HeaderType);
        }
        Ok(())
    }
}

/// R9: the payload as a strict object.
pub(super) fn parse_payload(bytes: &[u8]) -> Result<Map<String, Value>, Reason> {
    parse_object(bytes).map_err(|_| Reason::MalformedPayload)
}

/// R10: the one string that picks the issuer. Not believed until the signature is checked with that issuer's key.
pub(super) fn claimed_issuer(claims: &Map<String, Value>) -> Result<&str, Reason> {
    text(claims, "iss").ok_or(Reason::InvalidIssuer)
}

/// R11 to R23 for a payload whose signature is good.
pub(super) fn check_claims(issuer: &Issuer, claims: Map<String, Value>, now: Timestamp) -> Result<Identity, Reason> {
    check_kind(&claims)?;
    let (issued_at, expires_at) = check_times(&claims, &issuer.config, now)?;
    check_audience(&claims, &issuer.config.audiences)?;
    let session = optional_id(&claims, "sid")?;
    let (azp, kind) = check_party(&claims, &issuer.config, session.as_deref())?;
    let subject: Subject = text(&claims, "sub")
        .and_then(|sub| sub.parse().ok())
        .ok_or(Reason::InvalidSubject)?;
    check_scope(&claims, issuer.config.required_scope.as_deref())?;
    check_login(&claims)?;
    let token_id = optional_id(&claims, "jti")?;
    check_roles(&claims)?;
    Ok(Identity {
        issuer: Arc::clone(&issuer.id),
        display_name: display_name(&claims, &subject),
        subject,
        azp,
        session,
        kind,
        token_id,
        issued_at,
        expires_at,
        claims: Claims {
            issuer: Arc::clone(&issuer.id),
            values: claims,
            provides: Arc::clone(&issuer.provides),
        },
    })
}

/// R15, R16, R19, R20: an access token of the person's own, bound to no key. A guarded claim that is null is there.
fn check_kind(claims: &Map<String, Value>) -> Result<(), Reason> {
    match text(claims, "typ") {
        Some("Bearer") => {}
        Some("DPoP") => return Err(Reason::BoundToken),
        _ => return Err(Reason::NotAnAccessToken),
    }
    if has_any(claims, &FOREIGN_CLAIMS) {
        return Err(Reason::ForeignClaims);
    }
    if claims.contains_key("cnf") {
        return Err(Reason::BoundToken);
    }
    if claims.contains_key("act") {
        return Err(Reason::DelegatedToken);
    }
    Ok(())
}

/// R12 to R14; when the token was issued and when it expires.
fn check_times(
    claims: &Map<String, Value>,
    config: &IssuerConfig,
    now: Timestamp,
) -> Result<(Timestamp, Timestamp), Reason> {
    let expires_at = claims.get("exp").and_then(numeric_date).ok_or(Reason::InvalidExpiry)?;
    if now >= expires_at + SKEW {
        return Err(Reason::Expired);
    }
    if let Some(not_before) = claims.get("nbf") {
        let not_before = numeric_date(not_before).ok_or(Reason::InvalidNotBefore)?;
        if not_before > now + SKEW {
            return Err(Reason::NotYetValid);
        }
    }
    let issued_at = claims
        .get("iat")
        .and_then(numeric_date)
        .ok_or(Reason::InvalidIssuedAt)?;
    if issued_at > now + SKEW {
        return Err(Reason::IssuedInFuture);
    }
    if now.since(issued_at) > config.max_token_age {
        return Err(Reason::TokenTooOld);
    }
    if expires_at <= issued_at {
        return Err(Reason::InvalidExpiry);
    }
    if expires_at.since(issued_at) > config.max_token_lifetime {
        return Err(Reason::LifetimeTooLong);
    }
    Ok((issued_at, expires_at))
}

/// R11.
fn check_audience(claims: &Map<String, Value>, ours: &[String]) -> Result<(), Reason> {
    let is_ours = |name: &str| ours.iter().any(|our| our == name);
    match claims.get("aud") {
        None if !has_any(claims, &["sub", "realm_access", "resource_access"]) => Err(Reason::LightweightToken),
        None => Err(Reason::MissingAudience),
        Some(Value::String(name)) if is_ours(name) => Ok(()),
        Some(Value::String(_)) => Err(Reason::WrongAudience),
        Some(list) => match texts(list).as_deref() {
            None | Some([]) => Err(Reason::InvalidAudience),
            Some(names) if names.iter().any(|name| is_ours(name)) => Ok(()),
            Some(_) => Err(Reason::WrongAudience),
        },
    }
}

/// R17. A workload is a service client's token *without* a session; a login through such a client is a person's, and
/// taken only if the client is a people's client too.
fn check_party(
    claims: &Map<String, Value>,
    config: &IssuerConfig,
    session: Option<&str>,
) -> Result<(String, Kind), Reason> {
    let azp = text(claims, "azp").ok_or(Reason::UnauthorizedParty)?;
    let listed = |clients: &[String]| clients.iter().any(|client| client == azp);
    let kind = match session {
        None if listed(&config.service_clients) => Kind::Service,
        _ if listed(&config.authorized_parties) => Kind::Person,
        _ => return Err(Reason::UnauthorizedParty),
    };
    Ok((azp.to_owned(), kind))
}

/// R22: a set of words, not a text to search in.
fn check_scope(claims: &Map<String, Value>, required: Option<&str>) -> Result<(), Reason> {
    let words = match claims.get("scope") {
        None => "",
        Some(Value::String(words)) => words,
        Some(_) => return Err(Reason::InvalidClaim),
    };
    match required {
        Some(required) if !words.split(' ').any(|word| word == required) => Err(Reason::MissingScope),
        _ => Ok(()),
    }
}

/// R21: what a step-up rule of the policy reads is of the right kind.
fn check_login(claims: &Map<String, Value>) -> Result<(), Reason> {
    let acr_fits = claims.get("acr").is_none_or(Value::is_string);
    let auth_time_fits = claims.get("auth_time").is_none_or(|at| numeric_date(at).is_some());
    if acr_fits && auth_time_fits {
        Ok(())
    } else {
        Err(Reason::InvalidClaim)
    }
}

/// R23: every role claim is a list of texts or absent, and all together are bounded. A broken one refuses the
/// request, so that no other claim can make up for it.
fn check_roles(claims: &Map<String, Value>) -> Result<(), Reason> {
    let mut count = 0;
    if let Some(realm) = claims.get("realm_access") {
        count += count_roles(realm)?;
    }
    if let Some(clients) = claims.get("resource_access") {
        for client in clients.as_object().ok_or(Reason::InvalidRoles)?.values() {
            count += count_roles(client)?;
        }
    }
    if let Some(groups) = claims.get("groups") {
        count += texts(groups).ok_or(Reason::InvalidRoles)?.len();
    }
    if count > MAX_ROLES {
        Err(Reason::InvalidRoles)
    } else {
        Ok(())
    }
}

fn count_roles(access: &Value) -> Result<usize, Reason> {
    match access.as_object().ok_or(Reason::InvalidRoles)?.get("roles") {
        None => Ok(0),
        Some(roles) => Ok(texts(roles).ok_or(Reason::InvalidRoles)?.len()),
    }
}

fn display_name(claims: &Map<String, Value>, subject: &Subject) -> String {
    let shown = |name| {
        text(claims, name)
            .map(|name| plain_text(name, MAX_DISPLAY_NAME))
            .filter(|name| !name.is_empty())
    };
    shown("preferred_username")
        .or_else(|| shown("name"))
        .unwrap_or_else(|| plain_text(subject.as_str(), MAX_DISPLAY_NAME))
}

fn optional_id(claims: &Map<String, Value>, name: &str) -> Result<Option<String>, Reason> {
    match claims.get(name) {
        None => Ok(None),
        Some(Value::String(id)) if is_id(id, MAX_ID_BYTES) => Ok(Some(id.clone())),
        Some(_) => Err(Reason::InvalidClaim),
    }
}

/// Non-empty, bounded, without control characters.
pub(super) fn is_id(text: &str, max_bytes: usize) -> bool {
    !text.is_empty() && text.len() <= max_bytes && !text.chars().any(char::is_control)
}

/// RFC 7519 section 2: seconds since the epoch, which need not be whole.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the range was checked in the line before"
)]
fn numeric_date(value: &Value) -> Option<Timestamp> {
    let seconds = value.as_f64().filter(|seconds| (0.0..=LAST_SECOND).contains(seconds))?;
    Some(Timestamp::from_unix_millis((seconds * 1000.0) as i64))
}

fn text<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    object.get(name).and_then(Value::as_str)
}

/// The texts of a list that holds nothing else.
fn texts(value: &Value) -> Option<Vec<&str>> {
    value.as_array()?.iter().map(Value::as_str).collect()
}

fn has_any(object: &Map<String, Value>, names: &[&str]) -> bool {
    names.iter().any(|name| object.contains_key(*name))
}
