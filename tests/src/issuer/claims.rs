//! Which claims a token carries: pure, from the realm, the person, the client and the session alone.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::keys::random_text;
use super::realm::{Client, Mapper, MapperRule, Realm, Role, User};

pub(super) type Claims = Map<String, Value>;

/// All that a set of tokens follows from.
pub(super) struct Occasion<'a> {
    pub(super) iss: &'a str,
    pub(super) realm: &'a Realm,
    pub(super) user: &'a User,
    pub(super) client: &'a Client,
    pub(super) grant: Grant,
    /// `None`: a transient session, as client credentials have it.
    pub(super) session: Option<SessionClaims<'a>>,
    /// Epoch seconds.
    pub(super) now: i64,
}

pub(super) struct SessionClaims<'a> {
    pub(super) sid: &'a str,
    /// Epoch seconds of the login.
    pub(super) auth_time: i64,
    pub(super) nonce: Option<&'a str>,
    /// Was `openid` among the scopes asked for?
    pub(super) openid: bool,
    /// Epoch seconds after which the session is over, used or not.
    pub(super) ends_at: i64,
}

/// How a token was come by; Keycloak codes it into the token's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Grant {
    Code,
    Device,
    Password,
    Refresh,
    ClientCredentials,
}

impl Grant {
    fn code(self) -> &'static str {
        match self {
            Self::Code => "ac",
            Self::Device => "dg",
            Self::Password => "ro",
            Self::Refresh => "rt",
            Self::ClientCredentials => "cc",
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Access,
    Lightweight,
    Id,
}

impl Occasion<'_> {
    /// The access token as this client gets it: whole, or lightweight.
    pub(super) fn access(&self) -> Claims {
        if self.client.lightweight {
            self.bearer(Kind::Lightweight)
        } else {
            self.bearer(Kind::Access)
        }
    }

    /// What introspection answers: also for a lightweight token, all claims.
    pub(super) fn full_access(&self) -> Claims {
        self.bearer(Kind::Access)
    }

    pub(super) fn id(&self, access_token: &str) -> Claims {
        let mut claims = self.base("ID", self.access_expiry());
        claims.insert("aud".into(), self.client.id.as_str().into());
        claims.insert(
            "at_hash".into(),
            super::keys::base64url(&super::keys::sha256(access_token.as_bytes())[..16]).into(),
        );
        if let Some(nonce) = self.session.as_ref().and_then(|session| session.nonce) {
            claims.insert("nonce".into(), nonce.into());
        }
        self.insert_person(&mut claims);
        self.insert_mapped(&mut claims, Kind::Id);
        claims
    }

    /// Only this issuer reads it again.
    pub(super) fn refresh(&self) -> Claims {
        let session = self.session.as_ref();
        let ends_at = session.map_or(i64::MAX, |session| session.ends_at);
        let mut claims = self.base("Refresh", ends_at.min(self.now + self.realm.session_idle));
        claims.insert("jti".into(), uuid().into());
        claims.insert("aud".into(), self.iss.into());
        claims.insert("scope".into(), self.scope().into());
        claims
    }

    /// The scopes in the words of the token: `openid` where asked for, then what the client has by default.
    pub(super) fn scope(&self) -> String {
        let openid = self.session.as_ref().is_some_and(|session| session.openid);
        let named = ["email", "profile"].into_iter().filter(|name| self.has_scope(name));
        openid
            .then_some("openid")
            .into_iter()
            .chain(named)
            .collect::<Vec<_>>()
            .join(" ")
    }

    fn access_expiry(&self) -> i64 {
        self.now
            + self
                .client
                .access_token_lifespan
                .unwrap_or(self.realm.access_token_lifespan)
    }

    fn has_scope(&self, name: &str) -> bool {
        self.client.default_scopes.contains(name)
    }

    /// What every kind of token has.
    fn base(&self, typ: &str, exp: i64) -> Claims {
        let mut claims = Claims::new();
        claims.insert("exp".into(), exp.into());
        claims.insert("iat".into(), self.now.into());
        claims.insert("jti".into(), uuid().into());
        claims.insert("iss".into(), self.iss.into());
        claims.insert("typ".into(), typ.into());
        claims.insert("azp".into(), self.client.id.as_str().into());
        if self.has_scope("basic") {
            claims.insert("sub".into(), self.user.id.as_str().into());
        }
        if let Some(session) = &self.session {
            claims.insert("sid".into(), session.sid.into());
            if self.has_scope("basic") {
                claims.insert("auth_time".into(), session.auth_time.into());
            }
        }
        if self.has_scope("acr") {
            claims.insert("acr".into(), "1".into());
        }
        claims
    }

