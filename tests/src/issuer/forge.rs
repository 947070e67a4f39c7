//! Tokens of every kind, honest or broken: each edit changes one thing, and what is never edited stays honest.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::keys::{Key, base64url};

/// A token in the making. Members stand in order and may repeat; their values are JSON text, which need not be valid.
///
/// ```ignore
/// issuer.forge("ada").without("aud").token();
/// issuer.forge("ada").header("alg", "none").sealed(Seal::Empty).token();
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct TokenForge {
    header: Members,
    payload: Members,
    seal: Seal,
}

/// What stands in the third part of a token.
#[derive(Clone)]
pub enum Seal {
    /// A signature by this key, with its own algorithm, whatever the header says.
    Key(Key),
    /// HMAC-SHA-256 with these bytes as the secret.
    Hs256(Vec<u8>),
    /// HMAC-SHA-512, as Keycloak signs its refresh tokens.
    Hs512(Vec<u8>),
    /// These bytes.
    Bytes(Vec<u8>),
    /// Nothing, but the second dot stays.
    Empty,
}

#[derive(Debug, Clone)]
enum Members {
    List(Vec<(String, String)>),
    Bytes(Arc<[u8]>),
}

impl TokenForge {
    /// A token with this header and payload, signed by `key`; `alg` and `kid` of the header are the key's.
    pub fn new(typ: &str, payload: Map<String, Value>, key: &Key) -> Self {
        let header = Members::List(vec![("typ".into(), Value::from(typ).to_string())]);
        let payload = Members::List(
            payload
                .into_iter()
                .map(|(name, value)| (name, value.to_string()))
                .collect(),
        );
        Self {
            header,
            payload,
            seal: Seal::Empty,
        }
        .signed_by(key)
    }

    /// Sets a header member.
    pub fn header(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.header.set(name, value.into().to_string());
        self
    }

    /// Removes a header member.
    pub fn without_header(mut self, name: &str) -> Self {
        self.header.list().retain(|(member, _)| member != name);
        self
    }

    /// Sets a claim.
    pub fn claim(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.payload.set(name, value.into().to_string());
        self
    }

    /// Sets a claim to a piece of JSON text as it stands: escapes, big numbers, duplicate names inside.
    pub fn raw_claim(mut self, name: &str, json: &str) -> Self {
        self.payload.set(name, json.to_owned());
        self
    }

    /// Removes a claim.
    pub fn without(mut self, name: &str) -> Self {
        self.payload.list().retain(|(member, _)| member != name);
        self
    }

    /// Adds a claim at the end even where one of that name stands already.
    pub fn repeated(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.payload.list().push((name.to_owned(), value.into().to_string()));
        self
    }

    /// Adds a header member at the end even where one of that name stands already.
    pub fn repeated_header(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.header.list().push((name.to_owned(), value.into().to_string()));
        self
    }

    /// Moves `exp` and `iat` (and `auth_time`, where there is one) by so many seconds; negative is the past.
    ///
    /// # Panics
    /// If one of them is no longer a number.
    pub fn moved_by(mut self, seconds: i64) -> Self {
        for (name, value) in self.payload.list() {
            if matches!(name.as_str(), "exp" | "iat" | "auth_time") {
                *value = (value.parse::<i64>().expect("times are whole seconds") + seconds).to_string();
            }
        }
        self
    }

    /// These bytes instead of the payload.
    pub fn payload_bytes(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.payload = Members::Bytes(bytes.as_ref().into());
        self
    }

    /// These bytes instead of the header.
    pub fn header_bytes(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.header = Members::Bytes(bytes.as_ref().into());
        self
    }

    /// Signed by another key, and the header says so.
    pub fn signed_by(self, key: &Key) -> Self {
        self.header("alg", key.alg())
            .header("kid", key.kid())
            .sealed(Seal::Key(key.clone()))
    }

    /// Another third part; the header stays as it is.
    pub fn sealed(mut self, seal: Seal) -> Self {
        self.seal = seal;
        self
    }

    /// The payload as it stands now.
    ///
    /// # Panics
    /// If the payload is no longer JSON.
    pub fn payload(&self) -> Value {
        serde_json::from_slice(&self.payload.bytes()).expect("the payload is JSON")
    }

    /// The token in its compact form.
    pub fn token(&self) -> String {
        let signed = format!("{}.{}", base64url(self.header.bytes()), base64url(self.payload.bytes()));
        let signature = self.seal.over(signed.as_bytes());
        format!("{signed}.{}", base64url(signature))
    }
}

impl Seal {
    fn over(&self, message: &[u8]) -> Vec<u8> {
        let hmac = |algorithm, secret: &[u8]| {
            let key = aws_lc_rs::hmac::Key::new(algorithm, secret);
            aws_lc_rs::hmac::sign(&key, message).as_ref().to_vec()
        };
        match self {
            Self::Key(key) => key.sign(message),
            Self::Hs256(secret) => hmac(aws_lc_rs::hmac::HMAC_SHA256, secret),
            Self::Hs512(secret) => hmac(aws_lc_rs::hmac::HMAC_SHA512, secret),
            Self::Bytes(bytes) => bytes.clone(),
            Self::Empty => Vec::new(),
        }
    }
}

impl std::fmt::Debug for Seal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Key(_) => "Key(..)",
            Self::Hs256(_) => "Hs256(..)",
            Self::Hs512(_) => "Hs512(..)",
            Self::Bytes(_) => "Bytes(..)",
            Self::Empty => "Empty",
        })
    }
}

impl Members {
    fn list(&mut self) -> &mut Vec<(String, String)> {
        match self {
            Self::List(members) => members,
            Self::Bytes(_) => panic!("members cannot be edited once they are plain bytes: set the bytes last"),
        }
    }

    fn set(&mut self, name: &str, json: String) {
        let members = self.list();
        match members.iter_mut().find(|(member, _)| member == name) {
            Some((_, value)) => *value = json,
            None => members.push((name.to_owned(), json)),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Bytes(bytes) => bytes.to_vec(),
            Self::List(members) => {
                let members: Vec<String> = members
                    .iter()
                    .map(|(name, json)| format!("{}:{json}", Value::from(name.as_str())))
                    .collect();
                format!("{{{}}}", members.join(",")).into_bytes()
            }
        }
    }
}
