//! Key pairs for Snowflake: RSA keys of 2048 bits, the private half as dbt reads it, the public half as the account stores it.

use std::fmt;

use aws_lc_rs::digest;
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::{KeyPair, KeySize, PublicEncryptingKey};
use aws_lc_rs::signature::KeyPair as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::SecretString;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use zeroize::Zeroizing;

/// The sizes that are taken, in bits: Snowflake's least, and what keeps a stranger's key from being a weapon.
const SIZES: std::ops::RangeInclusive<usize> = 2048..=4096;

/// The longest text of a public key, PEM armour included: a key of 4096 bits takes some 800 characters.
const LONGEST: usize = 2048;

const PEM_BEGIN: &str = "-----BEGIN PUBLIC KEY-----";
const PEM_END: &str = "-----END PUBLIC KEY-----";

/// An unencrypted PKCS#8 key, as dbt-snowflake takes it in `private_key`: base64 of the DER, on one line.
#[derive(Clone)]
pub struct PrivateKey(SecretString);

impl PrivateKey {
    /// A fresh RSA key of 2048 bits and its public half. Takes 30 to 240 ms: not for an async thread.
    pub fn generate() -> Result<(Self, PublicKey), KeyError> {
        let pair = KeyPair::generate(KeySize::Rsa2048).map_err(|_| KeyError::Generate)?;
        let der: Pkcs8V1Der<'_> = pair.as_der().map_err(|_| KeyError::Generate)?;
        let public: PublicKeyX509Der<'_> = pair.public_key().as_der().map_err(|_| KeyError::Generate)?;
        let text = Zeroizing::new(STANDARD.encode(der.as_ref()));
        let public = PublicKey {
            spki: public.as_ref().to_vec(),
        };
        Ok((Self(SecretString::from(text.as_str())), public))
    }

    /// The secret itself, for the one place that hands it to its owner.
    #[must_use]
    pub fn secret(&self) -> &SecretString {
        &self.0
    }
}

impl std::str::FromStr for PrivateKey {
    type Err = PrivateKeyError;

    /// From PEM, or from base64 of the DER on one line; space around it is no part of it.
    fn from_str(text: &str) -> Result<Self, PrivateKeyError> {
        let der = pkcs8(text.trim())?;
        match KeyPair::from_pkcs8(&der) {
            Ok(_) => Ok(Self(SecretString::from(Zeroizing::new(STANDARD.encode(&der)).as_str()))),
            Err(rejected) if rejected.description_() == "TooSmall" => Err(PrivateKeyError::TooSmall),
            Err(_) => Err(PrivateKeyError::NotRsa),
        }
    }
}

/// The DER inside; what is in it, nobody has looked at.
fn pkcs8(text: &str) -> Result<Zeroizing<Vec<u8>>, PrivateKeyError> {
    let Some(armour) = text.strip_prefix("-----BEGIN ") else {
        let der = STANDARD.decode(text).ok().filter(|der| !der.is_empty());
        return der.map(Zeroizing::new).ok_or(PrivateKeyError::Form);
    };
    let (kind, body) = armour.split_once("-----").ok_or(PrivateKeyError::Form)?;
    match kind {
        "PRIVATE KEY" => {}
        "RSA PRIVATE KEY" => return Err(PrivateKeyError::Pkcs1),
        "ENCRYPTED PRIVATE KEY" => return Err(PrivateKeyError::Encrypted),
        "EC PRIVATE KEY" => return Err(PrivateKeyError::NotRsa),
        "PUBLIC KEY" | "RSA PUBLIC KEY" | "CERTIFICATE" => return Err(PrivateKeyError::NotPrivate),
        _ => return Err(PrivateKeyError::Form),
    }
    let (lines, _) = body
        .split_once("-----END PRIVATE KEY-----")
        .ok_or(PrivateKeyError::Form)?;
    let line: Zeroizing<String> = Zeroizing::new(lines.split_ascii_whitespace().collect());
    let der = STANDARD.decode(line.as_str()).map_err(|_| PrivateKeyError::Form)?;
    Ok(Zeroizing::new(der))
}

