//! Key-pair tokens as the account checks them. Nothing is shared with who signs them: the key is read out of its DER
//! by hand, and RSASSA-PKCS1-v1_5 (RFC 8017 section 8.2.2) is arithmetic on big integers.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use num_bigint::BigUint;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// What a token says.
#[derive(Debug, Clone)]
pub struct Claims {
    /// `ACCOUNT.USER.SHA256:…`.
    pub iss: String,
    /// `ACCOUNT.USER`.
    pub sub: String,
    /// Seconds.
    pub iat: i64,
    /// Seconds.
    pub exp: i64,
}

/// A token in its parts.
pub struct Token {
    /// What it says.
    pub claims: Claims,
    signed: String,
    signature: Vec<u8>,
}

impl Token {
    /// Reads a token; an error is the vendor's detail code.
    pub fn read(text: &str) -> Result<Self, &'static str> {
        let parts: Vec<&str> = text.split('.').collect();
        let [header, claims, signature] = parts[..] else {
            return Err("394306");
        };
        let json = |part: &str| -> Option<Value> { serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok() };
        let header_json = json(header).ok_or("394306")?;
        if header_json["alg"] != "RS256" {
            return Err("394305");
        }
        let said = json(claims).ok_or("394306")?;
        let text = |name: &str| said[name].as_str().map(str::to_owned);
        Ok(Self {
            claims: Claims {
                iss: text("iss").ok_or("394300")?,
                sub: text("sub").ok_or("394300")?,
                iat: said["iat"].as_i64().ok_or("394301")?,
                exp: said["exp"].as_i64().ok_or("394301")?,
            },
            signed: format!("{header}.{claims}"),
            signature: URL_SAFE_NO_PAD.decode(signature).map_err(|_| "394306")?,
        })
    }

    /// Whether this key made the signature.
    pub fn is_signed_by(&self, spki: &str) -> bool {
        let Some((modulus, exponent)) = STANDARD.decode(spki).ok().and_then(|der| rsa_key(&der)) else {
            return false;
        };
        let length = modulus.to_bytes_be().len();
        let signature = BigUint::from_bytes_be(&self.signature);
        if self.signature.len() != length || signature >= modulus {
            return false;
        }
        let mut message = signature.modpow(&exponent, &modulus).to_bytes_be();
        while message.len() < length {
            message.insert(0, 0);
        }
        message == encoded(&Sha256::digest(self.signed.as_bytes()), length)
    }
}

/// EMSA-PKCS1-v1_5 (RFC 8017 section 9.2) of a SHA-256 hash.
fn encoded(hash: &[u8], length: usize) -> Vec<u8> {
    const DIGEST_INFO: [u8; 19] = [
        0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0x04,
        0x20,
    ];
    let mut message = vec![0x00, 0x01];
    message.resize(length - DIGEST_INFO.len() - hash.len() - 1, 0xff);
    message.push(0x00);
    message.extend(DIGEST_INFO);
    message.extend(hash);
    message
}

/// Snowflake's fingerprint of a key.
pub fn fingerprint(spki: &str) -> Option<String> {
    let der = STANDARD.decode(spki).ok()?;
    Some(format!("SHA256:{}", STANDARD.encode(Sha256::digest(&der))))
}

/// Modulus and exponent of an RSA `SubjectPublicKeyInfo` with at least 2048 bits.
pub fn rsa_key(der: &[u8]) -> Option<(BigUint, BigUint)> {
    const RSA: [u8; 11] = [0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
    let (spki, rest) = value(der, 0x30)?;
    let (algorithm, rest_of_spki) = value(spki, 0x30)?;
    let (bits, nothing) = value(rest_of_spki, 0x03)?;
    let (key, _) = value(bits.strip_prefix(&[0])?, 0x30)?;
    let (modulus, after) = value(key, 0x02)?;
    let (exponent, _) = value(after, 0x02)?;
    let modulus = BigUint::from_bytes_be(modulus);
    let whole = rest.is_empty() && nothing.is_empty() && algorithm.starts_with(&RSA) && modulus.bits() >= 2048;
    whole.then(|| (modulus, BigUint::from_bytes_be(exponent)))
}

/// The value of a DER element with this tag, and what follows it.
fn value(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&first, rest) = der.split_first()?;
    let (&length, rest) = rest.split_first()?;
    let (length, rest) = if length < 0x80 {
        (usize::from(length), rest)
    } else {
        let (bytes, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
        (
            bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)),
            rest,
        )
    };
    (first == tag).then(|| rest.split_at_checked(length)).flatten()
}
