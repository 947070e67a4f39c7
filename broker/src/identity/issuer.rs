//! What the configuration says about an issuer of tokens, checked once: a configured [`Issuer`] can be dialled.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use url::{Host, Url};

use super::jwks::Algorithm;

/// The claim kinds that an issuer always puts into its tokens in full. What a token of another kind does not say is
/// not known, so `deny` and `unless` may read only these: a thinner token must not lift a prohibition (S16).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Provides {
    /// `realm_roles`: `realm_access.roles`.
    pub realm_roles: bool,
    /// `client_roles`: `resource_access.<client>.roles`.
    pub client_roles: bool,
    /// `groups`: the claim `groups` with full paths.
    pub groups: bool,
    /// `claims.<name>`: these claims.
    pub claims: BTreeSet<String>,
}

/// A text that names no claim kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a claim kind: write `realm_roles`, `client_roles`, `groups` or `claims.<name>`")]
pub struct ProvidesError(pub String);

impl Provides {
    /// Reads the list of the configuration.
    pub fn from_kinds<'a>(kinds: impl IntoIterator<Item = &'a str>) -> Result<Self, ProvidesError> {
        let mut provides = Self::default();
        for kind in kinds {
            match (kind, kind.strip_prefix("claims.")) {
                ("realm_roles", _) => provides.realm_roles = true,
                ("client_roles", _) => provides.client_roles = true,
                ("groups", _) => provides.groups = true,
                (_, Some(claim)) if !claim.is_empty() => {
                    provides.claims.insert(claim.to_owned());
                }
                _ => return Err(ProvidesError(kind.to_owned())),
            }
        }
        Ok(provides)
    }
}

/// One issuer as configured. [`IssuerConfig::new`] has the defaults.
#[derive(Debug, Clone)]
pub struct IssuerConfig {
    /// The exact `iss` of its tokens, byte for byte (R10).
    pub issuer: String,
    /// A token must name one of these (R11). One per installation, else a token for one broker opens another.
    pub audiences: Vec<String>,
    /// The clients of people (R17).
    pub authorized_parties: Vec<String>,
    /// The clients whose tokens without a session are those of a workload.
    pub service_clients: Vec<String>,
    /// Which claim kinds are complete.
    pub provides: Provides,
    /// Where the keys are, if not where discovery says: inside a cluster, say.
    pub jwks_uri: Option<Url>,
    /// Where the metadata is, if not below the issuer. Its `issuer` must still be the configured one.
    pub discovery_url: Option<Url>,
    /// Certificates (PEM) to trust beside the system's when dialling this issuer.
    pub ca_pem: Option<String>,
    /// Whether the broker is ready only with this issuer's keys.
    pub required: bool,
    /// What its tokens may be signed with (R3).
    pub algorithms: Vec<Algorithm>,
    /// How long ago a token may have been issued (R14).
    pub max_token_age: Duration,
    /// How long a token may live from its issue to its expiry (R14).
    pub max_token_lifetime: Duration,
    /// Takes only tokens whose header says `at+jwt` (R6, RFC 9068).
    pub require_at_jwt: bool,
    /// A word that `scope` must hold (R22).
    pub required_scope: Option<String>,
}

impl IssuerConfig {
    /// An issuer with defaults and no audience or party yet.
    #[must_use]
    pub fn new(issuer: impl Into<String>) -> Self {
        Self {
            issuer: issuer.into(),
            audiences: Vec::new(),
            authorized_parties: Vec::new(),
            service_clients: Vec::new(),
            provides: Provides::default(),
            jwks_uri: None,
            discovery_url: None,
            ca_pem: None,
            required: true,
            algorithms: Algorithm::ALL.to_vec(),
            max_token_age: Duration::from_hours(1),
            max_token_lifetime: Duration::from_hours(1),
            require_at_jwt: false,
            required_scope: None,
        }
    }
}

/// Why an issuer cannot be used as configured.
#[derive(Debug, thiserror::Error)]
#[error("issuer `{issuer}`: {problem}")]
pub struct IssuerConfigError {
    /// As configured.
    pub issuer: String,
    /// What is wrong with it.
    #[source]
    pub problem: IssuerProblem,
}

