//! An issuer in this process: signing keys, a server for its documents that counts what is asked of it, tokens.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
    RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaKeyPair,
};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::super::*;
use crate::clock::{Clock as _, ManualClock};

pub(super) const NOW: i64 = 1_800_000_000;

static RSA: LazyLock<RsaKeyPair> = LazyLock::new(|| RsaKeyPair::generate(KeySize::Rsa2048).unwrap());

pub(super) fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

enum Signer {
    Rsa,
    Ec(EcdsaKeyPair),
    Ed(Ed25519KeyPair),
}

/// A key of an issuer. All RSA keys are the same one, for it takes long to make.
pub(super) struct TestKey {
    pub id: String,
    pub algorithm: Algorithm,
    signer: Signer,
}

impl TestKey {
    pub(super) fn new(id: &str, algorithm: Algorithm) -> Self {
        let signer = match algorithm {
            Algorithm::Rs256 | Algorithm::Ps256 => Signer::Rsa,
            Algorithm::Es256 => Signer::Ec(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap()),
            Algorithm::Es384 => Signer::Ec(EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap()),
            Algorithm::EdDsa => Signer::Ed(Ed25519KeyPair::generate().unwrap()),
        };
        Self {
            id: id.to_owned(),
            algorithm,
            signer,
        }
    }

    pub(super) fn jwk(&self) -> Value {
        let mut jwk = match &self.signer {
            Signer::Rsa => {
                let key = RSA.public_key();
                json!({ "kty": "RSA", "n": b64(key.modulus().big_endian_without_leading_zero()),
                    "e": b64(key.exponent().big_endian_without_leading_zero()) })
            }
            Signer::Ec(key) => {
                let (x, y) = key.public_key().as_ref()[1..].split_at((key.public_key().as_ref().len() - 1) / 2);
                let curve = if x.len() == 32 { "P-256" } else { "P-384" };
                json!({ "kty": "EC", "crv": curve, "x": b64(x), "y": b64(y) })
            }
            Signer::Ed(key) => json!({ "kty": "OKP", "crv": "Ed25519", "x": b64(key.public_key()) }),
        };
        jwk["kid"] = json!(self.id);
        jwk["use"] = json!("sig");
        jwk["alg"] = json!(self.algorithm.as_str());
        jwk
    }

    pub(super) fn header(&self) -> Value {
        json!({ "alg": self.algorithm.as_str(), "typ": "JWT", "kid": self.id })
    }

    /// A token of exactly these bytes, whatever they are.
    pub(super) fn sign_bytes(&self, header: &[u8], payload: &[u8]) -> String {
        let signed = format!("{}.{}", b64(header), b64(payload));
        let random = SystemRandom::new();
        let signature = match &self.signer {
            Signer::Rsa => {
                let mut signature = vec![0; RSA.public_modulus_len()];
                let ps = self.algorithm == Algorithm::Ps256;
                let padding: &dyn aws_lc_rs::signature::RsaEncoding =
                    if ps { &RSA_PSS_SHA256 } else { &RSA_PKCS1_SHA256 };
                RSA.sign(padding, &random, signed.as_bytes(), &mut signature).unwrap();
                signature
            }
            Signer::Ec(key) => key.sign(&random, signed.as_bytes()).unwrap().as_ref().to_vec(),
            Signer::Ed(key) => key.sign(signed.as_bytes()).as_ref().to_vec(),
        };
        format!("{signed}.{}", b64(signature))
    }

    pub(super) fn sign(&self, header: &Value, claims: &Value) -> String {
        self.sign_bytes(header.to_string().as_bytes(), claims.to_string().as_bytes())
    }
}

/// What a path of the server answers.
#[derive(Clone)]
pub(super) enum Page {
    Json(Value),
    Bytes(Vec<u8>),
    Redirect(String),
    /// Never.
    Silence,
}

#[derive(Default)]
struct Pages {
    answers: HashMap<String, Page>,
    asked: HashMap<String, usize>,
}

/// Serves pages on a free port of this machine; what has no page is 404.
#[derive(Clone)]
pub(super) struct Server {
    pub url: String,
    pages: Arc<Mutex<Pages>>,
}

