//! Secrets and what may be known of them: the warehouse and the broker see verifiers and public keys, never a secret.

use std::fmt;
use std::num::NonZeroU32;

use aws_lc_rs::{digest, hmac, pbkdf2};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rand::CryptoRng;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use zeroize::Zeroizing;

mod key;

pub use key::{KeyError, PrivateKey, PrivateKeyError, PublicKey};

const KEY_LEN: usize = 32;
const SALT_LEN: usize = 16;

/// A password made by kdbt: a letter, then 31 of `[A-Za-z0-9]` (190 bits). dbt reads a profile as YAML
/// and renders it as Jinja; only letters and digits with a letter first survive every way of writing it.
#[derive(Clone)]
pub struct Password(SecretString);

impl Password {
    /// A fresh password.
    pub fn generate(rng: &mut impl CryptoRng) -> Self {
        const ALPHABET: &[u8; 62] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
        let mut text = Zeroizing::new(String::with_capacity(32));
        while text.len() < 32 {
            let mut byte = [0_u8];
            rng.fill_bytes(&mut byte);
            // Six bits at a time, thrown away where they fall outside: every character is equally likely.
            let index = usize::from(byte[0] & 0x3f);
            let limit = if text.is_empty() { 52 } else { 62 };
            if let Some(c) = ALPHABET.get(index).filter(|_| index < limit) {
                text.push(char::from(*c));
            }
        }
        Self(SecretString::from(text.as_str()))
    }

    /// The secret itself, for the one place that hands it to its owner.
    #[must_use]
    pub fn secret(&self) -> &SecretString {
        &self.0
    }

    /// What the warehouse stores of it.
    pub fn verifier(&self, iterations: Iterations, rng: &mut impl CryptoRng) -> ScramVerifier {
        let mut salt = [0_u8; SALT_LEN];
        rng.fill_bytes(&mut salt);
        ScramVerifier::derive(self.0.expose_secret().as_bytes(), &salt, iterations)
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

/// How often the password is hashed. Only two numbers are accepted, because the count is a weapon: the
/// server spends it at `CREATE ROLE`. A password of 190 bits gains nothing from more than one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Iterations {
    /// 1: for clients that use libpq, as dbt does.
    One,
    /// 4096, the least that RFC 7677 recommends and the Java driver accepts.
    Standard,
}

impl Iterations {
    /// The number.
    #[must_use]
    pub fn count(self) -> NonZeroU32 {
        match self {
            Self::One => NonZeroU32::MIN,
            Self::Standard => NonZeroU32::MIN.saturating_add(4095),
        }
    }
}

/// A PostgreSQL SCRAM-SHA-256 verifier (RFC 5802 section 3, PostgreSQL's `pg_authid.rolpassword` form):
/// `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`. Always written anew from its parts, since a
/// text of nearly that form would be taken by the server as a plain password.
#[derive(Clone, PartialEq, Eq)]
pub struct ScramVerifier {
    iterations: Iterations,
    salt: Vec<u8>,
    stored_key: [u8; KEY_LEN],
    server_key: [u8; KEY_LEN],
}

impl ScramVerifier {
    /// What every text of one matches, as a regular expression of JSON Schema: a salt of 16 to 64 bytes, keys of 32.
    pub const PATTERN: &str = "^SCRAM-SHA-256\\$(?:1|4096):(?:\
        (?:[A-Za-z0-9+/]{4}){5,21}[A-Za-z0-9+/][AQgw]==|\
        (?:[A-Za-z0-9+/]{4}){5,20}[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=|\
        (?:[A-Za-z0-9+/]{4}){6,21})\
        \\$[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=:[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=$";

    /// The verifier of an ASCII password (no `SASLprep` is needed for what [`Password`] makes).
    #[must_use]
    pub fn derive(password: &[u8], salt: &[u8], iterations: Iterations) -> Self {
        let mut salted = Zeroizing::new([0_u8; KEY_LEN]);
        pbkdf2::derive(
            pbkdf2::PBKDF2_HMAC_SHA256,
            iterations.count(),
            salt,
            password,
            salted.as_mut(),
        );
        let key = hmac::Key::new(hmac::HMAC_SHA256, salted.as_ref());
        let client_key = hmac::sign(&key, b"Client Key");
        Self {
            iterations,
            salt: salt.to_vec(),
            stored_key: sha256(client_key.as_ref()),
            server_key: array(hmac::sign(&key, b"Server Key").as_ref()),
        }
    }

