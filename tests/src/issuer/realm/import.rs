//! From Keycloak's import file to a [`Realm`]: what this issuer cannot honour stops it here, by name.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use anyhow::{Context, bail, ensure};
use jsonwebtoken::Algorithm;

use super::file::{RawClient, RawGroup, RawMapper, RawRealm, RawRole, RawRoles, RawScopeMapping, RawUser, Rest};
use super::{Client, Mapper, MapperRule, Realm, Role, User};

/// Keys that decide nothing that a client or a resource server of this issuer could see.
const HARMLESS_REALM: &[&str] = &[
    "id",
    "displayName",
    "displayNameHtml",
    "sslRequired",
    "eventsEnabled",
    "eventsExpiration",
    "eventsListeners",
    "enabledEventTypes",
    "adminEventsEnabled",
    "adminEventsDetailsEnabled",
    "registrationAllowed",
    "rememberMe",
    "resetPasswordAllowed",
    "editUsernameAllowed",
    "loginWithEmailAllowed",
    "duplicateEmailsAllowed",
    "verifyEmail",
    "bruteForceProtected",
    "internationalizationEnabled",
    "identityProviders",
    "keycloakVersion",
];
const HARMLESS_CLIENT: &[&str] = &[
    "id",
    "name",
    "description",
    "protocol",
    "frontchannelLogout",
    "rootUrl",
    "baseUrl",
    "adminUrl",
    "optionalClientScopes",
];
const HARMLESS_CLIENT_ATTRIBUTES: &[&str] = &[
    "backchannel.logout.url",
    "backchannel.logout.session.required",
    "backchannel.logout.revoke.offline.tokens",
    "post.logout.redirect.uris",
    "standard.token.exchange.enabled",
    "jwt.credential.issuer",
    "jwt.credential.sub",
    "use.jwks.string",
    "jwks.string",
    "use.jwks.url",
    "jwks.url",
    "token.endpoint.auth.signing.alg",
    "display.on.consent.screen",
];
const HARMLESS_USER: &[&str] = &["createdTimestamp", "totp", "notBefore"];

/// The scopes that Keycloak gives every client of a realm that does not list its own.
const DEFAULT_SCOPES: &[&str] = &["acr", "basic", "email", "profile", "roles", "web-origins"];
/// Not a default of imported clients, but one they may list.
const SERVICE_ACCOUNT_SCOPE: &str = "service_account";

impl Realm {
    /// Reads a realm import file.
    ///
    /// # Errors
    /// What is not a realm, what contradicts itself, and every setting that would change a token in a way that this
    /// issuer cannot follow, with the name of client, user or key.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let raw: RawRealm = serde_json::from_str(text).context("not a Keycloak realm import")?;
        refuse_unknown("the realm", &raw.rest, HARMLESS_REALM)?;
        ensure!(raw.enabled, "realm `{}` is not enabled", raw.realm);
        ensure!(
            !raw.revoke_refresh_token || raw.refresh_token_max_reuse == 0,
            "only refreshTokenMaxReuse 0 is supported"
        );

        let composites = composites(&raw.roles);
        let groups = groups(&raw.groups)?;
        let known = known_roles(&raw.roles);
        let users: BTreeMap<String, User> = raw
            .users
            .iter()
            .map(|user| user_of(&raw.realm, user, &groups).map(|user| (user.username.clone(), user)))
            .collect::<Result<_, _>>()?;
        for user in users.values() {
            // Roles of clients that Keycloak makes itself, such as realm-management, stand in no import file.
            let lost = user
                .roles
                .iter()
                .find(|role| !known.contains(role) && !is_built_in(role));
            ensure!(
                lost.is_none(),
                "user `{}` has a role that the file does not define: {lost:?}",
                user.username
            );
        }
        let clients: BTreeMap<String, Client> = raw
            .clients
            .iter()
            .map(|client| client_of(&raw, client).map(|client| (client.id.clone(), client)))
            .collect::<Result<_, _>>()?;

