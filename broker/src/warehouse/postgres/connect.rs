//! Connections that mean what they say: every setting that could change the meaning of a statement is pinned at the
//! start, read back, and refused if it differs (S1). One message, one answer, one time limit.

use std::fmt::Write as _;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use secrecy::ExposeSecret;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_postgres::error::{DbError, Severity};
use tokio_postgres::{AsyncMessage, Client, Connection, NoTls, SimpleQueryMessage, SimpleQueryRow};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::plan::BROKER;
use super::sql::{self, ANOTHER_ROLE, Era, ROAD_TO_LOGIN, ROW_POLICY, Step};
use super::{PostgresConfig, Tls};
use crate::warehouse::WarehouseError;

/// What went wrong with one message.
#[derive(Debug, Clone)]
pub(super) enum Failure {
    /// Whether the server acted on it is not known, unless it was never sent.
    Lost(String),
    /// The server refused the message whole: nothing of it holds.
    Refused {
        what: &'static str,
        code: String,
        /// Names and paths, only where the text is one of our own statements'.
        hint: Option<String>,
    },
    /// It holds, but the server warned, as it does when a grant has no effect.
    Warned { what: &'static str, code: String },
    /// The server is not as it must be.
    Unsafe(String),
}

impl Failure {
    pub(super) fn code(&self) -> &str {
        match self {
            Self::Refused { code, .. } | Self::Warned { code, .. } => code,
            Self::Lost(_) | Self::Unsafe(_) => "",
        }
    }

    /// With what stands in the way, for operators.
    pub(super) fn with_hint(mut self, text: String) -> Self {
        if let Self::Refused { hint, .. } = &mut self
            && !text.is_empty()
        {
            *hint = Some(text);
        }
        self
    }

    /// Tuple updated by somebody else, deadlock, lock timeout: the same may work a moment later.
    pub(super) fn is_transient(&self) -> bool {
        matches!(self.code(), "XX000" | "40P01" | "55P03")
    }
}

impl From<Failure> for WarehouseError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Lost(why) => Self::Unreachable(why),
            Failure::Refused { code, .. } if code == ANOTHER_ROLE => Self::Gone,
            Failure::Refused { code, hint, .. } if code == ROAD_TO_LOGIN => Self::Unsafe(format!(
                "the user could act as a role that can log in: {}; a DBA must revoke a step of that path",
                hint.unwrap_or_default()
            )),
            Failure::Refused { code, hint, .. } if code == ROW_POLICY => Self::Unsafe(format!(
                "a row policy names a role of the user, which could drop it: {}; a DBA must write it TO PUBLIC, with \
                 pg_has_role() in USING",
                hint.unwrap_or_default()
            )),
            Failure::Refused { what, code, hint } => Self::Server { what, code, hint },
            Failure::Warned { what, code } => Self::Server {
                what,
                code,
                hint: Some("the server only warned, so a grant may have no effect".to_owned()),
            },
            Failure::Unsafe(why) => Self::Unsafe(why),
        }
    }
}

/// Time limits of one kind of connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) lock: Duration,
    pub(super) statement: Duration,
}

/// Opens connections to one server.
#[derive(Clone)]
pub(super) struct Connector {
    pub(super) config: Arc<PostgresConfig>,
    tasks: TaskTracker,
    closed: CancellationToken,
}

impl Connector {
    pub(super) fn new(config: Arc<PostgresConfig>, tasks: TaskTracker, closed: CancellationToken) -> Self {
        Self { config, tasks, closed }
    }

    /// A connection to the database, pinned and checked.
    pub(super) async fn open(&self, database: &str, limits: Limits) -> Result<Link, Failure> {
        let within = self.config.connect_timeout;
        match tokio::time::timeout(within, self.open_unlimited(database, limits)).await {
            Ok(link) => link,
            Err(_) => Err(Failure::Lost(format!("no connection within {} s", within.as_secs()))),
        }
    }

