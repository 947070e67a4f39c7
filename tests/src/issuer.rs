//! A Keycloak realm in this process: same paths, pages, tokens and refusals, plus the lies and failures that tests need.
//!
//! It follows a Keycloak 26.7 as far as kdbt looks; what it cannot follow in a realm file, it refuses to start with.

pub mod browser;
mod claims;
mod faults;
mod forge;
mod http;
mod keys;
mod pages;
mod realm;
mod sessions;

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::UNIX_EPOCH;

use anyhow::Context;
use jsonwebtoken::Algorithm;
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;
use url::Url;

use browser::Browser;
use faults::Endpoint;
pub use faults::Fault;
pub use forge::{Seal, TokenForge};
pub use keys::Key;
use keys::Keyring;
pub use realm::Realm;
pub use sessions::Tokens;
use sessions::{Now, Sessions};

/// The client that people's tokens are made for where a test does not say.
const PEOPLES_CLIENT: &str = "kdbt-cli";

/// A running issuer on a free loopback port. Dropping it stops it.
#[derive(Debug)]
pub struct Issuer {
    inner: Arc<Inner>,
    stop: CancellationToken,
    /// A thread of its own, so that any test may use it, whatever runtime that has, or none.
    thread: Option<JoinHandle<()>>,
}

struct Inner {
    iss: String,
    realm: Realm,
    clock: Clock,
    /// Seconds that this issuer's clock is ahead.
    offset: AtomicI64,
    keys: Mutex<Keyring>,
    extra_keys: Mutex<Vec<Value>>,
    sessions: Mutex<Sessions>,
    certs: Endpoint,
    discovery: Endpoint,
    discovery_edits: Mutex<Map<String, Value>>,
}

/// Epoch seconds.
pub type Clock = Box<dyn Fn() -> i64 + Send + Sync>;