        let seconds = |given: Option<i64>, attribute: &str, default: i64| match (given, raw.attributes.get(attribute)) {
            (Some(given), _) => Ok(given),
            (None, Some(text)) => text
                .parse()
                .with_context(|| format!("realm attribute `{attribute}`: `{text}`")),
            (None, None) => Ok(default),
        };
        Ok(Self {
            access_token_lifespan: raw.access_token_lifespan.unwrap_or(300),
            code_lifespan: raw.access_code_lifespan.unwrap_or(60),
            session_idle: raw.sso_session_idle_timeout.unwrap_or(1_800),
            session_max: raw.sso_session_max_lifespan.unwrap_or(36_000),
            device_lifespan: seconds(raw.oauth2_device_code_lifespan, "oauth2DeviceCodeLifespan", 600)?,
            device_interval: seconds(raw.oauth2_device_polling_interval, "oauth2DevicePollingInterval", 5)?,
            rotate_refresh_tokens: raw.revoke_refresh_token,
            name: raw.realm,
            composites,
            clients,
            users,
        })
    }
}

fn refuse_unknown(place: &str, rest: &Rest, harmless: &[&str]) -> anyhow::Result<()> {
    match rest.keys().find(|key| !harmless.contains(&key.as_str())) {
        Some(key) => bail!("{place} sets `{key}`, which this issuer does not honour: teach it, or leave the key out"),
        None => Ok(()),
    }
}

fn composites(roles: &RawRoles) -> BTreeMap<Role, BTreeSet<Role>> {
    let realm = roles.realm.iter().map(|role| (Role::Realm(role.name.clone()), role));
    let client = roles.client.iter().flat_map(|(client, roles)| {
        roles.iter().map(move |role| {
            (
                Role::Client {
                    client: client.clone(),
                    name: role.name.clone(),
                },
                role,
            )
        })
    });
    realm
        .chain(client)
        .map(|(role, raw)| (role, role_set(&raw.composites.realm, &raw.composites.client)))
        .collect()
}

fn known_roles(roles: &RawRoles) -> BTreeSet<Role> {
    let names = |roles: &[RawRole]| roles.iter().map(|role| role.name.clone()).collect::<Vec<_>>();
    let client = roles
        .client
        .iter()
        .map(|(client, roles)| (client.clone(), names(roles)))
        .collect();
    role_set(&names(&roles.realm), &client)
}

fn is_built_in(role: &Role) -> bool {
    match role {
        Role::Realm(name) => {
            name == "offline_access" || name == "uma_authorization" || name.starts_with("default-roles-")
        }
        Role::Client { client, .. } => client == "realm-management" || client == "account",
    }
}

fn role_set(realm: &[String], client: &BTreeMap<String, Vec<String>>) -> BTreeSet<Role> {
    let of_clients = client.iter().flat_map(|(client, names)| {
        names.iter().map(move |name| Role::Client {
            client: client.clone(),
            name: name.clone(),
        })
    });
    realm.iter().cloned().map(Role::Realm).chain(of_clients).collect()
}

/// Path to roles; a subgroup has its parents' roles too.
fn groups(top: &[RawGroup]) -> anyhow::Result<BTreeMap<String, BTreeSet<Role>>> {
    let mut found = BTreeMap::new();
    let mut open: Vec<(String, BTreeSet<Role>, &RawGroup)> = top
        .iter()
        .map(|group| (String::new(), BTreeSet::new(), group))
        .collect();
    while let Some((parent, inherited, group)) = open.pop() {
        let path = format!("{parent}/{}", group.name);
        let mut roles = role_set(&group.realm_roles, &group.client_roles);
        roles.extend(inherited);
        open.extend(group.sub_groups.iter().map(|sub| (path.clone(), roles.clone(), sub)));
        ensure!(
            found.insert(path.clone(), roles).is_none(),
            "group `{path}` stands twice in the file"
        );
    }
    Ok(found)
}