/// Why a text is no key that Snowflake's tools take. No part of the text is ever quoted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PrivateKeyError {
    /// Neither form.
    #[error("the private key must be PKCS#8: `-----BEGIN PRIVATE KEY-----`, or the base64 of its DER on one line")]
    Form,
    /// The older RSA-only form.
    #[error("the private key is PKCS#1: convert it by `openssl pkcs8 -topk8 -nocrypt -in OLD -out NEW`")]
    Pkcs1,
    /// Needs a passphrase, and nobody is there to type it.
    #[error(
        "the private key is encrypted: decrypt it by `openssl pkcs8 -in OLD -out NEW`, and keep the file from others"
    )]
    Encrypted,
    /// A public key or a certificate.
    #[error("this is no private key: name the file that begins with `-----BEGIN PRIVATE KEY-----`")]
    NotPrivate,
    /// Another kind of key.
    #[error(
        "the private key is no RSA key, and Snowflake takes no other here: make one by `openssl genpkey -algorithm \
         RSA -pkeyopt rsa_keygen_bits:2048 -out NEW`"
    )]
    NotRsa,
    /// Fewer bits than Snowflake takes.
    #[error(
        "the private key has fewer than 2048 bits: make a new one by `openssl genpkey -algorithm RSA -pkeyopt \
         rsa_keygen_bits:2048 -out NEW`"
    )]
    TooSmall,
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

/// The public half of a key pair: an RSA `SubjectPublicKeyInfo` (RFC 5280 section 4.1.2.7), always written anew from
/// what was read. Read from base64 on one line, or from PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    spki: Vec<u8>,
}

impl PublicKey {
    /// The text of Snowflake's `RSA_PUBLIC_KEY`: base64 of the DER on one line, without PEM armour.
    #[must_use]
    pub fn to_snowflake(&self) -> String {
        STANDARD.encode(&self.spki)
    }

    /// Snowflake's `RSA_PUBLIC_KEY_FP`: `SHA256:` and the base64 of the hash of the DER.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        format!(
            "SHA256:{}",
            STANDARD.encode(digest::digest(&digest::SHA256, &self.spki))
        )
    }
}

/// Why a text is no key that kdbt passes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Neither base64 nor PEM.
    #[error("a public key is PEM, or standard base64 of its DER on one line")]
    Base64,
    /// Something else than a `SubjectPublicKeyInfo` with an RSA key.
    #[error("the key is no RSA public key (`openssl rsa -in key.p8 -pubout` prints one)")]
    NotRsa,
    /// Too small for Snowflake, or larger than anybody needs.
    #[error("an RSA key must have 2048 to 4096 bits")]
    Size,
    /// The system has no randomness to give.
    #[error("a key pair could not be made")]
    Generate,
}

impl std::str::FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        if text.len() > LONGEST {
            return Err(KeyError::Size);
        }
        let armoured = text
            .trim_matches(|c: char| c.is_ascii_whitespace())
            .strip_prefix(PEM_BEGIN)
            .and_then(|rest| rest.strip_suffix(PEM_END));
        let der = match armoured {
            Some(lines) => STANDARD.decode(lines.split_ascii_whitespace().collect::<String>()),
            None => STANDARD.decode(text),
        };
        let der = der.map_err(|_| KeyError::Base64)?;
        let key = PublicEncryptingKey::from_der(&der).map_err(|_| KeyError::NotRsa)?;
        if !SIZES.contains(&key.key_size_bits()) {
            return Err(KeyError::Size);
        }
        let spki: PublicKeyX509Der<'_> = key.as_der().map_err(|_| KeyError::NotRsa)?;
        // One text per key: nothing behind it, and no other encoding of it.
        if spki.as_ref() != der {
            return Err(KeyError::NotRsa);
        }
        Ok(Self { spki: der })
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.fingerprint())
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_snowflake())
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(feature = "openapi")]
impl utoipa::PartialSchema for PublicKey {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .description(Some(
                "An RSA key of 2048 to 4096 bits: PEM, or base64 of its DER on one line.",
            ))
            .max_length(Some(LONGEST))
            .build()
            .into()
    }
}

#[cfg(feature = "openapi")]
impl utoipa::ToSchema for PublicKey {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use secrecy::ExposeSecret as _;

    fn size(size: KeySize) -> String {
        let pair = KeyPair::generate(size).unwrap();
        let public: PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
        STANDARD.encode(public.as_ref())
    }

    #[test]
    fn a_fresh_pair_has_the_length_that_dbt_and_snowflake_expect_and_one_text() {
        let (private, public) = PrivateKey::generate().unwrap();
        let der = STANDARD.decode(private.secret().expose_secret()).unwrap();
        assert!((1210..1224).contains(&der.len()), "{}", der.len());
        let text = public.to_snowflake();
        assert_eq!(STANDARD.decode(&text).unwrap().len(), 294);
        assert_eq!(text.parse::<PublicKey>().unwrap(), public);
        assert_eq!(format!("{private:?}"), "PrivateKey(..)");
        assert!(public.fingerprint().starts_with("SHA256:") && public.fingerprint().len() == 51);
    }

