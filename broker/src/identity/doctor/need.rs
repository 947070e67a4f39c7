//! What must stand in every access token of a client, and which mapper of Keycloak brings it there.

use super::entries::Mapper;
use crate::identity::issuer::Provides;

/// Something that must stand in every access token of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need<'a> {
    RealmRoles,
    ClientRoles,
    Groups,
    /// By name or JSON pointer.
    Claim(&'a str),
    Audience(&'a [String]),
}

/// What a configuration promises.
pub(super) fn kinds(provides: &Provides) -> Vec<Need<'_>> {
    let named = [
        (provides.realm_roles, Need::RealmRoles),
        (provides.client_roles, Need::ClientRoles),
        (provides.groups, Need::Groups),
    ];
    let named = named
        .into_iter()
        .filter(|(promised, _)| *promised)
        .map(|(_, need)| need);
    named
        .chain(provides.claims.iter().map(|claim| Need::Claim(claim)))
        .collect()
}

impl Need<'_> {
    /// Claims that Keycloak writes without a mapper.
    pub(super) fn is_in_every_token(self) -> bool {
        matches!(
            self,
            Self::Claim("azp" | "iss" | "exp" | "iat" | "jti" | "typ" | "scope")
        )
    }

    /// What no other mapper may write. Where the audience is missing, nothing but the login fails.
    pub(super) fn claim(&self) -> Option<&str> {
        match self {
            Self::RealmRoles => Some("/realm_access/roles"),
            Self::ClientRoles => Some("/resource_access"),
            Self::Groups => Some("groups"),
            Self::Claim(claim) => Some(claim),
            Self::Audience(_) => None,
        }
    }

    pub(super) fn is_written_by(self, mapper: &Mapper) -> bool {
        let of = |kind: &str, claim: &str| mapper.kind == kind && mapper.text("claim.name") == Some(claim);
        match self {
            Self::RealmRoles => of("oidc-usermodel-realm-role-mapper", "realm_access.roles"),
            Self::ClientRoles => of(
                "oidc-usermodel-client-role-mapper",
                "resource_access.${client_id}.roles",
            ),
            Self::Groups => of("oidc-group-membership-mapper", "groups"),
            Self::Claim(claim) => mapper.writes_claim(claim),
            Self::Audience(ours) => {
                let names = ["included.client.audience", "included.custom.audience"];
                let mut brought = names.iter().filter_map(|name| mapper.text(name));
                mapper.kind == "oidc-audience-mapper" && brought.any(|name| ours.iter().any(|our| our == name))
            }
        }
    }

    /// What a mapper that stands in the right place does wrong.
    pub(super) fn misconfigured(self, mapper: &Mapper) -> Option<&'static str> {
        if !mapper.is("access.token.claim") {
            return Some("does not write to access tokens (Add to access token)");
        }
        let set = |name: &str| mapper.text(name).is_some_and(|text| !text.is_empty());
        match self {
            Self::RealmRoles if set("usermodel.realmRoleMapping.rolePrefix") => Some("puts a prefix before each"),
            Self::ClientRoles if set("usermodel.clientRoleMapping.rolePrefix") => Some("puts a prefix before each"),
            Self::ClientRoles if set("usermodel.clientRoleMapping.clientId") => Some("takes those of one client only"),
            Self::Groups if !mapper.is("full.path") => Some("writes names instead of paths (Full group path)"),
            Self::RealmRoles | Self::ClientRoles | Self::Groups | Self::Claim(_) | Self::Audience(_) => None,
        }
    }

    pub(super) fn words(self) -> String {
        match self {
            Self::RealmRoles => "the realm roles".to_owned(),
            Self::ClientRoles => "the client roles".to_owned(),
            Self::Groups => "the groups".to_owned(),
            Self::Claim(claim) => format!("the values of the claim `{claim}`"),
            Self::Audience(ours) => format!("the audience `{}`", ours.join("` or `")),
        }
    }

    /// As `provides` calls it.
    pub(super) fn kind(self) -> String {
        match self {
            Self::RealmRoles => "realm_roles".to_owned(),
            Self::ClientRoles => "client_roles".to_owned(),
            Self::Groups => "groups".to_owned(),
            Self::Claim(claim) => format!("claims.{claim}"),
            Self::Audience(_) => "audiences".to_owned(),
        }
    }

    pub(super) fn mapper_to_add(self) -> &'static str {
        match self {
            Self::RealmRoles | Self::ClientRoles => "add `roles` as Default",
            Self::Groups => "add a mapper of type Group Membership for the claim `groups`, with Full group path",
            Self::Claim(_) => "add a mapper for it",
            Self::Audience(_) => "add a mapper of type Audience",
        }
    }
}