impl Issuer {
    /// Starts on the system's clock.
    ///
    /// # Errors
    /// No free port, or no thread.
    pub fn start(realm: &Realm) -> anyhow::Result<Self> {
        let system = || {
            UNIX_EPOCH
                .elapsed()
                .map_or(0, |elapsed| i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX))
        };
        Self::start_on(realm, Box::new(system))
    }

    /// Starts on a clock of the caller's, which broker and test may share.
    ///
    /// # Errors
    /// No free port, or no thread.
    pub fn start_on(realm: &Realm, clock: Clock) -> anyhow::Result<Self> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port for the issuer")?;
        listener.set_nonblocking(true)?;
        let inner = Arc::new(Inner {
            iss: format!("http://{}/realms/{}", listener.local_addr()?, realm.name),
            keys: Mutex::new(Keyring::new(
                realm.clients.values().map(|client| client.access_token_alg),
            )),
            realm: realm.clone(),
            clock,
            offset: AtomicI64::new(0),
            extra_keys: Mutex::default(),
            sessions: Mutex::new(Sessions::new()),
            certs: Endpoint::default(),
            discovery: Endpoint::default(),
            discovery_edits: Mutex::default(),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let stop = CancellationToken::new();
        let (app, stopped) = (http::router(inner.clone()), stop.clone());
        let serve = move || {
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a listening socket");
                // Does not wait for requests under way: a slow one may be slow on purpose.
                stopped
                    .run_until_cancelled(axum::serve(listener, app).into_future())
                    .await;
            });
        };
        let thread = std::thread::Builder::new().name("issuer".into()).spawn(serve)?;
        Ok(Self {
            inner,
            stop,
            thread: Some(thread),
        })
    }

    /// The issuer's name, as in `iss`: `http://127.0.0.1:<port>/realms/<realm>`.
    pub fn url(&self) -> &str {
        &self.inner.iss
    }

    /// A fresh session of this person with `kdbt-cli`, without the way through the browser.
    ///
    /// # Panics
    /// If the realm has no such person or client, or the person is disabled.
    pub fn tokens_for(&self, username: &str) -> Tokens {
        self.tokens_of(username, PEOPLES_CLIENT)
    }

    /// A fresh session of this person with any client, even one whose settings allow no login.
    ///
    /// # Panics
    /// If the realm has no such person or client, or the person is disabled.
    pub fn tokens_of(&self, username: &str, client: &str) -> Tokens {
        let realm = &self.inner.realm;
        let user = realm
            .users
            .get(username)
            .unwrap_or_else(|| panic!("the realm has no user `{username}`"));
        let client = realm
            .clients
            .get(client)
            .unwrap_or_else(|| panic!("the realm has no client `{client}`"));
        self.inner
            .with_sessions(|sessions, now| sessions.password(now, client, user, true))
            .expect("tokens")
    }

    /// An honest access token of this person, as `kdbt-cli` would get it.
    ///
    /// # Panics
    /// As [`Issuer::tokens_for`].
    pub fn token_for(&self, username: &str) -> String {
        self.tokens_for(username).access
    }

    /// An honest access token of a service account.
    ///
    /// # Panics
    /// If the realm has no such client, or it has no service account.
    pub fn service_token(&self, client: &str) -> String {
        let client = &self.inner.realm.clients[client];
        self.inner
            .with_sessions(|sessions, now| sessions.client_credentials(now, client))
            .expect("a token")
            .access
    }

    /// The honest access token of this person, open for edits.
    ///
    /// # Panics
    /// As [`Issuer::tokens_for`].
    pub fn forge(&self, username: &str) -> TokenForge {
        self.open(&self.token_for(username))
    }

    /// Any of this issuer's tokens, open for edits; signed by the key that is active now.
    ///
    /// # Panics
    /// If the text is no token with a JSON payload.
    pub fn open(&self, token: &str) -> TokenForge {
        let claims: Map<String, Value> = jsonwebtoken::dangerous::insecure_decode_claims(token).expect("a token");
        TokenForge::new("JWT", claims, &self.active_key(Algorithm::RS256))
    }

    /// Plays the browser of a person: logs in, and answers with the address that the client's listener is to be called with.
    ///
    /// # Errors
    /// No such person, or a login that does not lead back to the client.
    pub async fn authorize(&self, username: &str, authorization_url: &Url) -> anyhow::Result<Url> {
        Browser::new()
            .sign_in(username, self.password(username)?, authorization_url)
            .await
    }

    /// Plays the browser of a person to the end: logs in and calls the client's listener.
    ///
    /// # Errors
    /// As [`Issuer::authorize`], or a listener that does not answer with a page.
    pub async fn sign_in(&self, username: &str, authorization_url: &Url) -> anyhow::Result<Url> {
        let mut browser = Browser::new();
        let callback = browser
            .sign_in(username, self.password(username)?, authorization_url)
            .await?;
        browser.visit(&callback).await?;
        Ok(callback)
    }

    /// Plays the browser of a person who was shown a device's code.
    ///
    /// # Errors
    /// No such person, or a page that is not the expected one.
    pub async fn approve_device(&self, username: &str, user_code: &str) -> anyhow::Result<()> {
        self.answer_device(username, user_code, true).await
    }

    /// The same, but the person says no.
    ///
    /// # Errors
    /// No such person, or a page that is not the expected one.
    pub async fn deny_device(&self, username: &str, user_code: &str) -> anyhow::Result<()> {
        self.answer_device(username, user_code, false).await
    }

    async fn answer_device(&self, username: &str, user_code: &str, accept: bool) -> anyhow::Result<()> {
        let page = Url::parse_with_params(&format!("{}/device", self.url()), [("user_code", user_code)])?;
        Browser::new()
            .answer_device(username, self.password(username)?, &page, accept)
            .await
    }

    fn password(&self, username: &str) -> anyhow::Result<&str> {
        let user = self
            .inner
            .realm
            .users
            .get(username)
            .with_context(|| format!("no user `{username}`"))?;
        user.password
            .as_deref()
            .with_context(|| format!("user `{username}` has no password"))
    }

    /// Ends a session, as an administrator does; false where there is none.
    pub fn end_session(&self, sid: &str) -> bool {
        self.inner.with_sessions(|sessions, _| sessions.end(sid))
    }

    /// The key that signs with this algorithm now.
    ///
    /// # Panics
    /// If no client of the realm uses it and [`Issuer::add_key`] did not make one.
    pub fn active_key(&self, algorithm: Algorithm) -> Key {
        self.inner.keys.lock().unwrap().active(algorithm).clone()
    }

    /// A new key signs from now on; the old one stays published.
    pub fn rotate_keys(&self) -> Key {
        self.add_key(Algorithm::RS256)
    }

    /// A new key of this algorithm, published and active.
    pub fn add_key(&self, algorithm: Algorithm) -> Key {
        self.inner.keys.lock().unwrap().add(algorithm)
    }

    /// Publishes only the keys that sign.
    pub fn drop_old_keys(&self) {
        self.inner.keys.lock().unwrap().drop_passive();
    }

    /// Publishes these beside the real keys, whatever they are.
    pub fn publish_also(&self, keys: Vec<Value>) {
        *self.inner.extra_keys.lock().unwrap() = keys;
    }

    /// Seconds that this issuer's clock is ahead of the one it was started on.
    pub fn set_clock_offset(&self, seconds: i64) {
        self.inner.offset.store(seconds, Ordering::SeqCst);
    }

    /// What the keys' endpoint does from now on.
    pub fn set_keys_fault(&self, fault: Fault) {
        self.inner.certs.set(fault);
    }

    /// What the discovery endpoint does from now on.
    pub fn set_discovery_fault(&self, fault: Fault) {
        self.inner.discovery.set(fault);
    }

    /// Overrides a member of the discovery document, such as `issuer` or `jwks_uri`.
    pub fn set_discovery(&self, name: &str, value: impl Into<Value>) {
        self.inner
            .discovery_edits
            .lock()
            .unwrap()
            .insert(name.to_owned(), value.into());
    }

    /// How often the keys were asked for.
    pub fn keys_fetches(&self) -> u64 {
        self.inner.certs.fetches()
    }

    /// How often the discovery document was asked for.
    pub fn discovery_fetches(&self) -> u64 {
        self.inner.discovery.fetches()
    }
}

impl Inner {
    fn with_sessions<T>(&self, act: impl FnOnce(&mut Sessions, &Now<'_>) -> T) -> T {
        let keys = self.keys.lock().unwrap().clone();
        let seconds = (self.clock)() + self.offset.load(Ordering::SeqCst);
        let now = Now {
            iss: &self.iss,
            realm: &self.realm,
            keys: &keys,
            seconds,
        };
        act(&mut self.sessions.lock().unwrap(), &now)
    }
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("iss", &self.iss).finish_non_exhaustive()
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // A panic in there has failed the test's request already.
            let _ = thread.join();
        }
    }
}