async fn answer(State(pages): State<Arc<Mutex<Pages>>>, uri: Uri) -> Response {
    let page = {
        let mut pages = pages.lock().unwrap();
        *pages.asked.entry(uri.path().to_owned()).or_default() += 1;
        pages.answers.get(uri.path()).cloned()
    };
    match page {
        Some(Page::Json(value)) => value.to_string().into_response(),
        Some(Page::Bytes(bytes)) => bytes.into_response(),
        Some(Page::Redirect(to)) => (StatusCode::FOUND, [(header::LOCATION, to)]).into_response(),
        Some(Page::Silence) => std::future::pending().await,
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

impl Server {
    pub(super) async fn start(tasks: &TaskTracker) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let pages = Arc::<Mutex<Pages>>::default();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let serve = axum::serve(listener, Self::router(&pages));
        tasks.spawn(async move { serve.await.unwrap() });
        Self { url, pages }
    }

    /// The same over TLS, with this certificate for `localhost`.
    pub(super) fn start_tls(tasks: &TaskTracker, certificate: &rcgen::CertifiedKey<rcgen::KeyPair>) -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.cert.der().clone()],
                rustls::pki_types::PrivateKeyDer::Pkcs8(certificate.signing_key.serialize_der().into()),
            )
            .unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let pages = Arc::<Mutex<Pages>>::default();
        let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let config = axum_server::tls_rustls::RustlsConfig::from_config(Arc::new(config));
        let serve = axum_server::from_tcp_rustls(listener, config).unwrap();
        let service = Self::router(&pages).into_make_service();
        tasks.spawn(async move { serve.serve(service).await.unwrap() });
        Self { url, pages }
    }

    fn router(pages: &Arc<Mutex<Pages>>) -> Router {
        Router::new().fallback(answer).with_state(Arc::clone(pages))
    }

    pub(super) fn set(&self, path: &str, page: Page) {
        self.pages.lock().unwrap().answers.insert(path.to_owned(), page);
    }

    pub(super) fn remove(&self, path: &str) {
        self.pages.lock().unwrap().answers.remove(path);
    }

    pub(super) fn asked(&self, path: &str) -> usize {
        self.pages.lock().unwrap().asked.get(path).copied().unwrap_or_default()
    }

    pub(super) fn publish(&self, path: &str, keys: &[&TestKey]) {
        let keys: Vec<_> = keys.iter().map(|key| key.jwk()).collect();
        self.set(path, Page::Json(json!({ "keys": keys })));
    }
}

pub(super) const DISCOVERY: &str = "/realms/data/.well-known/openid-configuration";
pub(super) const CERTS: &str = "/realms/data/certs";

/// One realm with one key, its server, and an authenticator that knows it.
pub(super) struct Realm {
    pub clock: Arc<ManualClock>,
    pub server: Server,
    pub key: TestKey,
    pub issuer: String,
    pub authenticator: Authenticator,
    _stop: tokio_util::sync::DropGuard,
}

impl Realm {
    pub(super) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    /// A realm whose server publishes keys and metadata, with a changed configuration.
    pub(super) async fn with(change: impl FnOnce(&mut IssuerConfig)) -> Self {
        let server = Server::start(&TaskTracker::new()).await;
        Self::behind(server, change)
    }

    pub(super) fn behind(server: Server, change: impl FnOnce(&mut IssuerConfig)) -> Self {
        let key = TestKey::new("k1", Algorithm::Es256);
        let issuer = format!("{}/realms/data", server.url);
        server.publish(CERTS, &[&key]);
        let metadata = json!({ "issuer": issuer, "jwks_uri": format!("{}{CERTS}", server.url) });
        server.set(DISCOVERY, Page::Json(metadata));
        let mut config = config(&issuer);
        change(&mut config);
        let clock = ManualClock::at(Timestamp::from_unix(NOW));
        let stop = CancellationToken::new();
        let authenticator =
            Authenticator::new(vec![config], Arc::clone(&clock) as _, &TaskTracker::new(), &stop).unwrap();
        Self {
            clock,
            server,
            key,
            issuer,
            authenticator,
            _stop: stop.drop_guard(),
        }
    }

    /// The claims of a person's token, issued now, as Keycloak writes them.
    pub(super) fn claims(&self) -> Value {
        let now = self.clock.now().as_unix();
        json!({
            "exp": now + 300, "iat": now, "auth_time": now - 60, "jti": "onrtac:3f1e7c1e-0d5c-4f3e",
            "iss": self.issuer, "aud": ["kdbt-broker", "account"], "sub": "0b2cf7c1-ada", "typ": "Bearer",
            "azp": "kdbt-cli", "sid": "pT5YzXrWq2mJ8sVbKd1nLc0h", "acr": "1", "scope": "openid profile email",
            "realm_access": { "roles": ["analyst", "offline_access"] },
            "resource_access": { "kdbt-broker": { "roles": ["analyst"] } },
            "groups": ["/data/analysts"], "preferred_username": "ada", "name": "Ada Lovelace"
        })
    }

    /// Those claims with one set, or taken away.
    pub(super) fn claims_with(&self, name: &str, value: impl Into<Option<Value>>) -> Value {
        let mut claims = self.claims();
        match value.into() {
            Some(value) => claims[name] = value,
            None => drop(claims.as_object_mut().unwrap().remove(name)),
        }
        claims
    }

    pub(super) fn token(&self, claims: &Value) -> String {
        self.key.sign(&self.key.header(), claims)
    }

    pub(super) async fn send(&self, token: &str) -> Result<Identity, Reason> {
        send(&self.authenticator, token).await
    }

    pub(super) async fn send_claims(&self, claims: &Value) -> Result<Identity, Reason> {
        self.send(&self.token(claims)).await
    }

    pub(super) async fn send_header(&self, header: &Value) -> Result<Identity, Reason> {
        self.send(&self.key.sign(header, &self.claims())).await
    }
}

/// A configuration that takes people through `kdbt-cli` and workloads through `kdbt-ci`.
pub(super) fn config(issuer: &str) -> IssuerConfig {
    let mut config = IssuerConfig::new(issuer);
    config.audiences = vec!["kdbt-broker".to_owned()];
    config.authorized_parties = vec!["kdbt-cli".to_owned()];
    config.service_clients = vec!["kdbt-ci".to_owned()];
    config
}

pub(super) async fn send(authenticator: &Authenticator, token: &str) -> Result<Identity, Reason> {
    let header = AuthorizationHeader::of_request([format!("Bearer {token}").as_bytes()], None);
    authenticator.authenticate(header).await.map_err(|error| error.reason)
}
