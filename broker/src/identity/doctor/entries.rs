//! Keycloak's descriptions of a realm's parts, as its administration answers with them; only what is judged is read.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

/// `RealmRepresentation`. Without `view-realm` Keycloak leaves most of it out, and no default stands in for it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RealmEntry {
    pub(super) realm: String,
    pub(super) access_token_lifespan: Option<u64>,
    pub(super) default_signature_algorithm: Option<String>,
    pub(super) edit_username_allowed: Option<bool>,
    pub(super) registration_allowed: Option<bool>,
}

/// `ClientRepresentation`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ClientEntry {
    pub(super) id: String,
    pub(super) client_id: String,
    #[serde(default)]
    pub(super) enabled: bool,
    #[serde(default)]
    pub(super) service_accounts_enabled: bool,
    #[serde(default)]
    pub(super) attributes: BTreeMap<String, Option<String>>,
    #[serde(default)]
    pub(super) protocol_mappers: Vec<Mapper>,
    #[serde(default)]
    pub(super) default_client_scopes: Vec<String>,
    #[serde(default)]
    pub(super) optional_client_scopes: Vec<String>,
}

/// `ClientScopeRepresentation`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ScopeEntry {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) protocol: Option<String>,
    #[serde(default)]
    pub(super) protocol_mappers: Vec<Mapper>,
    /// It has role mappings, so Keycloak leaves it out for whoever has none of those roles.
    #[serde(skip)]
    pub(super) limited_to_roles: bool,
}

impl ScopeEntry {
    pub(super) fn is_openid(&self) -> bool {
        self.protocol.as_deref() == Some("openid-connect")
    }
}

/// `ProtocolMapperRepresentation`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Mapper {
    pub(super) name: String,
    #[serde(rename = "protocolMapper")]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) config: BTreeMap<String, Option<String>>,
}

/// `UPConfig`: who may edit which attribute of a user.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Profile {
    #[serde(default)]
    pub(super) attributes: Vec<Attribute>,
    pub(super) unmanaged_attribute_policy: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Attribute {
    pub(super) name: String,
    #[serde(default)]
    pub(super) permissions: Permissions,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Permissions {
    #[serde(default)]
    pub(super) edit: BTreeSet<String>,
}

impl ClientEntry {
    pub(super) fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.get(name)?.as_deref().filter(|text| !text.is_empty())
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.attribute(name) == Some("true")
    }
}

impl Mapper {
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.config.get(name)?.as_deref()
    }

    pub(super) fn is(&self, name: &str) -> bool {
        self.text(name) == Some("true")
    }

    /// Whether Keycloak adds its values to a list that is there already.
    pub(super) fn merges(&self) -> bool {
        matches!(
            self.kind.as_str(),
            "oidc-usermodel-realm-role-mapper" | "oidc-usermodel-client-role-mapper" | "oidc-group-membership-mapper"
        )
    }

    /// Whether its value is a part of the user.
    pub(super) fn is_of_user(&self) -> bool {
        matches!(
            self.kind.as_str(),
            "oidc-usermodel-attribute-mapper" | "oidc-usermodel-property-mapper"
        )
    }

    /// Whether it writes this claim, something above it, or something in it.
    pub(super) fn writes_claim(&self, claim: &str) -> bool {
        let fixed = match self.kind.as_str() {
            "oidc-acr-mapper" => Some("acr"),
            "oidc-sub-mapper" => Some("sub"),
            "oidc-full-name-mapper" => Some("name"),
            "oidc-address-mapper" => Some("address"),
            "oidc-allowed-origins-mapper" => Some("allowed-origins"),
            _ => None,
        };
        let Some(written) = fixed.or(self.text("claim.name")).map(segments_of_name) else {
            return false;
        };
        let wanted = match claim.strip_prefix('/') {
            Some(pointer) => pointer
                .split('/')
                .map(|part| part.replace("~1", "/").replace("~0", "~"))
                .collect(),
            None => vec![claim.to_owned()],
        };
        written.iter().zip(&wanted).all(|(written, wanted)| written == wanted)
    }
}

/// `claim.name` as Keycloak cuts it: at dots that no backslash stands before.
fn segments_of_name(name: &str) -> Vec<String> {
    let mut segments = vec![String::new()];
    let mut chars = name.chars().peekable();
    while let Some(char) = chars.next() {
        match (char, segments.last_mut()) {
            ('.', _) => segments.push(String::new()),
            ('\\', Some(last)) if chars.peek() == Some(&'.') => {
                chars.next();
                last.push('.');
            }
            (char, Some(last)) => last.push(char),
            (_, None) => {}
        }
    }
    segments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_s_name_is_cut_as_keycloak_cuts_it() {
        for (name, segments) in [
            ("groups", &["groups"][..]),
            ("realm_access.roles", &["realm_access", "roles"]),
            (r"https://acme\.example/team", &["https://acme.example/team"]),
        ] {
            assert_eq!(segments_of_name(name), segments);
        }
    }
}