    async fn open_unlimited(&self, database: &str, limits: Limits) -> Result<Link, Failure> {
        let config = &self.config;
        let pins = pins(limits);
        let mut options = String::new();
        for (name, value) in &pins {
            // The server takes a space apart; no value of ours holds one.
            let _ = write!(options, "-c {name}={value} ");
        }
        let mut dial = tokio_postgres::Config::new();
        dial.host(&config.host)
            .port(config.port)
            .user(&config.user)
            .password(config.password.expose_secret())
            .dbname(database)
            .application_name("kdbt-broker")
            .connect_timeout(config.connect_timeout)
            .keepalives_idle(Duration::from_secs(30))
            .options(options.trim_end());
        let warnings = Arc::default();
        let client = match &config.tls {
            Tls::Plain => {
                dial.ssl_mode(tokio_postgres::config::SslMode::Disable);
                let (client, connection) = dial.connect(NoTls).await.map_err(|error| lost(&error))?;
                self.drive(connection, Arc::clone(&warnings));
                client
            }
            Tls::VerifyFull { ca_pem } => {
                dial.ssl_mode(tokio_postgres::config::SslMode::Require);
                let tls = MakeRustlsConnect::new(tls_config(ca_pem.as_deref())?);
                let (client, connection) = dial.connect(tls).await.map_err(|error| lost(&error))?;
                self.drive(connection, Arc::clone(&warnings));
                client
            }
        };
        let mut link = Link {
            client,
            era: Era::From16,
            version: 0,
            warnings,
            broken: AtomicBool::new(false),
            within: limits.statement + Duration::from_secs(2),
        };
        link.verify(&pins).await?;
        Ok(link)
    }

    /// Reads what the server sends until the client is dropped. Of a notice only the code is kept.
    fn drive<S, T>(&self, mut connection: Connection<S, T>, warnings: Arc<Mutex<Vec<String>>>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        const KEPT: usize = 16;
        let closed = self.closed.clone();
        self.tasks.spawn(async move {
            let read = async {
                while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
                    if let AsyncMessage::Notice(notice) = message
                        && notice.parsed_severity() == Some(Severity::Warning)
                    {
                        let mut warnings = warnings.lock().unwrap_or_else(PoisonError::into_inner);
                        if warnings.len() < KEPT {
                            warnings.push(notice.code().code().to_owned());
                        }
                    }
                }
            };
            closed.run_until_cancelled(read).await;
        });
    }
}

/// The settings that every connection pins in its startup options, which win over those of role and database.
fn pins(limits: Limits) -> Vec<(&'static str, String)> {
    let millis = |limit: Duration| limit.as_millis().to_string();
    vec![
        ("search_path", "pg_catalog,pg_temp".to_owned()),
        ("default_transaction_read_only", "off".to_owned()),
        ("default_transaction_deferrable", "off".to_owned()),
        ("default_transaction_isolation", r"read\ committed".to_owned()),
        ("standard_conforming_strings", "on".to_owned()),
        ("backslash_quote", "off".to_owned()),
        ("TimeZone", "UTC".to_owned()),
        ("DateStyle", "ISO".to_owned()),
        ("IntervalStyle", "postgres".to_owned()),
        ("lock_timeout", millis(limits.lock)),
        ("statement_timeout", millis(limits.statement)),
        ("idle_in_transaction_session_timeout", "5000".to_owned()),
    ]
}

/// One connection. Every message on it is whole: no transaction is left open between two.
pub(super) struct Link {
    client: Client,
    pub(super) era: Era,
    pub(super) version: u32,
    warnings: Arc<Mutex<Vec<String>>>,
    /// An answer is owed: what is read next may belong to it.
    broken: AtomicBool,
    within: Duration,
}

impl Link {
    pub(super) fn is_usable(&self) -> bool {
        !self.broken.load(Ordering::Relaxed) && !self.client.is_closed()
    }