    #[test]
    fn a_pem_is_read_as_the_same_key() {
        let (_, public) = PrivateKey::generate().unwrap();
        let text = public.to_snowflake();
        let (head, tail) = text.split_at(64);
        let pem = format!("{PEM_BEGIN}\n{head}\r\n{tail}\n{PEM_END}\n");
        assert_eq!(pem.parse::<PublicKey>().unwrap(), public);
    }

    #[test]
    fn a_key_of_another_kind_or_size_is_refused_with_the_reason() {
        let ec = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEEVs/o5+uQbTjL3chynL4wXgUg2R9q9UU8I5mEovUf86QZ7kOBIjJwqnzD1omageEHWwHdBO6B+dFabmdT9POxg==";
        let longer = format!("{}AAAA", PrivateKey::generate().unwrap().1.to_snowflake());
        for (text, error) in [
            ("", KeyError::NotRsa),
            ("no key", KeyError::Base64),
            (ec, KeyError::NotRsa),
            (&longer, KeyError::NotRsa),
            (
                "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----",
                KeyError::NotRsa,
            ),
            (&"A".repeat(3000), KeyError::Size),
            (&size(KeySize::Rsa8192), KeyError::Size),
        ] {
            assert_eq!(text.parse::<PublicKey>(), Err(error), "{text}");
        }
        assert!(size(KeySize::Rsa4096).parse::<PublicKey>().is_ok());
    }

    const PEM: &str = include_str!("../../../tests/fixtures/snowflake/key_a.p8");

    #[test]
    fn a_private_key_is_the_same_in_pem_and_on_one_line() {
        let line: String = PEM.lines().filter(|line| !line.starts_with('-')).collect();
        for text in [
            PEM.to_owned(),
            PEM.replace('\n', "\r\n"),
            line.clone(),
            format!("{line}\n"),
        ] {
            let key: PrivateKey = text.parse().unwrap();
            assert_eq!(key.secret().expose_secret(), line);
        }
    }

    #[test]
    fn every_other_kind_of_private_key_is_refused_with_the_way_to_a_right_one() {
        use PrivateKeyError as E;
        let pem = |name: &str| format!("-----BEGIN {name}-----\nAAAA\n-----END {name}-----\n");
        let cut = PEM.lines().take(9).collect::<Vec<_>>().join("\n");
        for (text, error) in [
            (String::new(), E::Form),
            ("not a key".into(), E::Form),
            ("AAAA".into(), E::NotRsa),
            (pem("PRIVATE KEY"), E::NotRsa),
            (pem("RSA PRIVATE KEY"), E::Pkcs1),
            (pem("EC PRIVATE KEY"), E::NotRsa),
            (pem("ENCRYPTED PRIVATE KEY"), E::Encrypted),
            (pem("PUBLIC KEY"), E::NotPrivate),
            (pem("CERTIFICATE"), E::NotPrivate),
            (pem("OPENSSH PRIVATE KEY"), E::Form),
            ("-----BEGIN PRIVATE KEY-----".into(), E::Form),
            ("-----BEGIN ".into(), E::Form),
            (cut, E::Form),
            (
                include_str!("../../../tests/fixtures/snowflake/rsa_1024.p8").into(),
                E::TooSmall,
            ),
            (
                include_str!("../../../tests/fixtures/snowflake/ec_p256.p8").into(),
                E::NotRsa,
            ),
        ] {
            let refused = text.parse::<PrivateKey>().unwrap_err();
            assert_eq!(refused, error, "{text}");
            assert!(
                text.lines()
                    .nth(1)
                    .is_none_or(|line| !refused.to_string().contains(line))
            );
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".*", bytes: Vec<u8>) {
            let _ = text.parse::<PublicKey>();
            let _ = text.parse::<PrivateKey>();
            let _ = format!("-----BEGIN {text}").parse::<PrivateKey>();
            let _ = format!("-----BEGIN PRIVATE KEY-----{text}-----END PRIVATE KEY-----").parse::<PrivateKey>();
            let _ = STANDARD.encode(bytes).parse::<PublicKey>();
        }
    }
}
