//! One HTTP exchange with an account: what is dialled, which token goes along, what comes back and how much of it.

use std::io::Read;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use kdbt_api::Timestamp;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_ENCODING, DATE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, StatusCode};
use secrecy::ExposeSecret;
use serde_json::json;
use tokio::time::Instant;
use url::{Host, Url};
use uuid::Uuid;

use super::super::sql::ident;
use super::super::token::Signer;
use super::super::{SnowflakeConfig, SnowflakeError};
use super::answer::Body;
use crate::clock::SharedClock;

/// The longest body that is read, in bytes, after decompression: a page of 10 000 users has a few millions.
const MAX_BODY_BYTES: usize = 64 * 1024 * 1024;
/// The address is not one that the network policy lets in.
const KEPT_OUT: &str = "390422";
/// Clocks that agree to this are said to agree.
const SKEW_WORTH_NAMING: Duration = Duration::from_secs(5);

/// One request.
pub(super) enum Question<'a> {
    Submit {
        text: &'a str,
        request: Uuid,
        /// Whether the account has seen this request before.
        again: bool,
        until: Instant,
    },
    Ask {
        handle: &'a str,
        partition: Option<usize>,
    },
}

/// One answer, whatever it says.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Body,
    pub(super) date: Option<Timestamp>,
    pub(super) retry_after: Option<Duration>,
}

impl Answer {
    /// Whether a network policy keeps the broker's address out, for sure.
    fn is_by_network_policy(&self) -> bool {
        self.status != StatusCode::UNPROCESSABLE_ENTITY && self.body.code().as_deref() == Some(KEPT_OUT)
    }

    /// Whether it keeps the broker out whatever its token says.
    pub(super) fn keeps_out(&self) -> bool {
        self.status == StatusCode::FORBIDDEN || self.is_by_network_policy()
    }
}

/// Why an exchange brought no answer.
pub(super) enum Broken {
    /// There was no connection to send it on.
    BeforeSending(String),
    /// It may have arrived.
    Sent(String),
}

/// The way to one account.
pub(super) struct Wire {
    http: Client,
    statements: Url,
    role: String,
    user: String,
    signer: Signer,
    clock: SharedClock,
    /// What the account's clock was ahead of ours when it last refused a token, in milliseconds.
    skew: AtomicI64,
    request_timeout: Duration,
}

impl Wire {
    pub(super) fn new(config: &SnowflakeConfig, clock: SharedClock) -> Result<Self, SnowflakeError> {
        let base = base(config)?;
        let mut http = Client::builder()
            .timeout(config.request_timeout)
            .connect_timeout(config.connect_timeout)
            .redirect(Policy::none())
            .retry(reqwest::retry::never())
            .user_agent(concat!("kdbt/", env!("CARGO_PKG_VERSION")));
        if is_loopback(&base) {
            http = http.no_proxy();
        }
        if let Some(pem) = &config.ca_pem {
            let extra = Certificate::from_pem_bundle(pem.as_bytes()).map_err(SnowflakeError::Certificates)?;
            http = http.tls_certs_merge(extra);
        }
        Ok(Self {
            http: http.build().map_err(SnowflakeError::Certificates)?,
            statements: base.join("api/v2/statements").map_err(|_| SnowflakeError::Address)?,
            role: config.role.clone(),
            user: config.user.clone(),
            signer: Signer::new(&config.account, &config.user, &config.private_key)?,
            clock,
            skew: AtomicI64::new(0),
            request_timeout: config.request_timeout,
        })
    }

    /// The broker's own clock.
    pub(super) fn clock_now(&self) -> Timestamp {
        self.clock.now()
    }

    /// The public half of the key: base64 of the SPKI.
    pub(super) fn public_key(&self) -> &str {
        self.signer.public_key()
    }

    /// The account's time as far as it is known.
    pub(super) fn now(&self) -> Timestamp {
        self.clock.now().offset_by_millis(self.skew.load(Ordering::Relaxed))
    }

    /// Whom we tried to be, and how an administrator learns why it failed.
    pub(super) fn login_hint(&self, answer: &Answer) -> String {
        let (subject, user) = (self.signer.subject(), &self.user);
        if answer.keeps_out() {
            let either = if answer.is_by_network_policy() {
                "a network policy keeps the broker's address out"
            } else {
                "a network policy keeps the broker's address out, or the SQL API is not allowed"
            };
            return format!(
                "the account does not let `{subject}` in: {either}; SECURITYADMIN asks which by SHOW PARAMETERS LIKE \
                 'NETWORK_POLICY' IN USER {}, the same IN ACCOUNT, and DESCRIBE NETWORK POLICY",
                ident(user)
            );
        }
        let skew = self.skew.load(Ordering::Relaxed);
        let clock = if is_worth_naming(skew) {
            format!("; {}, which was allowed for", apart(skew))
        } else {
            String::new()
        };
        let ask = answer.body.login_failure().map_or(String::new(), |id| {
            format!("; ACCOUNTADMIN asks why by SELECT SYSTEM$GET_LOGIN_FAILURE_DETAILS('{id}')")
        });
        format!("the account does not let `{subject}` in{clock}{ask}")
    }

    /// The same once more, when it has been said.
    pub(super) fn still_refused(&self) -> String {
        format!("the account still does not let `{}` in", self.signer.subject())
    }

