//! The broker's key, and the token that proves it: one JWT per request, good for a minute.
//!
//! Form: Snowflake, "Authenticating to the server", key pair authentication. `iss` is
//! `ACCOUNT.USER.SHA256:<fingerprint>`, `sub` is `ACCOUNT.USER`, both upper case; USER is the login name.

use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair;
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use kdbt_api::Timestamp;
use kdbt_api::credential::{PrivateKey, PrivateKeyError};
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;
use zeroize::Zeroizing;

use super::account::Account;

/// Seconds that a token is good for: what Snowflake's connectors take, far below the hour that the server allows.
const LIFETIME: i64 = 60;

/// Signs as one login of one account. Its `Debug` shows no key.
pub(super) struct Signer {
    key: KeyPair,
    /// `ACCOUNT.USER`.
    subject: String,
    fingerprint: String,
    /// Base64 of the SPKI.
    public_key: String,
}

/// Why a key signs nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// It is none that Snowflake takes.
    #[error(transparent)]
    Key(#[from] PrivateKeyError),
    /// The library failed on a good key.
    #[error("the private key cannot be used")]
    Unusable,
}

impl Signer {
    /// For a login name of an account. The key: PKCS#8 as PEM, or its DER as base64.
    pub(super) fn new(account: &Account, user: &str, key: &SecretString) -> Result<Self, KeyError> {
        let key: PrivateKey = key.expose_secret().parse()?;
        let der = STANDARD.decode(key.secret().expose_secret()).map(Zeroizing::new);
        let key = KeyPair::from_pkcs8(&der.map_err(|_| KeyError::Unusable)?).map_err(|_| KeyError::Unusable)?;
        let public: PublicKeyX509Der<'_> = key.public_key().as_der().map_err(|_| KeyError::Unusable)?;
        let fingerprint = format!("SHA256:{}", STANDARD.encode(digest(&SHA256, public.as_ref())));
        Ok(Self {
            key,
            subject: format!("{}.{}", account.in_jwt(), user.to_uppercase()),
            fingerprint,
            public_key: STANDARD.encode(public.as_ref()),
        })
    }

    /// The public half: base64 of the SPKI, as the account stores it.
    pub(super) fn public_key(&self) -> &str {
        &self.public_key
    }

    /// `ACCOUNT.USER`, as tokens name it: for errors.
    pub(super) fn subject(&self) -> &str {
        &self.subject
    }

    /// A token issued at this time of the server's.
    pub(super) fn token(&self, now: Timestamp) -> Result<SecretString, KeyError> {
        let (subject, fingerprint, iat) = (&self.subject, &self.fingerprint, now.as_unix());
        let header = json!({"typ": "JWT", "alg": "RS256"});
        let claims = json!({
            "iss": format!("{subject}.{fingerprint}"),
            "sub": subject,
            "iat": iat,
            "exp": iat.saturating_add(LIFETIME),
        });
        let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(header), part(claims));
        let mut signature = vec![0; self.key.public_modulus_len()];
        self.key
            .sign(
                &RSA_PKCS1_SHA256,
                &SystemRandom::new(),
                signed.as_bytes(),
                &mut signature,
            )
            .map_err(|_| KeyError::Unusable)?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)).into())
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({}, {})", self.subject, self.fingerprint)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{JwtVector, jwt_vectors, key};
    use super::*;
    use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
    use serde_json::Value;

    fn signer(vector: &JwtVector) -> Signer {
        Signer::new(&vector.account.parse().unwrap(), &vector.user, &key(&vector.key)).unwrap()
    }

    fn part(token: &str, index: usize) -> Value {
        let part = token.split('.').nth(index).unwrap();
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
    }

    #[test]
    fn a_token_says_what_snowflakes_own_connector_says() {
        let vectors = jwt_vectors();
        assert!(vectors.len() > 10);
        for vector in vectors {
            let token = signer(&vector).token(Timestamp::from_unix(1_790_000_000)).unwrap();
            let token = token.expose_secret();
            assert_eq!(part(token, 0), json!({"typ": "JWT", "alg": "RS256"}));
            let claims = json!({"iss": vector.iss, "sub": vector.sub, "iat": 1_790_000_000, "exp": 1_790_000_060});
            assert_eq!(part(token, 1), claims, "{}", vector.account);
            assert!(vector.iss.ends_with(&vector.fingerprint));
        }
    }

    #[test]
    fn a_token_is_signed_by_the_key() {
        let vector = jwt_vectors().remove(0);
        let signer = signer(&vector);
        let token = signer.token(Timestamp::from_unix(1)).unwrap();
        let (content, signature) = token.expose_secret().rsplit_once('.').unwrap();
        let public = signer.key.public_key();
        UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, public.as_ref())
            .verify(content.as_bytes(), &URL_SAFE_NO_PAD.decode(signature).unwrap())
            .unwrap();
    }

    #[test]
    fn a_signer_prints_no_key() {
        let vector = jwt_vectors().remove(0);
        let printed = format!("{:?}", signer(&vector));
        assert_eq!(printed, format!("Signer({}, {})", vector.sub, vector.fingerprint));
    }
}
