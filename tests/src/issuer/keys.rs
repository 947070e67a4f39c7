//! The issuer's keys: RSA, elliptic curve and Edwards, as JWK for readers and as signer for its own tokens.

use std::sync::{Arc, OnceLock};

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
    RSA_PKCS1_SHA256, RSA_PSS_SHA256,
};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::Algorithm;
use serde_json::{Value, json};

/// A key pair that signs with exactly one algorithm. Cloning shares it.
#[derive(Clone)]
pub struct Key {
    kid: String,
    algorithm: Algorithm,
    pair: Arc<Pair>,
}

enum Pair {
    Rsa(RsaKeyPair),
    Ec(EcdsaKeyPair),
    Ed(Ed25519KeyPair),
}

impl Key {
    /// A new key with a random key id.
    ///
    /// # Panics
    /// For an algorithm other than RS256, PS256, ES256, ES384 and `EdDSA`.
    pub fn generate(algorithm: Algorithm) -> Self {
        let pair = match algorithm {
            Algorithm::RS256 | Algorithm::PS256 => Pair::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap()),
            Algorithm::ES256 => Pair::Ec(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap()),
            Algorithm::ES384 => Pair::Ec(EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap()),
            Algorithm::EdDSA => Pair::Ed(Ed25519KeyPair::generate().unwrap()),
            other => panic!("no key can be made for {other:?}"),
        };
        Self {
            kid: random_text(32),
            algorithm,
            pair: Arc::new(pair),
        }
    }

    /// The same key pair under another key id: an attacker's, or another realm's, that claims a known one.
    #[must_use]
    pub fn with_kid(&self, kid: &str) -> Self {
        Self {
            kid: kid.to_owned(),
            ..self.clone()
        }
    }

    /// The key id, as in header and JWK.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The one algorithm that this key signs with.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The algorithm's name in headers and JWKs.
    pub(super) fn alg(&self) -> &'static str {
        alg_name(self.algorithm)
    }

    /// The raw signature of a JWS over these bytes.
    pub(super) fn sign(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match self.pair.as_ref() {
            Pair::Rsa(pair) => {
                let padding: &dyn aws_lc_rs::signature::RsaEncoding = if self.algorithm == Algorithm::PS256 {
                    &RSA_PSS_SHA256
                } else {
                    &RSA_PKCS1_SHA256
                };
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(padding, &random, message, &mut signature).unwrap();
                signature
            }
            Pair::Ec(pair) => pair.sign(&random, message).unwrap().as_ref().to_vec(),
            Pair::Ed(pair) => pair.sign(message).as_ref().to_vec(),
        }
    }

    /// The public half as Keycloak lists it; RSA keys with their certificate.
    pub fn jwk(&self) -> Value {
        let mut jwk = self.public_parts();
        jwk["kid"] = self.kid.clone().into();
        jwk["alg"] = self.alg().into();
        jwk["use"] = "sig".into();
        jwk
    }

    /// The public half in the PEM form that careless verifiers take for an HMAC secret.
    pub fn public_pem(&self) -> String {
        let der = match self.pair.as_ref() {
            Pair::Rsa(pair) => AsDer::<PublicKeyX509Der<'_>>::as_der(pair.public_key())
                .unwrap()
                .as_ref()
                .to_vec(),
            Pair::Ec(pair) => AsDer::<PublicKeyX509Der<'_>>::as_der(pair.public_key())
                .unwrap()
                .as_ref()
                .to_vec(),
            Pair::Ed(pair) => AsDer::<PublicKeyX509Der<'_>>::as_der(pair.public_key())
                .unwrap()
                .as_ref()
                .to_vec(),
        };
        let text = STANDARD.encode(der);
        let lines: Vec<&str> = text
            .as_bytes()
            .chunks(64)
            .map(|line| std::str::from_utf8(line).unwrap())
            .collect();
        format!(
            "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
            lines.join("\n")
        )
    }

    fn public_parts(&self) -> Value {
        match self.pair.as_ref() {
            Pair::Rsa(pair) => {
                let public = pair.public_key();
                let certificate = certificate(pair);
                json!({
                    "kty": "RSA",
                    "n": base64url(public.modulus().big_endian_without_leading_zero()),
                    "e": base64url(public.exponent().big_endian_without_leading_zero()),
                    "x5c": [STANDARD.encode(&certificate)],
                    "x5t#S256": base64url(sha256(&certificate)),
                })
            }
            Pair::Ec(pair) => {
                // Uncompressed: one byte 4, then x and y.
                let (x, y) = pair.public_key().as_ref()[1..].split_at((pair.public_key().as_ref().len() - 1) / 2);
                let curve = if self.algorithm == Algorithm::ES384 {
                    "P-384"
                } else {
                    "P-256"
                };
                json!({ "kty": "EC", "crv": curve, "x": base64url(x), "y": base64url(y) })
            }
            Pair::Ed(pair) => json!({ "kty": "OKP", "crv": "Ed25519", "x": base64url(pair.public_key()) }),
        }
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key")
            .field("kid", &self.kid)
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

/// The realm's signing keys, newest first: the first of an algorithm signs, all are published.
#[derive(Debug, Clone)]
pub(super) struct Keyring(Vec<Key>);

impl Keyring {
    pub(super) fn new(algorithms: impl IntoIterator<Item = Algorithm>) -> Self {
        let mut ring = Self(vec![Key::generate(Algorithm::RS256)]);
        for algorithm in algorithms {
            if ring.0.iter().all(|key| key.algorithm != algorithm) {
                ring.add(algorithm);
            }
        }
        ring
    }

    pub(super) fn add(&mut self, algorithm: Algorithm) -> Key {
        let key = Key::generate(algorithm);
        self.0.insert(0, key.clone());
        key
    }

    /// The key that signs with this algorithm.
    pub(super) fn active(&self, algorithm: Algorithm) -> &Key {
        self.0
            .iter()
            .find(|key| key.algorithm == algorithm)
            .expect("made at the start for every client's algorithm")
    }

    /// Leaves one key for each algorithm.
    pub(super) fn drop_passive(&mut self) {
        let mut seen = Vec::new();
        self.0.retain(|key| {
            let first = !seen.contains(&key.algorithm);
            seen.push(key.algorithm);
            first
        });
    }

    pub(super) fn jwks(&self, extra: &[Value]) -> Value {
        let mut keys: Vec<Value> = self.0.iter().map(Key::jwk).collect();
        keys.push(encryption_jwk());
        keys.extend(extra.iter().cloned());
        json!({ "keys": keys })
    }
}

/// The encryption key that Keycloak lists beside its signing keys: nobody may accept a signature by it, so one serves all.
fn encryption_jwk() -> Value {
    static KEY: OnceLock<Key> = OnceLock::new();
    let mut jwk = KEY.get_or_init(|| Key::generate(Algorithm::RS256)).jwk();
    jwk["alg"] = "RSA-OAEP".into();
    jwk["use"] = "enc".into();
    jwk
}

/// Letters and digits that nobody can guess.
pub(super) fn random_text(length: usize) -> String {
    let mut bytes = vec![0; length];
    aws_lc_rs::rand::fill(&mut bytes).unwrap();
    URL_SAFE_NO_PAD
        .encode(bytes)
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .cycle()
        .take(length)
        .collect()
}

pub(super) fn base64url(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

pub(super) fn sha256(bytes: &[u8]) -> Vec<u8> {
    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes)
        .as_ref()
        .to_vec()
}

fn alg_name(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::RS256 => "RS256",
        Algorithm::PS256 => "PS256",
        Algorithm::ES256 => "ES256",
        Algorithm::ES384 => "ES384",
        Algorithm::EdDSA => "EdDSA",
        other => panic!("no key can be made for {other:?}"),
    }
}

fn certificate(pair: &RsaKeyPair) -> Vec<u8> {
    let pkcs8 = AsDer::<Pkcs8V1Der<'_>>::as_der(pair).unwrap();
    let pair = rcgen::KeyPair::try_from(pkcs8.as_ref()).unwrap();
    rcgen::CertificateParams::default()
        .self_signed(&pair)
        .unwrap()
        .der()
        .to_vec()
}