    /// Sends one message and reads its answer: the rows of all its statements, as text.
    pub(super) async fn query(&self, what: &'static str, sql: &str) -> Result<Vec<SimpleQueryRow>, Failure> {
        if !self.is_usable() {
            return Err(Failure::Lost("the connection was lost".to_owned()));
        }
        // Stays so if we run out of time, or our caller drops us.
        self.broken.store(true, Ordering::Relaxed);
        let answer = tokio::time::timeout(self.within, self.client.simple_query(sql)).await;
        let Ok(answer) = answer else {
            return Err(Failure::Lost(format!("no answer within {} s", self.within.as_secs())));
        };
        self.broken.store(false, Ordering::Relaxed);
        let warnings = std::mem::take(&mut *self.warnings.lock().unwrap_or_else(PoisonError::into_inner));
        let messages = answer.map_err(|error| refused(what, &error))?;
        if let Some(code) = warnings.into_iter().next() {
            return Err(Failure::Warned { what, code });
        }
        let rows = messages.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            SimpleQueryMessage::RowDescription(_) | SimpleQueryMessage::CommandComplete(_) | _ => None,
        });
        Ok(rows.collect())
    }

    /// Sends the steps as one message.
    pub(super) async fn run(&self, what: &'static str, steps: &[Step]) -> Result<Vec<SimpleQueryRow>, Failure> {
        self.query(what, &sql::message(steps, self.era)).await
    }

    /// The same, again for a bounded number of times where a moment may help.
    pub(super) async fn run_again(&self, what: &'static str, steps: &[Step]) -> Result<Vec<SimpleQueryRow>, Failure> {
        const TRIES: u32 = 5;
        let mut tried = 1;
        loop {
            match self.run(what, steps).await {
                Err(failure) if failure.is_transient() && tried < TRIES => {
                    tokio::time::sleep(Duration::from_millis(20) * 2_u32.pow(tried)).await;
                    tried += 1;
                }
                result => return result,
            }
        }
    }

    async fn verify(&mut self, pins: &[(&'static str, String)]) -> Result<(), Failure> {
        let settings: Vec<String> = pins
            .iter()
            .map(|(name, _)| format!("pg_catalog.current_setting({})", sql::literal(name)))
            .collect();
        let text = format!(
            "SELECT pg_catalog.current_setting('server_version_num'), CURRENT_USER, pg_catalog.current_setting('client_encoding'), pg_catalog.pg_is_in_recovery(), {}",
            settings.join(", ")
        );
        let rows = self.query("look at the connection", &text).await?;
        let get = |index: usize| rows.first().and_then(|row| row.get(index)).unwrap_or_default();
        let version: u32 = get(0).parse().unwrap_or(0);
        if version < 150_000 {
            return Err(Failure::Unsafe(format!(
                "the server is too old ({version}): PostgreSQL 15 is the oldest that works"
            )));
        }
        if get(1) != BROKER {
            return Err(Failure::Unsafe(format!(
                "the login does not act as {BROKER}: run `ALTER ROLE … SET role = '{BROKER}'` and grant it that role"
            )));
        }
        if get(3) == "t" {
            return Err(Failure::Unsafe("the server is a replica".to_owned()));
        }
        for (index, (name, value)) in pins.iter().enumerate() {
            if !same_setting(name, &value.replace('\\', ""), get(index + 4)) {
                return Err(Failure::Unsafe(format!(
                    "the setting {name} cannot be pinned; a pooler in between may drop startup options"
                )));
            }
        }
        if get(2) != "UTF8" {
            return Err(Failure::Unsafe("client_encoding cannot be pinned to UTF8".to_owned()));
        }
        self.version = version;
        self.era = Era::of(version);
        Ok(())
    }
}

/// The server shows times with a unit, lists with spaces, and a date style with its order.
fn same_setting(name: &str, wanted: &str, shown: &str) -> bool {
    if name == "DateStyle" {
        return shown.starts_with(wanted);
    }
    if name.ends_with("_timeout") {
        let (digits, factor) = match shown {
            text if text.ends_with("ms") => (text.trim_end_matches("ms"), 1),
            text if text.ends_with("min") => (text.trim_end_matches("min"), 60_000),
            text => (text.trim_end_matches('s'), 1000),
        };
        let millis = digits.parse::<u64>().ok().and_then(|value| value.checked_mul(factor));
        return millis == wanted.parse().ok();
    }
    shown.replace(", ", ",") == wanted
}

fn tls_config(ca_pem: Option<&str>) -> Result<rustls::ClientConfig, Failure> {
    let bad = |why: &str| Failure::Unsafe(format!("the CA of the server cannot be used: {why}"));
    let mut roots = rustls::RootCertStore::empty();
    let Some(pem) = ca_pem else {
        return Err(bad("none is configured (`ca_file`)"));
    };
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|_| bad("it is not PEM"))?;
        roots.add(certificate).map_err(|_| bad("it is no CA certificate"))?;
    }
    if roots.is_empty() {
        return Err(bad("it holds no certificate"));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|_| bad("no TLS version is left"))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}

/// While connecting: what the driver says holds no secret, and says what an operator needs.
fn lost(error: &tokio_postgres::Error) -> Failure {
    if let Some(db) = error.as_db_error() {
        return Failure::Lost(format!("the server refused the connection: {}", db.code().code()));
    }
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
    Failure::Lost(format!("{error}{}", cause.unwrap_or_default()))
}

fn refused(what: &'static str, error: &tokio_postgres::Error) -> Failure {
    let Some(db) = error.as_db_error() else {
        return Failure::Lost("the connection was lost".to_owned());
    };
    let code = db.code().code();
    // The end of the session, not of the transaction: it may have been committed before.
    if code.starts_with("57P") || code.starts_with("08") || is_fatal(db) {
        return Failure::Lost(format!("the server ended the session: {code}"));
    }
    Failure::Refused {
        what,
        code: code.to_owned(),
        hint: code.starts_with("KD").then(|| db.message().to_owned()),
    }
}

fn is_fatal(error: &DbError) -> bool {
    matches!(error.parsed_severity(), Some(Severity::Fatal | Severity::Panic))
}