    fn bearer(&self, kind: Kind) -> Claims {
        let mut claims = self.base("Bearer", self.access_expiry());
        let session = if self.session.is_some() { "on" } else { "tr" };
        let weight = if kind == Kind::Lightweight { "lt" } else { "rt" };
        claims.insert(
            "jti".into(),
            format!("{session}{weight}{}:{}", self.grant.code(), uuid()).into(),
        );
        claims.insert("scope".into(), self.scope().into());
        let mut audiences = BTreeSet::new();
        if kind == Kind::Lightweight {
            for absent in ["sub", "auth_time", "acr"] {
                claims.remove(absent);
            }
        } else {
            self.insert_person(&mut claims);
            audiences = self.insert_roles(&mut claims);
            if self.has_scope("web-origins") && !self.client.web_origins.is_empty() {
                claims.insert("allowed-origins".into(), json!(self.client.web_origins));
            }
            if self.has_scope("service_account") && self.session.is_none() {
                claims.insert("client_id".into(), self.client.id.as_str().into());
                claims.insert("clientHost".into(), "127.0.0.1".into());
                claims.insert("clientAddress".into(), "127.0.0.1".into());
            }
        }
        audiences.extend(self.insert_mapped(&mut claims, kind));
        match audiences.len() {
            0 => None,
            1 => claims.insert("aud".into(), audiences.pop_first().into()),
            _ => claims.insert("aud".into(), json!(audiences)),
        };
        claims
    }

    fn insert_person(&self, claims: &mut Claims) {
        let user = self.user;
        let mut set = |name: &str, value: Option<Value>| value.map(|value| claims.insert(name.to_owned(), value));
        if self.has_scope("profile") {
            set("name", user.full_name().map(Value::from));
            set("preferred_username", Some(user.username.as_str().into()));
            set("given_name", user.first_name.clone().map(Value::from));
            set("family_name", user.last_name.clone().map(Value::from));
        }
        if self.has_scope("email") {
            set("email", user.email.clone().map(Value::from));
            set("email_verified", Some(user.email_verified.into()));
        }
    }

    /// The role claims, and the audiences that follow from them: every client with a role here, but not the asker.
    fn insert_roles(&self, claims: &mut Claims) -> BTreeSet<String> {
        if !self.has_scope("roles") {
            return BTreeSet::new();
        }
        let mut of_realm = Vec::new();
        let mut of_clients = Map::new();
        for role in self.realm.roles_in_token(self.user, self.client) {
            match role {
                Role::Realm(name) => of_realm.push(Value::from(name)),
                Role::Client { client, name } => {
                    let entry = of_clients.entry(client).or_insert_with(|| json!({ "roles": [] }));
                    entry["roles"]
                        .as_array_mut()
                        .expect("made one line above")
                        .push(name.into());
                }
            }
        }
        let audiences = of_clients
            .keys()
            .filter(|client| **client != self.client.id)
            .cloned()
            .collect();
        if !of_realm.is_empty() {
            claims.insert("realm_access".into(), json!({ "roles": of_realm }));
        }
        if !of_clients.is_empty() {
            claims.insert("resource_access".into(), of_clients.into());
        }
        audiences
    }

    /// What the client's mappers add; the audiences among it are the answer.
    fn insert_mapped(&self, claims: &mut Claims, kind: Kind) -> Vec<String> {
        let applies = |mapper: &&Mapper| match kind {
            Kind::Access => mapper.into_access,
            Kind::Lightweight => mapper.into_lightweight,
            Kind::Id => mapper.into_id,
        };
        let mut audiences = Vec::new();
        for mapper in self.client.mappers.iter().filter(applies) {
            match &mapper.rule {
                MapperRule::Audience(audience) => audiences.push(audience.clone()),
                MapperRule::Groups { claim, full_path } => {
                    let named = |path: &String| match (full_path, path.rsplit_once('/')) {
                        (false, Some((_, last))) => last.to_owned(),
                        _ => path.clone(),
                    };
                    claims.insert(claim.clone(), self.user.groups.iter().map(named).collect());
                }
                MapperRule::Attribute {
                    attribute,
                    claim,
                    multivalued,
                } => {
                    let values = self
                        .user
                        .attributes
                        .get(attribute)
                        .map(Vec::as_slice)
                        .unwrap_or_default();
                    match (multivalued, values) {
                        (_, []) => None,
                        (true, values) => claims.insert(claim.clone(), json!(values)),
                        (false, [first, ..]) => claims.insert(claim.clone(), first.as_str().into()),
                    };
                }
                MapperRule::Fixed { claim, value } => {
                    claims.insert(claim.clone(), value.clone());
                }
            }
        }
        audiences
    }
}

fn uuid() -> String {
    let bytes = super::keys::sha256(random_text(32).as_bytes());
    uuid::Builder::from_random_bytes(bytes[..16].try_into().expect("a digest has 32 bytes"))
        .into_uuid()
        .to_string()
}
