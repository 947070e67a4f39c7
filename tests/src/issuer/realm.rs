//! What a realm says about people, clients and roles: the part of Keycloak's import file that decides what stands in a token.
//!
//! A [`Realm`] exists only if every setting in its file is either honoured or known not to matter here; see [`import`].

mod file;
mod import;

use std::collections::{BTreeMap, BTreeSet};

use jsonwebtoken::Algorithm;
use serde_json::Value;

/// One realm, read from the very file that `kc.sh --import-realm` takes. Times are in seconds.
#[derive(Debug, Clone)]
pub struct Realm {
    pub(super) name: String,
    pub(super) access_token_lifespan: i64,
    pub(super) code_lifespan: i64,
    pub(super) session_idle: i64,
    pub(super) session_max: i64,
    pub(super) device_lifespan: i64,
    pub(super) device_interval: i64,
    /// `revokeRefreshToken` with `refreshTokenMaxReuse` 0: a refresh token works once.
    pub(super) rotate_refresh_tokens: bool,
    pub(super) composites: BTreeMap<Role, BTreeSet<Role>>,
    pub(super) clients: BTreeMap<String, Client>,
    pub(super) users: BTreeMap<String, User>,
}

/// A role and where it lives; never compared by its bare name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    Realm(String),
    Client { client: String, name: String },
}

#[derive(Debug, Clone)]
pub(super) struct User {
    pub(super) id: String,
    pub(super) username: String,
    pub(super) enabled: bool,
    pub(super) password: Option<String>,
    pub(super) email: Option<String>,
    pub(super) email_verified: bool,
    pub(super) first_name: Option<String>,
    pub(super) last_name: Option<String>,
    pub(super) attributes: BTreeMap<String, Vec<String>>,
    /// Full paths of the groups that the user is a direct member of.
    pub(super) groups: Vec<String>,
    /// Direct roles and those of the groups with their parents; composites are not flattened yet.
    pub(super) roles: BTreeSet<Role>,
}

#[derive(Debug, Clone)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "they are the switches of Keycloak's client page, each on its own"
)]
pub(super) struct Client {
    pub(super) id: String,
    pub(super) enabled: bool,
    /// `None`: a public client.
    pub(super) secret: Option<String>,
    /// Why this issuer refuses to serve the client, where it lacks something that the client's settings ask for.
    pub(super) unsupported: Option<&'static str>,
    pub(super) standard_flow: bool,
    pub(super) direct_grants: bool,
    pub(super) device_flow: bool,
    pub(super) requires_pkce: bool,
    pub(super) redirect_uris: Vec<String>,
    pub(super) web_origins: Vec<String>,
    /// The user behind client credentials.
    pub(super) service_account: Option<String>,
    /// `None`: full scope allowed.
    pub(super) scope_mappings: Option<BTreeSet<Role>>,
    pub(super) default_scopes: BTreeSet<String>,
    pub(super) mappers: Vec<Mapper>,
    pub(super) access_token_lifespan: Option<i64>,
    pub(super) access_token_alg: Algorithm,
    pub(super) access_token_typ: &'static str,
    pub(super) lightweight: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Mapper {
    pub(super) rule: MapperRule,
    pub(super) into_access: bool,
    pub(super) into_id: bool,
    pub(super) into_lightweight: bool,
}

#[derive(Debug, Clone)]
pub(super) enum MapperRule {
    Audience(String),
    Groups {
        claim: String,
        full_path: bool,
    },
    Attribute {
        attribute: String,
        claim: String,
        multivalued: bool,
    },
    Fixed {
        claim: String,
        value: Value,
    },
}

impl Realm {
    /// The user's roles that a token of this client may carry: all of them, flattened, cut to the client's scope.
    pub(super) fn roles_in_token(&self, user: &User, client: &Client) -> BTreeSet<Role> {
        let mut roles = self.flatten(&user.roles);
        if let Some(mapped) = &client.scope_mappings {
            let scope = self.flatten(mapped);
            roles.retain(|role| scope.contains(role) || role.client() == Some(&client.id));
        }
        roles
    }

    fn flatten(&self, roles: &BTreeSet<Role>) -> BTreeSet<Role> {
        let mut open: Vec<Role> = roles.iter().cloned().collect();
        let mut flat = BTreeSet::new();
        while let Some(role) = open.pop() {
            // Only a role not seen before opens its parts, so circles end.
            if flat.insert(role.clone()) {
                open.extend(self.composites.get(&role).into_iter().flatten().cloned());
            }
        }
        flat
    }
}

impl Role {
    pub(super) fn client(&self) -> Option<&String> {
        match self {
            Self::Realm(_) => None,
            Self::Client { client, .. } => Some(client),
        }
    }
}

impl User {
    /// `None` where the file names neither part.
    pub(super) fn full_name(&self) -> Option<String> {
        let parts: Vec<&str> = [&self.first_name, &self.last_name]
            .into_iter()
            .flatten()
            .map(String::as_str)
            .collect();
        (!parts.is_empty()).then(|| parts.join(" "))
    }
}

impl Client {
    /// Keycloak's rule: exact, but the port of a loopback address does not matter; its name `localhost` counts as one.
    pub(super) fn allows_redirect(&self, asked: &str) -> bool {
        self.redirect_uris
            .iter()
            .any(|registered| registered == asked || Some(registered) == portless(asked).as_ref())
    }
}

fn portless(uri: &str) -> Option<String> {
    let mut url = url::Url::parse(uri).ok()?;
    if url.scheme() != "http" || !matches!(url.host_str(), Some("127.0.0.1" | "localhost")) {
        return None;
    }
    url.set_port(None).ok()?;
    Some(url.into())
}