    /// A token that is refused may be too old or too new: the next is issued by the account's clock.
    pub(super) fn learn(&self, answer: &Answer) {
        let Some(date) = answer.date else { return };
        let skew = date.as_unix_millis().saturating_sub(self.clock.now().as_unix_millis());
        if is_worth_naming(skew) {
            tracing::warn!(skew_ms = skew, "{}; its tokens allow for that", apart(skew));
        }
        self.skew.store(skew, Ordering::Relaxed);
    }

    pub(super) async fn exchange(&self, question: &Question<'_>) -> Result<Answer, Broken> {
        let mut url = self.statements.clone();
        let request = match question {
            Question::Submit {
                text,
                request,
                again,
                until,
            } => {
                url.query_pairs_mut().append_pair("requestId", &request.to_string());
                if *again {
                    url.query_pairs_mut().append_pair("retry", "true");
                }
                // What runs past the caller's patience is stopped there, not left behind.
                let patience = until.saturating_duration_since(Instant::now()) + self.request_timeout;
                let body = json!({"statement": text, "timeout": patience.as_secs().max(1), "role": self.role});
                self.http.post(url).json(&body)
            }
            Question::Ask { handle, partition } => {
                if let Ok(mut path) = url.path_segments_mut() {
                    path.push(handle);
                }
                if let Some(n) = partition {
                    url.query_pairs_mut().append_pair("partition", &n.to_string());
                }
                self.http.get(url)
            }
        };
        let token = self.signer.token(self.now());
        let token = token.map_err(|error| Broken::BeforeSending(error.to_string()))?;
        let bearer = HeaderValue::from_str(&format!("Bearer {}", token.expose_secret()));
        let mut bearer = bearer.map_err(|_| Broken::BeforeSending("the token is no header".to_owned()))?;
        bearer.set_sensitive(true);
        let request = request
            .header(AUTHORIZATION, bearer)
            .header(ACCEPT, "application/json")
            .header("X-Snowflake-Authorization-Token-Type", "KEYPAIR_JWT");
        let mut response = request.send().await.map_err(|error| broken(&error))?;
        let (status, headers) = (response.status(), response.headers().clone());
        let mut bytes = Vec::new();
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|error| Broken::Sent(root_cause(&error)))?
        {
            if bytes.len() + chunk.len() > MAX_BODY_BYTES {
                return Err(too_long());
            }
            bytes.extend_from_slice(&chunk);
        }
        // Later partitions come compressed, asked for or not.
        if headers.get(CONTENT_ENCODING).is_some_and(|coding| coding == "gzip") {
            bytes = unpack(&bytes)?;
        }
        Ok(Answer {
            status,
            body: Body::read(&bytes),
            date: date(&headers),
            retry_after: retry_after(&headers),
        })
    }
}

fn is_worth_naming(skew: i64) -> bool {
    Duration::from_millis(skew.unsigned_abs()) > SKEW_WORTH_NAMING
}

/// Which clock is ahead, and by how much; `skew` is the account's less the broker's, in milliseconds.
fn apart(skew: i64) -> String {
    let way = if skew < 0 { "behind" } else { "ahead of" };
    format!(
        "the account's clock is {} s {way} the broker's",
        skew.unsigned_abs() / 1000
    )
}

/// What is dialled: the account's own address, or the one that the config names instead.
fn base(config: &SnowflakeConfig) -> Result<Url, SnowflakeError> {
    let Some(base) = &config.base_url else {
        let own = format!("https://{}/", config.account.host());
        return Url::parse(&own).map_err(|_| SnowflakeError::Address);
    };
    let plain = base.username().is_empty() && base.password().is_none() && base.query().is_none() && base.path() == "/";
    match base.scheme() {
        "https" if plain && base.has_host() => Ok(base.clone()),
        "http" if plain && is_loopback(base) => Ok(base.clone()),
        "http" if plain => Err(SnowflakeError::Insecure(base.clone())),
        _ => Err(SnowflakeError::Address),
    }
}

/// Whether this URL stays on this machine.
fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

fn broken(error: &reqwest::Error) -> Broken {
    if error.is_connect() || error.is_builder() {
        Broken::BeforeSending(root_cause(error))
    } else {
        Broken::Sent(root_cause(error))
    }
}

/// The last link of the chain says what happened; the ones before repeat the address.
fn root_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    if error.is_timeout() {
        "it took too long".to_owned()
    } else {
        cause.to_string()
    }
}

fn too_long() -> Broken {
    Broken::Sent(format!("the answer has more than {MAX_BODY_BYTES} bytes"))
}

fn unpack(bytes: &[u8]) -> Result<Vec<u8>, Broken> {
    let mut plain = Vec::new();
    let limit = u64::try_from(MAX_BODY_BYTES).unwrap_or(u64::MAX);
    let read = flate2::read::MultiGzDecoder::new(bytes)
        .take(limit + 1)
        .read_to_end(&mut plain);
    match read {
        Ok(length) if length <= MAX_BODY_BYTES => Ok(plain),
        Ok(_) => Err(too_long()),
        Err(_) => Err(Broken::Sent("the answer cannot be decompressed".to_owned())),
    }
}

/// RFC 9110 section 6.6.1.
fn date(headers: &HeaderMap) -> Option<Timestamp> {
    let text = headers.get(DATE)?.to_str().ok()?;
    let at = jiff::fmt::rfc2822::parse(text).ok()?;
    Some(at.timestamp().into())
}

/// RFC 9110 section 10.2.3, the form in seconds.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?;
    text.parse().ok().map(Duration::from_secs)
}