fn user_of(realm: &str, raw: &RawUser, groups: &BTreeMap<String, BTreeSet<Role>>) -> anyhow::Result<User> {
    let name = &raw.username;
    refuse_unknown(&format!("user `{name}`"), &raw.rest, HARMLESS_USER)?;
    ensure!(
        raw.required_actions.is_empty(),
        "user `{name}` has required actions, which the login page here does not do"
    );
    let mut roles = role_set(&raw.realm_roles, &raw.client_roles);
    for path in &raw.groups {
        roles.extend(
            groups
                .get(path)
                .with_context(|| format!("user `{name}` is in an unknown group `{path}`"))?
                .clone(),
        );
    }
    let password = match raw.credentials.as_slice() {
        [] => None,
        [only] if only.r#type == "password" && !only.temporary => Some(only.value.clone()),
        _ => bail!("user `{name}`: only one lasting password is supported"),
    };
    Ok(User {
        id: raw.id.clone().unwrap_or_else(|| stable_id(realm, name)),
        username: name.clone(),
        enabled: raw.enabled,
        password,
        email: raw.email.clone(),
        email_verified: raw.email_verified,
        first_name: raw.first_name.clone(),
        last_name: raw.last_name.clone(),
        attributes: raw.attributes.clone(),
        groups: raw.groups.clone(),
        roles,
    })
}

/// Keycloak draws a UUID at import; here the same person has the same one in every run, so that failures repeat.
fn stable_id(realm: &str, username: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, format!("{realm}\n{username}").as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest.as_ref()[..16]);
    uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
}

fn client_of(realm: &RawRealm, raw: &RawClient) -> anyhow::Result<Client> {
    let id = &raw.client_id;
    let place = format!("client `{id}`");
    refuse_unknown(&place, &raw.rest, HARMLESS_CLIENT)?;
    ensure!(!raw.consent_required, "{place}: consentRequired is not supported");
    ensure!(
        !raw.implicit_flow_enabled,
        "{place}: implicitFlowEnabled is not supported"
    );

    let mut unsupported = None;
    let mut requires_pkce = false;
    let mut device_flow = false;
    let mut lightweight = false;
    let mut access_token_lifespan = None;
    let mut access_token_alg = Algorithm::RS256;
    let mut access_token_typ = "JWT";
    for (key, value) in &raw.attributes {
        match (key.as_str(), value.as_str()) {
            ("pkce.code.challenge.method", "S256") => requires_pkce = true,
            ("pkce.code.challenge.method", "") | ("dpop.bound.access.tokens", "false") => {}
            ("oauth2.device.authorization.grant.enabled", on) => device_flow = on == "true",
            ("client.use.lightweight.access.token.enabled", on) => lightweight = on == "true",
            ("access.token.lifespan", seconds) => {
                access_token_lifespan = Some(seconds.parse().with_context(|| format!("{place}: {key} `{seconds}`"))?);
            }
            ("access.token.signed.response.alg", alg) => {
                access_token_alg = Algorithm::from_str(alg).with_context(|| format!("{place}: {key} `{alg}`"))?;
            }
            ("access.token.header.type.rfc9068", on) => access_token_typ = if on == "true" { "at+jwt" } else { "JWT" },
            ("dpop.bound.access.tokens", "true") => unsupported = Some("DPoP-bound tokens need a real Keycloak"),
            (harmless, _) if HARMLESS_CLIENT_ATTRIBUTES.contains(&harmless) => {}
            (unknown, value) => {
                bail!("{place} sets the attribute `{unknown}` to `{value}`, which this issuer does not honour")
            }
        }
    }
    match raw.client_authenticator_type.as_deref() {
        None | Some("client-secret") => {}
        Some(_) => {
            unsupported = Some("only client secrets are supported here; other authenticators need a real Keycloak");
        }
    }
    let default_scopes = raw
        .default_client_scopes
        .clone()
        .unwrap_or_else(|| DEFAULT_SCOPES.iter().map(ToString::to_string).collect());
    let strange = default_scopes
        .iter()
        .find(|name| !DEFAULT_SCOPES.contains(&name.as_str()) && *name != SERVICE_ACCOUNT_SCOPE);
    ensure!(strange.is_none(), "{place} lists an unknown client scope {strange:?}");

    let service_user = realm
        .users
        .iter()
        .find(|user| user.service_account_client_id.as_ref() == Some(id));
    let service_account = match (raw.service_accounts_enabled, service_user) {
        (true, Some(user)) => Some(user.username.clone()),
        (true, None) => bail!("{place} has a service account but no user with `serviceAccountClientId: {id}`"),
        (false, Some(user)) => bail!(
            "user `{}` is a service account, but {place} has none enabled",
            user.username
        ),
        (false, None) => None,
    };
    let secret = match (raw.public_client || raw.bearer_only, &raw.secret) {
        (true, _) => None,
        (false, Some(secret)) => Some(secret.clone()),
        (false, None) if unsupported.is_some() => Some(String::new()),
        (false, None) => bail!("{place} is confidential but has no secret"),
    };
    Ok(Client {
        id: id.clone(),
        enabled: raw.enabled && !raw.bearer_only,
        secret,
        unsupported,
        standard_flow: raw.standard_flow_enabled,
        direct_grants: raw.direct_access_grants_enabled,
        device_flow,
        requires_pkce,
        redirect_uris: raw.redirect_uris.clone(),
        web_origins: raw.web_origins.clone(),
        service_account,
        scope_mappings: (!raw.full_scope_allowed).then(|| scope_mappings(realm, id)),
        default_scopes,
        mappers: raw
            .protocol_mappers
            .iter()
            .map(|mapper| mapper_of(&place, mapper))
            .collect::<Result<_, _>>()?,
        access_token_lifespan,
        access_token_alg,
        access_token_typ,
        lightweight,
    })
}

