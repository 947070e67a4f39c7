//! Who sends a request: from an `Authorization` header to a verified [`Identity`], or one stable [`Reason`].
//!
//! Every rule is our own. The JWT library verifies signatures and nothing else, because its checks of claims take a
//! missing audience, a list for an issuer or any `typ`. Nothing of a token is in reach of a log or an error here.

mod bearer;
pub mod doctor;
mod fetch;
mod issuer;
mod jwks;
mod keys;
mod reason;
mod rules;
mod strict_json;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use kdbt_api::Timestamp;
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::bearer::AuthorizationHeader;
pub use self::issuer::{IssuerConfig, IssuerConfigError, IssuerProblem, Provides, ProvidesError};
pub use self::jwks::{Algorithm, AlgorithmError};
pub use self::keys::IssuerHealth;
pub use self::reason::{Answer, AuthError, Reason};

use self::bearer::CompactToken;
use self::fetch::Fetcher;
use self::issuer::Issuer;
use self::keys::IssuerKeys;
use self::rules::Header;
use crate::clock::SharedClock;

/// The longest subject, in bytes (`OpenID` Connect Core section 2).
const MAX_SUBJECT_BYTES: usize = 255;

/// A verified access token, reduced to what kdbt uses. A person is `issuer` and `subject`, nothing else.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Who vouches for it; byte-equal to a configured issuer.
    pub issuer: Arc<str>,
    /// Who it is, for that issuer.
    pub subject: Subject,
    /// For people to read, never to decide by: it can change and be given to somebody else. At most 128 characters,
    /// none of them a control or bidirectional formatting character.
    pub display_name: String,
    /// The client that got the token; one that the configuration lists.
    pub azp: String,
    /// The login session at the issuer (`sid`), which ends with a logout. A workload has none.
    pub session: Option<String>,
    /// Person or workload.
    pub kind: Kind,
    /// `jti`, for the log.
    pub token_id: Option<String>,
    /// `iat`.
    pub issued_at: Timestamp,
    /// `exp`.
    pub expires_at: Timestamp,
    /// What the policy reads roles and attributes from.
    pub claims: Claims,
}

/// Whether a token is that of a person or of a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Came through one of the issuer's `authorized_parties`.
    Person,
    /// Came through one of its `service_clients`, without a session.
    Service,
}

/// The issuer's name for a person or workload: not empty, at most 255 bytes, no control characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subject(String);

impl Subject {
    /// The text of `sub`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text that cannot be a subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a subject has 1 to {MAX_SUBJECT_BYTES} bytes and no control characters")]
pub struct SubjectError;

impl FromStr for Subject {
    type Err = SubjectError;

    fn from_str(text: &str) -> Result<Self, SubjectError> {
        if rules::is_id(text, MAX_SUBJECT_BYTES) {
            Ok(Self(text.to_owned()))
        } else {
            Err(SubjectError)
        }
    }
}

/// The verified payload, and which claim kinds this issuer always gives in full.
///
/// `realm_access`, `resource_access` and `groups` are of the right kind where they are there at all (R23).
#[derive(Clone)]
pub struct Claims {
    /// The issuer.
    pub issuer: Arc<str>,
    /// The payload; no name stands twice in it.
    pub values: Map<String, Value>,
    /// What `deny` and `unless` may read.
    pub provides: Arc<Provides>,
}

impl fmt::Debug for Claims {
    /// Names only: values are personal data, and logs are read by many.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claims")
            .field("issuer", &self.issuer)
            .field("names", &self.values.keys())
            .finish_non_exhaustive()
    }
}

/// A name as people may see it: without characters that control or reorder what stands around them.
fn plain_text(text: &str, max_chars: usize) -> String {
    let shown = |c: &char| !c.is_control() && !is_invisible(*c);
    text.chars()
        .filter(shown)
        .take(max_chars)
        .collect::<String>()
        .trim()
        .to_owned()
}

/// Bidirectional formatting, zero-width characters, line and paragraph separators, byte order mark.
fn is_invisible(c: char) -> bool {
    matches!(
        c,
        '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
    )
}

/// Whether the broker can verify tokens now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readiness {
    /// Required issuers without usable keys; the broker is ready if there is none.
    pub waiting_for: Vec<Arc<str>>,
}

impl Readiness {
    /// Whether every required issuer has keys.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.waiting_for.is_empty()
    }
}

