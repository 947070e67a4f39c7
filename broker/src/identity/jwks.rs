//! From a key set document (RFC 7517) to the keys that may verify an access token; an encryption key, a MAC key or
//! a weak key never becomes one.
//!
//! Keys are read one by one, so that a key of a kind that nobody knows yet does not take the others with it.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::DecodingKey;
use serde_json::{Map, Value};

use super::strict_json::{StrictJsonError, parse_object};

/// More keys than any realm has; a longer set is refused whole.
const MAX_KEYS: usize = 100;
/// The longest `kid` that is looked at, in bytes.
pub(super) const MAX_KEY_ID_BYTES: usize = 256;
/// Sizes of RSA keys that are used, in bits (R7): from NIST's floor to the verifier's ceiling.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// A signature algorithm for access tokens. Neither `none` nor a MAC can be written (R3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256, Keycloak's default.
    Rs256,
    /// RSASSA-PSS with SHA-256.
    Ps256,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// ECDSA on P-384 with SHA-384.
    Es384,
    /// Ed25519.
    EdDsa,
}

impl Algorithm {
    /// All of them: what an issuer may use unless its configuration says less.
    pub const ALL: &[Self] = &[Self::Rs256, Self::Ps256, Self::Es256, Self::Es384, Self::EdDsa];