/// What is wrong with a configured issuer.
#[derive(Debug, thiserror::Error)]
pub enum IssuerProblem {
    /// Not an absolute URL with a host.
    #[error("it is not an absolute URL without query and fragment, such as `https://sso.example/realms/data`")]
    NotAUrl,
    /// The same issuer twice.
    #[error("it is configured twice; give one entry both sets of clients")]
    Duplicate,
    /// No audience.
    #[error("`audiences` is empty or holds an empty name; name the audience that its tokens for this broker carry")]
    NoAudience,
    /// No client.
    #[error(
        "`authorized_parties` and `service_clients` are both empty or hold an empty name; name the clients whose tokens are taken"
    )]
    NoParty,
    /// No algorithm.
    #[error("`algorithms` is empty")]
    NoAlgorithm,
    /// A URL that would be dialled without TLS, off this machine.
    #[error("`{0}` is not https; plain http is for loopback addresses only")]
    Insecure(Url),
    /// A URL with a user or a password in it, which logs would show.
    #[error("a URL of it holds a user or a password; issuers publish their keys to everybody")]
    Credentials,
    /// The CA does not parse, or the system's certificates cannot be read.
    #[error("its certificates cannot be used; `ca_file` takes certificates in PEM")]
    Certificates(#[source] reqwest::Error),
}

/// Where an issuer's keys are found.
#[derive(Debug, Clone)]
pub(super) enum KeySource {
    /// At this address, as configured.
    Configured(Url),
    /// Where the metadata at this address says.
    Discovered(Url),
}

impl KeySource {
    /// What is dialled first.
    pub(super) fn url(&self) -> &Url {
        match self {
            Self::Configured(url) | Self::Discovered(url) => url,
        }
    }
}

/// An issuer whose configuration was checked.
#[derive(Debug)]
pub(super) struct Issuer {
    pub id: Arc<str>,
    pub url: Url,
    pub provides: Arc<Provides>,
    pub source: KeySource,
    pub config: IssuerConfig,
}

impl Issuer {
    pub(super) fn new(config: IssuerConfig) -> Result<Self, IssuerConfigError> {
        match Self::checked(&config) {
            Ok((url, source)) => Ok(Self {
                id: Arc::from(config.issuer.as_str()),
                url,
                provides: Arc::new(config.provides.clone()),
                source,
                config,
            }),
            Err(problem) => Err(IssuerConfigError {
                issuer: config.issuer,
                problem,
            }),
        }
    }

    fn checked(config: &IssuerConfig) -> Result<(Url, KeySource), IssuerProblem> {
        let url = Url::parse(&config.issuer).map_err(|_| IssuerProblem::NotAUrl)?;
        if !url.has_host() || url.query().is_some() || url.fragment().is_some() {
            return Err(IssuerProblem::NotAUrl);
        }
        let parties = || config.authorized_parties.iter().chain(&config.service_clients);
        if config.audiences.is_empty() || config.audiences.iter().any(String::is_empty) {
            return Err(IssuerProblem::NoAudience);
        }
        if parties().next().is_none() || parties().any(String::is_empty) {
            return Err(IssuerProblem::NoParty);
        }
        if config.algorithms.is_empty() {
            return Err(IssuerProblem::NoAlgorithm);
        }
        let source = match (&config.jwks_uri, &config.discovery_url) {
            (Some(keys), _) => KeySource::Configured(keys.clone()),
            (None, Some(metadata)) => KeySource::Discovered(metadata.clone()),
            (None, None) => KeySource::Discovered(below(&config.issuer)?),
        };
        let dialled = source.url();
        if [&url, dialled].into_iter().any(has_credentials) {
            return Err(IssuerProblem::Credentials);
        }
        if !may_be_dialled(dialled) {
            return Err(IssuerProblem::Insecure(dialled.clone()));
        }
        Ok((url, source))
    }
}

/// `OpenID` Connect Discovery section 4: the path is appended, and a trailing slash of the issuer is taken off first.
fn below(issuer: &str) -> Result<Url, IssuerProblem> {
    let metadata = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
    Url::parse(&metadata).map_err(|_| IssuerProblem::NotAUrl)
}

/// https anywhere, plain http on this machine only.
pub(super) fn may_be_dialled(url: &Url) -> bool {
    match url.scheme() {
        "https" => url.has_host(),
        "http" => is_loopback(url),
        _ => false,
    }
}

/// Whether a user or a password stands in this URL.
pub(super) fn has_credentials(url: &Url) -> bool {
    !url.username().is_empty() || url.password().is_some()
}

/// Whether this URL stays on this machine.
pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}