/// Verifies access tokens of the configured issuers. Cheap to clone; all clones share the keys.
#[derive(Clone)]
pub struct Authenticator {
    issuers: Arc<[Arc<IssuerKeys>]>,
    clock: SharedClock,
    max_token_bytes: usize,
}

impl Authenticator {
    /// The longest token unless configured: those of people with hundreds of roles fit in.
    pub const DEFAULT_MAX_TOKEN_BYTES: usize = 32 * 1024;

    /// Checks the configuration and starts one task per issuer, on `tasks`, that keeps its keys fresh until `stop`.
    /// Needs a tokio runtime; makes no network call itself, so a dead issuer does not keep the broker from starting.
    pub fn new(
        configs: Vec<IssuerConfig>,
        clock: SharedClock,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<Self, IssuerConfigError> {
        let mut issuers: Vec<Arc<IssuerKeys>> = Vec::with_capacity(configs.len());
        for config in configs {
            let issuer = Arc::new(Issuer::new(config)?);
            let failed = |problem| IssuerConfigError {
                issuer: issuer.config.issuer.clone(),
                problem,
            };
            if issuers.iter().any(|other| other.issuer.id == issuer.id) {
                return Err(failed(IssuerProblem::Duplicate));
            }
            let fetcher = Fetcher::new(Arc::clone(&issuer)).map_err(failed)?;
            issuers.push(Arc::new(IssuerKeys::new(
                issuer,
                fetcher,
                Arc::clone(&clock),
                stop.clone(),
            )));
        }
        for keys in &issuers {
            tasks.spawn(Arc::clone(keys).keep_fresh());
        }
        Ok(Self {
            issuers: issuers.into(),
            clock,
            max_token_bytes: Self::DEFAULT_MAX_TOKEN_BYTES,
        })
    }

    /// With another limit for tokens, in bytes (R2).
    #[must_use]
    pub fn with_max_token_bytes(self, max_token_bytes: usize) -> Self {
        Self {
            max_token_bytes,
            ..self
        }
    }

    /// Who sends a request with this header. May wait for one fetch of the issuer's keys, a few seconds at most; a
    /// token of an issuer that is not configured never causes one.
    pub async fn authenticate(&self, authorization: AuthorizationHeader) -> Result<Identity, AuthError> {
        let token = CompactToken::parse(authorization.token()?, self.max_token_bytes)?;
        let header = Header::parse(&token.header)?;
        let claims = rules::parse_payload(&token.payload)?;
        let id = rules::claimed_issuer(&claims)?;
        let keys = self
            .issuers
            .iter()
            .find(|keys| *keys.issuer.id == *id)
            .ok_or(Reason::UnknownIssuer)?;
        let outcome = async {
            header.check_for(&keys.issuer.config)?;
            verify(keys, &header, &token).await?;
            rules::check_claims(&keys.issuer, claims, self.clock.now())
        };
        outcome.await.map_err(|reason| AuthError {
            reason,
            issuer: Some(Arc::clone(&keys.issuer.id)),
        })
    }

    /// Whether every required issuer has keys. One that is not required does not stop the others.
    #[must_use]
    pub fn ready(&self) -> Readiness {
        let waiting = self
            .issuers()
            .into_iter()
            .filter(|health| health.required && health.keys == 0);
        Readiness {
            waiting_for: waiting.map(|health| health.issuer).collect(),
        }
    }

    /// The health of every issuer, in the order of the configuration; for the management page, not for callers.
    #[must_use]
    pub fn issuers(&self) -> Vec<IssuerHealth> {
        self.issuers.iter().map(|keys| keys.health()).collect()
    }
}

/// R4, R7, R8: the issuer publishes the key, the key is for this algorithm, and it made the signature.
async fn verify(keys: &IssuerKeys, header: &Header, token: &CompactToken<'_>) -> Result<(), Reason> {
    let loaded = keys.with_id(&header.key_id).await?;
    let mut fitting = loaded
        .keys
        .with_id(&header.key_id)
        .filter(|key| key.is_for(header.algorithm))
        .peekable();
    if fitting.peek().is_none() {
        return Err(Reason::KeyMismatch);
    }
    if fitting.any(|key| key.verifies(header.algorithm, token.signed, token.signature)) {
        Ok(())
    } else {
        Err(Reason::BadSignature)
    }
}

#[cfg(test)]
mod tests;
