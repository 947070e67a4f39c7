//! HTTP to one origin: bounded in time and size, no redirects, https off this machine.

use std::time::Duration;

use reqwest::{Certificate, RequestBuilder, StatusCode, redirect};
use serde::de::DeserializeOwned;
use url::Url;

use crate::exit::{Code, Failure, Outcome};
use crate::settings::{Settings, is_loopback, parse_url};

/// The largest answer that is read.
const MAX_BYTES: usize = 1024 * 1024;

/// An answer, read whole.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The status.
    pub(crate) status: StatusCode,
    /// `Retry-After`, where it is a number of seconds.
    pub(crate) retry_after: Option<Duration>,
    /// `Date`, as sent.
    pub(crate) date: Option<String>,
    body: Vec<u8>,
}

impl Answer {
    /// The body as JSON. Never quotes it.
    pub(crate) fn json<T: DeserializeOwned>(&self, what: &str) -> Outcome<T> {
        serde_json::from_slice(&self.body).map_err(|error| {
            let place = format!("line {}, column {}", error.line(), error.column());
            Failure::new(
                Code::Unreachable,
                format!("{what} is not what it should be ({place}: {:?})", error.classify()),
            )
            .hint("is this the right URL, and is the client as new as the broker?")
        })
    }
}

/// A client for the origin of one URL.
#[derive(Debug, Clone)]
pub(crate) struct Http {
    client: reqwest::Client,
    origin: String,
}

impl Http {
    /// For requests to where `url` points.
    pub(crate) fn new(settings: &Settings, url: &Url) -> Outcome<Self> {
        let mut builder = reqwest::Client::builder()
            .redirect(redirect::Policy::none())
            .connect_timeout(Duration::from_secs(10))
            .timeout(Duration::from_secs(40))
            .https_only(url.scheme() == "https")
            .user_agent(concat!("kdbt-client/", env!("CARGO_PKG_VERSION")));
        if is_loopback(url) {
            builder = builder.no_proxy();
        }
        if let Some(path) = &settings.ca_file {
            let pem =
                std::fs::read(path).map_err(|error| Failure::file("read", path, &error).with_code(Code::Usage))?;
            let certificates = Certificate::from_pem_bundle(&pem)
                .ok()
                .filter(|found| !found.is_empty());
            let certificates = certificates
                .ok_or_else(|| Failure::new(Code::Usage, format!("`{}` holds no PEM certificate", path.display())))?;
            builder = builder.tls_certs_only(certificates);
        } else if url.scheme() == "http" {
            // No TLS will happen: the system's authorities need not be read.
            builder = builder.tls_certs_only([]);
        }
        let client = builder.build().map_err(|error| {
            Failure::new(Code::Failed, format!("cannot prepare TLS: {}", causes(&error)))
                .hint("install the system's certificates (ca-certificates), or set KDBT_CA_FILE")
        })?;
        Ok(Self {
            client,
            origin: url.origin().ascii_serialization(),
        })
    }

    /// The client that makes requests.
    pub(crate) fn client(&self) -> &reqwest::Client {
        &self.client
    }

    /// Sends and reads the answer whole. `Err` means that there was none.
    pub(crate) async fn send(&self, request: RequestBuilder) -> Outcome<Answer> {
        let unreachable = |error: &reqwest::Error| {
            Failure::new(
                Code::Unreachable,
                format!("cannot reach {}: {}", self.origin, causes(error)),
            )
            .hint("check the URL and the network; behind a private CA set KDBT_CA_FILE")
        };
        let mut response = request.send().await.map_err(|error| unreachable(&error))?;
        let header = |name: &str| {
            response
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned)
        };
        let retry_after = header("retry-after")
            .and_then(|text| text.parse().ok())
            .map(Duration::from_secs);
        let date = header("date");
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| unreachable(&error))? {
            if body.len() + chunk.len() > MAX_BYTES {
                return Err(Failure::new(
                    Code::Unreachable,
                    format!("{} answered more than 1 MiB", self.origin),
                ));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer {
            status: response.status(),
            retry_after,
            date,
            body,
        })
    }
}

/// A URL that somebody else named, held to the rules of our own.
pub(crate) fn foreign_url(text: &str, what: &str) -> Outcome<Url> {
    parse_url(text, what).map_err(|failure| failure.with_code(Code::Failed))
}

/// An error with its causes but without its URL, which may hold more than a reader should see.
fn causes(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".into();
    }
    let mut cause = std::error::Error::source(error);
    let mut text = "the connection failed".to_owned();
    // The deepest cause says what happened; the ones above repeat it.
    while let Some(inner) = cause {
        text = inner.to_string();
        cause = inner.source();
    }
    crate::output::clean(&text)
}