    /// The name in JOSE headers and in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Ps256 => "PS256",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::EdDsa => "EdDSA",
        }
    }

    fn in_library(self) -> jsonwebtoken::Algorithm {
        match self {
            Self::Rs256 => jsonwebtoken::Algorithm::RS256,
            Self::Ps256 => jsonwebtoken::Algorithm::PS256,
            Self::Es256 => jsonwebtoken::Algorithm::ES256,
            Self::Es384 => jsonwebtoken::Algorithm::ES384,
            Self::EdDsa => jsonwebtoken::Algorithm::EdDSA,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that names none of [`Algorithm::ALL`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not one of RS256, PS256, ES256, ES384, EdDSA")]
pub struct AlgorithmError;

impl FromStr for Algorithm {
    type Err = AlgorithmError;

    fn from_str(name: &str) -> Result<Self, AlgorithmError> {
        Self::ALL
            .iter()
            .copied()
            .find(|algorithm| algorithm.as_str() == name)
            .ok_or(AlgorithmError)
    }
}

/// A public key that may verify access tokens with some algorithms.
#[derive(Debug)]
pub(super) struct VerificationKey {
    key_id: String,
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

impl VerificationKey {
    /// Whether this key made the signature over this text. Only the signature is left to the library: its claim
    /// checks accept more than our rules do, and read the machine's clock.
    pub(super) fn verifies(&self, algorithm: Algorithm, signed: &str, signature: &str) -> bool {
        jsonwebtoken::crypto::verify(signature, signed.as_bytes(), &self.key, algorithm.in_library()).unwrap_or(false)
    }

    /// Whether it may be used with this algorithm: kind, curve and the key's own `alg` (R7).
    pub(super) fn is_for(&self, algorithm: Algorithm) -> bool {
        self.algorithms.contains(&algorithm)
    }
}

/// Why a key set document is refused whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum KeySetError {
    /// Not a JSON object in the strict sense.
    #[error("the key set is {0}")]
    Json(#[from] StrictJsonError),
    /// No list of keys.
    #[error("the key set has no list `keys`")]
    NoKeys,
    /// Too many keys.
    #[error("the key set holds more than {MAX_KEYS} keys")]
    TooManyKeys,
}

/// Why one key of a set is not used. Keycloak's encryption keys are always among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum KeyError {
    #[error("it is not an object")]
    NotAnObject,
    #[error("its `kid` is missing or too long")]
    KeyId,
    #[error("its kind, curve or `alg` is not one that access tokens are verified with")]
    Unsupported,
    #[error("its `use` or `key_ops` is not for signatures")]
    NotForSignatures,
    #[error("it holds a private key, which the whole world can now read")]
    Private,
    #[error("a number in it is not strict base64url of the right length")]
    Malformed,
    #[error("its RSA modulus is shorter than 2048 or longer than 8192 bits")]
    RsaSize,
}

/// The keys of one issuer at one time.
#[derive(Debug, Default)]
pub(super) struct KeySet(Vec<VerificationKey>);

impl KeySet {
    /// Reads a key set document and leaves out what cannot verify access tokens.
    pub(super) fn parse(document: &[u8]) -> Result<Self, KeySetError> {
        let document = parse_object(document)?;
        let Some(Value::Array(keys)) = document.get("keys") else {
            return Err(KeySetError::NoKeys);
        };
        if keys.len() > MAX_KEYS {
            return Err(KeySetError::TooManyKeys);
        }
        let mut usable = Vec::new();
        for (position, key) in keys.iter().enumerate() {
            match verification_key(key) {
                Ok(key) => usable.push(key),
                Err(error @ KeyError::Private) => tracing::warn!(position, %error, "a key of the issuer is not used"),
                Err(error) => tracing::debug!(position, %error, "a key of the issuer is not used"),
            }
        }
        Ok(Self(usable))
    }

    /// How many keys can be used.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether a key of it is for this algorithm.
    pub(super) fn can_verify(&self, algorithm: Algorithm) -> bool {
        self.0.iter().any(|key| key.is_for(algorithm))
    }

    /// The keys with this `kid`; almost always one.
    pub(super) fn with_id(&self, key_id: &str) -> impl Iterator<Item = &VerificationKey> {
        self.0.iter().filter(move |key| key.key_id == key_id)
    }
}

fn verification_key(jwk: &Value) -> Result<VerificationKey, KeyError> {
    let jwk = jwk.as_object().ok_or(KeyError::NotAnObject)?;
    let key_id = match jwk.get("kid").and_then(Value::as_str) {
        Some(id) if !id.is_empty() && id.len() <= MAX_KEY_ID_BYTES => id.to_owned(),
        _ => return Err(KeyError::KeyId),
    };
    check_use(jwk)?;
    let (of_kind, key) = match (
        jwk.get("kty").and_then(Value::as_str),
        jwk.get("crv").and_then(Value::as_str),
    ) {
        (Some("RSA"), _) => (&[Algorithm::Rs256, Algorithm::Ps256][..], rsa_key(jwk)?),
        (Some("EC"), Some("P-256")) => (&[Algorithm::Es256][..], ec_key(jwk, 32)?),
        (Some("EC"), Some("P-384")) => (&[Algorithm::Es384][..], ec_key(jwk, 48)?),
        (Some("OKP"), Some("Ed25519")) => (
            &[Algorithm::EdDsa][..],
            DecodingKey::from_ed_der(&number(jwk, "x", Some(32))?),
        ),
        _ => return Err(KeyError::Unsupported),
    };
    let algorithms = match jwk.get("alg") {
        None => of_kind.to_vec(),
        Some(named) => of_kind
            .iter()
            .copied()
            .filter(|algorithm| named == algorithm.as_str())
            .collect(),
    };
    match algorithms[..] {
        [] => Err(KeyError::Unsupported),
        [..] => Ok(VerificationKey {
            key_id,
            algorithms,
            key,
        }),
    }
}

fn check_use(jwk: &Map<String, Value>) -> Result<(), KeyError> {
    let for_signatures = jwk.get("use").is_none_or(|usage| usage == "sig");
    let for_verifying = match jwk.get("key_ops") {
        None => true,
        Some(Value::Array(operations)) => operations.iter().any(|operation| operation == "verify"),
        Some(_) => false,
    };
    if !for_signatures || !for_verifying {
        return Err(KeyError::NotForSignatures);
    }
    if ["d", "p", "q", "k"].iter().any(|name| jwk.contains_key(*name)) {
        return Err(KeyError::Private);
    }
    Ok(())
}

fn rsa_key(jwk: &Map<String, Value>) -> Result<DecodingKey, KeyError> {
    let modulus = number(jwk, "n", None)?;
    let exponent = number(jwk, "e", None)?;
    let significant = modulus.iter().skip_while(|byte| **byte == 0);
    let bits = match significant.clone().next() {
        Some(first) => significant.count() * 8 - first.leading_zeros() as usize,
        None => 0,
    };
    if !RSA_BITS.contains(&bits) {
        return Err(KeyError::RsaSize);
    }
    Ok(DecodingKey::from_rsa_raw_components(&modulus, &exponent))
}

/// The point in the uncompressed form of SEC 1, which the verifier takes.
fn ec_key(jwk: &Map<String, Value>, coordinate_bytes: usize) -> Result<DecodingKey, KeyError> {
    let mut point = vec![4];
    point.extend(number(jwk, "x", Some(coordinate_bytes))?);
    point.extend(number(jwk, "y", Some(coordinate_bytes))?);
    Ok(DecodingKey::from_ec_der(&point))
}

fn number(jwk: &Map<String, Value>, name: &str, bytes: Option<usize>) -> Result<Vec<u8>, KeyError> {
    let text = jwk.get(name).and_then(Value::as_str).ok_or(KeyError::Malformed)?;
    let number = URL_SAFE_NO_PAD.decode(text).map_err(|_| KeyError::Malformed)?;
    let fits = bytes.map_or(!number.is_empty(), |bytes| number.len() == bytes);
    if fits { Ok(number) } else { Err(KeyError::Malformed) }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::rsa::KeySize;
    use aws_lc_rs::signature::{KeyPair as _, RsaKeyPair};
    use serde_json::json;

    use super::*;

    fn b64(bytes: impl AsRef<[u8]>) -> String {
        URL_SAFE_NO_PAD.encode(bytes)
    }

    fn rsa(bits: usize) -> Value {
        let modulus = [vec![0, 0x80], vec![1; bits / 8 - 1]].concat();
        json!({ "kty": "RSA", "kid": "k", "use": "sig", "alg": "RS256", "n": b64(modulus), "e": "AQAB" })
    }

    fn ec(curve: &str, bytes: usize) -> Value {
        json!({ "kty": "EC", "kid": "k", "crv": curve, "x": b64(vec![1; bytes]), "y": b64(vec![1; bytes]) })
    }

    fn ed(bytes: usize) -> Value {
        json!({ "kty": "OKP", "kid": "k", "crv": "Ed25519", "x": b64(vec![1; bytes]) })
    }

    fn with(mut jwk: Value, name: &str, value: Value) -> Value {
        jwk[name] = value;
        jwk
    }

    fn algorithms(jwk: &Value) -> Result<Vec<Algorithm>, KeyError> {
        verification_key(jwk).map(|key| key.algorithms)
    }

    // R7
    #[test]
    fn a_key_is_for_the_algorithms_of_its_kind_curve_and_alg() {
        let without_alg = |mut jwk: Value| {
            jwk.as_object_mut().unwrap().remove("alg");
            jwk
        };
        assert_eq!(algorithms(&rsa(2048)), Ok(vec![Algorithm::Rs256]));
        assert_eq!(
            algorithms(&without_alg(rsa(2048))),
            Ok(vec![Algorithm::Rs256, Algorithm::Ps256])
        );
        assert_eq!(algorithms(&ec("P-256", 32)), Ok(vec![Algorithm::Es256]));
        assert_eq!(algorithms(&ec("P-384", 48)), Ok(vec![Algorithm::Es384]));
        assert_eq!(algorithms(&ed(32)), Ok(vec![Algorithm::EdDsa]));
        assert_eq!(
            algorithms(&with(ed(32), "key_ops", json!(["verify"]))),
            Ok(vec![Algorithm::EdDsa])
        );
    }

    // R7
    #[test]
    fn a_key_of_another_kind_curve_or_algorithm_is_not_used() {
        for jwk in [
            json!({ "kty": "oct", "kid": "k", "x": "AQAB" }),
            json!({ "kty": "AKP", "kid": "k", "alg": "ML-DSA-65", "pub": "AAAA" }),
            json!({ "kid": "k" }),
            with(ec("P-256", 32), "kty", json!("RSA1")),
            with(rsa(2048), "alg", json!("RSA-OAEP")),
            with(rsa(2048), "alg", json!("RS512")),
            with(rsa(2048), "alg", json!("HS256")),
            with(rsa(2048), "alg", json!("ES256")),
            with(rsa(2048), "alg", json!(null)),
            with(ec("P-256", 32), "alg", json!("ES384")),
            ec("P-521", 66),
            ec("secp256k1", 32),
            with(ed(32), "crv", json!("X25519")),
        ] {
            assert_eq!(algorithms(&jwk), Err(KeyError::Unsupported), "{jwk}");
        }
    }

    // R7
    #[test]
    fn a_key_for_encryption_or_without_verify_among_its_operations_is_not_used() {
        for (name, value) in [
            ("use", json!("enc")),
            ("use", json!("SIG")),
            ("use", json!(null)),
            ("key_ops", json!(["sign"])),
            ("key_ops", json!([])),
            ("key_ops", json!("verify")),
        ] {
            assert_eq!(
                algorithms(&with(rsa(2048), name, value.clone())),
                Err(KeyError::NotForSignatures),
                "{value}"
            );
        }
    }

    // R7
    #[test]
    fn an_rsa_key_of_a_weak_or_absurd_size_is_not_used() {
        assert!(algorithms(&rsa(2048)).is_ok() && algorithms(&rsa(8192)).is_ok());
        for bits in [512, 1024, 2040, 8200] {
            assert_eq!(algorithms(&rsa(bits)), Err(KeyError::RsaSize), "{bits}");
        }
        assert_eq!(algorithms(&with(rsa(2048), "n", json!("AAAA"))), Err(KeyError::RsaSize));
    }

    // R7
    #[test]
    fn a_key_with_a_missing_loose_or_misshapen_number_is_not_used() {
        for jwk in [
            with(rsa(2048), "n", json!("")),
            with(rsa(2048), "e", json!("")),
            with(rsa(2048), "e", json!(65537)),
            with(rsa(2048), "e", json!("AQAB==")),
            ec("P-256", 31),
            ec("P-256", 33),
            ec("P-384", 32),
            with(ec("P-256", 32), "y", json!(null)),
            ed(31),
            ed(57),
        ] {
            assert_eq!(algorithms(&jwk), Err(KeyError::Malformed), "{jwk}");
        }
    }

    #[test]
    fn a_private_key_that_an_issuer_publishes_is_not_used() {
        assert_eq!(
            algorithms(&with(ec("P-256", 32), "d", json!("AA"))),
            Err(KeyError::Private)
        );
        assert_eq!(
            algorithms(&json!({ "kty": "oct", "kid": "k", "k": "AA" })),
            Err(KeyError::Private)
        );
    }

    // R4
    #[test]
    fn a_key_without_an_id_is_not_used() {
        for id in [json!(null), json!(""), json!(1), json!("k".repeat(257))] {
            assert_eq!(
                algorithms(&with(rsa(2048), "kid", id.clone())),
                Err(KeyError::KeyId),
                "{id}"
            );
        }
    }

    #[test]
    fn keys_that_are_not_used_do_not_take_the_others_with_them() {
        let real = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        let modulus = b64(real.public_key().modulus().big_endian_without_leading_zero());
        let keys = json!({ "keys": [
            1, null, {}, { "kty": "AKP", "kid": "a" }, with(rsa(2048), "use", json!("enc")),
            with(rsa(2048), "n", json!(modulus)), with(ed(32), "kid", json!("ed")),
        ] });
        let set = KeySet::parse(keys.to_string().as_bytes()).unwrap();
        assert_eq!(
            (set.len(), set.with_id("k").count(), set.with_id("ed").count()),
            (2, 1, 1)
        );
    }

    #[test]
    fn a_point_that_is_not_on_its_curve_verifies_nothing() {
        let key = verification_key(&ec("P-256", 32)).unwrap();
        assert!(!key.verifies(Algorithm::Es256, "e30.e30", &b64([1; 64])));
    }
}