    /// The text that PostgreSQL stores.
    #[must_use]
    pub fn to_postgres(&self) -> String {
        format!(
            "SCRAM-SHA-256${}:{}${}:{}",
            self.iterations.count(),
            STANDARD.encode(&self.salt),
            STANDARD.encode(self.stored_key),
            STANDARD.encode(self.server_key)
        )
    }
}

fn sha256(bytes: &[u8]) -> [u8; KEY_LEN] {
    array(digest::digest(&digest::SHA256, bytes).as_ref())
}

/// The first 32 bytes; both callers have exactly that many.
fn array(bytes: &[u8]) -> [u8; KEY_LEN] {
    let mut out = [0; KEY_LEN];
    for (to, from) in out.iter_mut().zip(bytes) {
        *to = *from;
    }
    out
}

/// Why a text is no verifier that kdbt passes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VerifierError {
    /// Not the four parts behind `SCRAM-SHA-256$`.
    #[error("a verifier has the form `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`")]
    Malformed,
    /// Another number of iterations.
    #[error("a verifier must have 1 or 4096 iterations")]
    Iterations,
    /// A part that is not base64 with padding, in its one canonical form.
    #[error("salt and keys of a verifier must be standard base64 with padding")]
    Base64,
    /// A salt outside 16 to 64 bytes.
    #[error("the salt of a verifier must have 16 to 64 bytes")]
    Salt,
    /// A key of another length.
    #[error("the keys of a verifier must have exactly 32 bytes")]
    Key,
}

impl std::str::FromStr for ScramVerifier {
    type Err = VerifierError;

    fn from_str(text: &str) -> Result<Self, VerifierError> {
        let rest = text.strip_prefix("SCRAM-SHA-256$").ok_or(VerifierError::Malformed)?;
        let (head, keys) = rest.split_once('$').ok_or(VerifierError::Malformed)?;
        let (iterations, salt) = head.split_once(':').ok_or(VerifierError::Malformed)?;
        let (stored_key, server_key) = keys.split_once(':').ok_or(VerifierError::Malformed)?;
        let iterations = match iterations {
            "1" => Iterations::One,
            "4096" => Iterations::Standard,
            _ => return Err(VerifierError::Iterations),
        };
        let bytes = |part: &str| STANDARD.decode(part).map_err(|_| VerifierError::Base64);
        let key = |part: &str| bytes(part)?.try_into().map_err(|_| VerifierError::Key);
        let salt = bytes(salt)?;
        if !(SALT_LEN..=64).contains(&salt.len()) {
            return Err(VerifierError::Salt);
        }
        Ok(Self {
            iterations,
            salt,
            stored_key: key(stored_key)?,
            server_key: key(server_key)?,
        })
    }
}

impl fmt::Debug for ScramVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ScramVerifier(..)")
    }
}

impl Serialize for ScramVerifier {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_postgres())
    }
}

impl<'de> Deserialize<'de> for ScramVerifier {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// What shows that a caller without a session is the one who got the lease: 32 random bytes that stay
/// with the client; the broker stores their [`ProofHash`] only.
#[derive(Clone)]
pub struct OwnerProof(SecretString);

impl OwnerProof {
    /// A fresh proof.
    pub fn generate(rng: &mut impl CryptoRng) -> Self {
        let mut bytes = Zeroizing::new([0_u8; 32]);
        rng.fill_bytes(bytes.as_mut());
        Self(SecretString::from(URL_SAFE_NO_PAD.encode(bytes.as_ref())))
    }

    /// A proof as a caller sent it; compared by its hash only.
    #[must_use]
    pub fn from_secret(text: SecretString) -> Self {
        Self(text)
    }

    /// The text that goes into the header of later calls.
    #[must_use]
    pub fn secret(&self) -> &SecretString {
        &self.0
    }

    /// What the broker stores.
    #[must_use]
    pub fn hash(&self) -> ProofHash {
        ProofHash(sha256(self.0.expose_secret().as_bytes()))
    }
}

impl fmt::Debug for OwnerProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OwnerProof(..)")
    }
}

/// SHA-256 of an [`OwnerProof`], 43 characters of base64url on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProofHash([u8; 32]);

impl ProofHash {
    /// What every text of one matches, as a regular expression of JSON Schema.
    pub const PATTERN: &str = "^[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]$";

    /// The bytes, for the store.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// From the store.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl Serialize for ProofHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl<'de> Deserialize<'de> for ProofHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = URL_SAFE_NO_PAD
            .decode(text)
            .ok()
            .and_then(|bytes| bytes.try_into().ok());
        bytes
            .map(Self)
            .ok_or_else(|| de::Error::custom("an owner proof is a SHA-256 in base64url without padding"))
    }
}

#[cfg(feature = "openapi")]
mod openapi {
    use utoipa::openapi::{RefOr, Schema};
    use utoipa::{PartialSchema, ToSchema};

