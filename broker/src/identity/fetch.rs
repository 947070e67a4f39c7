//! Gets an issuer's keys over HTTP: a bounded body, a time limit, no redirect, and no address that neither the
//! configuration nor the issuer's own origin vouches for.

use std::sync::Arc;
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, StatusCode};
use url::Url;

use super::issuer::{Issuer, IssuerProblem, KeySource, has_credentials, is_loopback, may_be_dialled};
use super::jwks::{KeySet, KeySetError};
use super::strict_json::{StrictJsonError, parse_object};

/// For one document, from the connection to the last byte.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The longest document that is read, in bytes.
const MAX_BODY_BYTES: usize = 256 * 1024;
/// How much of a foreign `issuer` an error quotes, in characters.
const MAX_QUOTE: usize = 200;

/// Why an issuer's keys could not be had. For the log and the management page, never for callers.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("{url} cannot be reached: {}", root_cause(.source))]
    Unreachable { url: Url, source: reqwest::Error },
    #[error("{url} answers {status}; redirects are not followed")]
    Status { url: Url, status: StatusCode },
    #[error("{url} answers with more than {MAX_BODY_BYTES} bytes")]
    TooLong { url: Url },
    #[error("the metadata at {url} is {source}")]
    Metadata { url: Url, source: StrictJsonError },
    #[error(
        "the metadata at {url} is that of issuer `{announced}`, configured is `{configured}`; \
         set `issuer` to what the tokens carry, and `hostname` in Keycloak so that both agree"
    )]
    OtherIssuer {
        url: Url,
        announced: String,
        configured: Arc<str>,
    },
    #[error("the metadata at {url} has no valid `jwks_uri`")]
    NoKeyAddress { url: Url },
    #[error("the metadata points to keys at {keys}, on another origin; if that is right, configure it as `jwks_uri`")]
    ForeignKeyAddress { keys: Url },
    #[error("{url} is not https; plain http is for loopback addresses only")]
    Insecure { url: Url },
    #[error("{url}: {source}")]
    Keys { url: Url, source: KeySetError },
}

/// The last link of the chain says what happened; the ones before only repeat the address.
pub(super) fn root_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

/// A client for this address: a time limit for each answer, no redirect, these certificates beside the system's.
pub(super) fn client(url: &Url, ca_pem: Option<&str>, timeout: Duration) -> Result<Client, reqwest::Error> {
    let mut client = Client::builder()
        .timeout(timeout)
        .redirect(Policy::none())
        .user_agent("kdbt-broker");
    if is_loopback(url) {
        client = client.no_proxy();
    }
    if let Some(pem) = ca_pem {
        client = client.tls_certs_merge(Certificate::from_pem_bundle(pem.as_bytes())?);
    }
    client.build()
}

/// Gets the keys of one issuer.
#[derive(Debug)]
pub(super) struct Fetcher {
    client: Client,
    issuer: Arc<Issuer>,
}

impl Fetcher {
    pub(super) fn new(issuer: Arc<Issuer>) -> Result<Self, IssuerProblem> {
        Self::with_timeout(issuer, TIMEOUT)
    }

    /// With another time limit for each document.
    pub(super) fn with_timeout(issuer: Arc<Issuer>, timeout: Duration) -> Result<Self, IssuerProblem> {
        let ca_pem = issuer.config.ca_pem.as_deref();
        let client = client(issuer.source.url(), ca_pem, timeout).map_err(IssuerProblem::Certificates)?;
        Ok(Self { client, issuer })
    }

    /// The issuer's keys as they are now; through discovery each time, so that a moved key set is followed.
    pub(super) async fn keys(&self) -> Result<KeySet, FetchError> {
        let url = match &self.issuer.source {
            KeySource::Configured(keys) => keys.clone(),
            KeySource::Discovered(metadata) => self.discover(metadata).await?,
        };
        let document = self.get(&url).await?;
        KeySet::parse(&document).map_err(|source| FetchError::Keys { url, source })
    }

    async fn discover(&self, url: &Url) -> Result<Url, FetchError> {
        let url = url.clone();
        let document = self.get(&url).await?;
        let metadata = match parse_object(&document) {
            Ok(metadata) => metadata,
            Err(source) => return Err(FetchError::Metadata { url, source }),
        };
        let text = |name: &str| metadata.get(name).and_then(serde_json::Value::as_str);
        let announced = text("issuer").unwrap_or_default();
        if announced != &*self.issuer.id {
            let announced = announced.chars().take(MAX_QUOTE).flat_map(char::escape_debug).collect();
            return Err(FetchError::OtherIssuer {
                url,
                announced,
                configured: Arc::clone(&self.issuer.id),
            });
        }
        let keys = text("jwks_uri").and_then(|keys| Url::parse(keys).ok());
        let Some(keys) = keys.filter(|keys| !has_credentials(keys)) else {
            return Err(FetchError::NoKeyAddress { url });
        };
        let vouched = [&self.issuer.url, &url]
            .iter()
            .any(|known| known.origin() == keys.origin());
        if vouched {
            Ok(keys)
        } else {
            Err(FetchError::ForeignKeyAddress { keys })
        }
    }

    async fn get(&self, url: &Url) -> Result<Vec<u8>, FetchError> {
        if !may_be_dialled(url) {
            return Err(FetchError::Insecure { url: url.clone() });
        }
        let unreachable = |source: reqwest::Error| FetchError::Unreachable {
            url: url.clone(),
            source: source.without_url(),
        };
        let mut response = self.client.get(url.clone()).send().await.map_err(unreachable)?;
        if response.status() != StatusCode::OK {
            return Err(FetchError::Status {
                url: url.clone(),
                status: response.status(),
            });
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            if body.len() + chunk.len() > MAX_BODY_BYTES {
                return Err(FetchError::TooLong { url: url.clone() });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }
}