fn scope_mappings(realm: &RawRealm, client: &str) -> BTreeSet<Role> {
    let mine = |mappings: &[RawScopeMapping]| -> Vec<String> {
        mappings
            .iter()
            .filter(|mapping| mapping.client == client)
            .flat_map(|mapping| mapping.roles.clone())
            .collect()
    };
    let of_clients = realm
        .client_scope_mappings
        .iter()
        .map(|(owner, mappings)| (owner.clone(), mine(mappings)))
        .collect();
    role_set(&mine(&realm.scope_mappings), &of_clients)
}

fn mapper_of(place: &str, raw: &RawMapper) -> anyhow::Result<Mapper> {
    let place = format!("{place}, mapper `{}`", raw.name);
    let on = |key: &str| raw.config.get(key).is_some_and(|value| value == "true");
    let need = |key: &str| {
        raw.config
            .get(key)
            .cloned()
            .with_context(|| format!("{place}: `{key}` is missing"))
    };
    // Keycloak would read a dot as a step into an object.
    let dotted = raw.config.get("claim.name").is_some_and(|name| name.contains('.'));
    ensure!(!dotted, "{place}: a claim name with a dot is not supported");
    let text_only = || match raw.config.get("jsonType.label").map(String::as_str) {
        None | Some("String") => Ok(()),
        Some(other) => bail!("{place}: jsonType.label `{other}` is not supported"),
    };
    let rule = match raw.protocol_mapper.as_str() {
        "oidc-audience-mapper" => match raw
            .config
            .get("included.client.audience")
            .filter(|name| !name.is_empty())
        {
            Some(client) => MapperRule::Audience(client.clone()),
            None => MapperRule::Audience(need("included.custom.audience")?),
        },
        "oidc-group-membership-mapper" => MapperRule::Groups {
            claim: need("claim.name")?,
            full_path: on("full.path"),
        },
        "oidc-usermodel-attribute-mapper" => {
            text_only()?;
            MapperRule::Attribute {
                attribute: need("user.attribute")?,
                claim: need("claim.name")?,
                multivalued: on("multivalued"),
            }
        }
        "oidc-hardcoded-claim-mapper" => {
            text_only()?;
            MapperRule::Fixed {
                claim: need("claim.name")?,
                value: need("claim.value")?.into(),
            }
        }
        unknown => bail!("{place}: a mapper of kind `{unknown}` is not supported"),
    };
    Ok(Mapper {
        rule,
        into_access: on("access.token.claim"),
        into_id: on("id.token.claim"),
        into_lightweight: on("lightweight.claim"),
    })
}