    macro_rules! text {
        ($type:ty) => {
            impl PartialSchema for $type {
                fn schema() -> RefOr<Schema> {
                    crate::openapi::text(<$type>::PATTERN)
                }
            }
            impl ToSchema for $type {}
        };
    }
    text!(super::ScramVerifier);
    text!(super::ProofHash);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    fn rng() -> StdRng {
        StdRng::seed_from_u64(7)
    }

    #[test]
    fn the_verifier_is_the_one_of_rfc_7677() {
        // RFC 7677 section 3: user "user", password "pencil"; the keys follow from its salt and count.
        let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let verifier = ScramVerifier::derive(b"pencil", &salt, Iterations::Standard);
        assert_eq!(
            verifier.to_postgres(),
            "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
        );
    }

    #[test]
    fn verifiers_of_every_wrong_form_are_refused() {
        let good = Password::generate(&mut rng())
            .verifier(Iterations::One, &mut rng())
            .to_postgres();
        assert!(good.parse::<ScramVerifier>().is_ok());
        let salt = STANDARD.encode([1; 16]);
        let key = STANDARD.encode([1; 32]);
        for (text, error) in [
            (String::new(), VerifierError::Malformed),
            ("secret".into(), VerifierError::Malformed),
            ("md5abcdef".into(), VerifierError::Malformed),
            ("SCRAM-SHA-256$4096:bad".into(), VerifierError::Malformed),
            (
                format!("SCRAM-SHA-256$2147483647:{salt}${key}:{key}"),
                VerifierError::Iterations,
            ),
            (format!("SCRAM-SHA-256$0:{salt}${key}:{key}"), VerifierError::Iterations),
            (
                format!("SCRAM-SHA-256$-5:{salt}${key}:{key}"),
                VerifierError::Iterations,
            ),
            (
                format!("SCRAM-SHA-256$01:{salt}${key}:{key}"),
                VerifierError::Iterations,
            ),
            (
                format!("SCRAM-SHA-256$1:{}${key}:{key}", STANDARD.encode([1; 15])),
                VerifierError::Salt,
            ),
            (
                format!("SCRAM-SHA-256$1:{}${key}:{key}", STANDARD.encode([1; 65])),
                VerifierError::Salt,
            ),
            (format!("SCRAM-SHA-256$1:{salt}$YQ==:{key}"), VerifierError::Key),
            (
                format!("SCRAM-SHA-256$1:{salt}${key}:{}", STANDARD.encode([1; 33])),
                VerifierError::Key,
            ),
            (format!("SCRAM-SHA-256$1:{salt}${key}:{key}'"), VerifierError::Base64),
            (format!("SCRAM-SHA-256$1:{salt}${key}:{key}\n"), VerifierError::Base64),
        ] {
            assert_eq!(text.parse::<ScramVerifier>(), Err(error), "{text:?}");
        }
    }

    #[test]
    fn nothing_that_holds_a_secret_prints_it() {
        let password = Password::generate(&mut rng());
        let proof = OwnerProof::generate(&mut rng());
        let printed = format!(
            "{password:?} {proof:?} {:?}",
            password.verifier(Iterations::One, &mut rng())
        );
        assert_eq!(printed, "Password(..) OwnerProof(..) ScramVerifier(..)");
    }

    proptest! {
        #[test]
        fn every_text_of_a_documented_pattern_is_a_verifier_or_a_hash(
            verifier in ScramVerifier::PATTERN.trim_start_matches('^').trim_end_matches('$'),
            hash in ProofHash::PATTERN.trim_start_matches('^').trim_end_matches('$'),
        ) {
            prop_assert!(verifier.parse::<ScramVerifier>().is_ok(), "{verifier}");
            prop_assert!(serde_json::from_value::<ProofHash>(hash.clone().into()).is_ok(), "{hash}");
        }

        #[test]
        fn a_password_is_a_letter_and_31_letters_or_digits(seed: u64) {
            let password = Password::generate(&mut StdRng::seed_from_u64(seed));
            let text = password.secret().expose_secret();
            prop_assert_eq!(text.len(), 32);
            prop_assert!(text.starts_with(|c: char| c.is_ascii_alphabetic()));
            prop_assert!(text.chars().all(|c| c.is_ascii_alphanumeric()));
        }

        #[test]
        fn a_verifier_survives_its_own_text(seed: u64, password in "[a-zA-Z0-9]{1,64}") {
            let mut salt = [0; 16];
            StdRng::seed_from_u64(seed).fill_bytes(&mut salt);
            let verifier = ScramVerifier::derive(password.as_bytes(), &salt, Iterations::One);
            prop_assert_eq!(verifier.to_postgres().parse(), Ok(verifier));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".*") {
            let _ = text.parse::<ScramVerifier>();
            let _ = format!("SCRAM-SHA-256${text}").parse::<ScramVerifier>();
        }
    }
}
