//! A Keycloak realm as its administration describes it, and what of it breaks a promise of the configuration (S16).
//!
//! Pure. What counts is the thinnest token that somebody can get: one that asks for no scope, and one that asks for
//! every scope that the client may.

use std::collections::{BTreeMap, BTreeSet};

use super::entries::{ClientEntry, Mapper, Profile, RealmEntry, ScopeEntry};
use super::need::{Need, kinds};
use super::{Flaw, Reads};
use crate::identity::issuer::IssuerConfig;

/// Which roles of which container (none: the realm) a client's tokens can carry.
pub(super) type Grants = BTreeMap<(String, Option<String>), BTreeSet<String>>;

/// A realm, as far as it is judged.
#[derive(Debug)]
pub(super) struct Realm {
    pub(super) entry: RealmEntry,
    /// All clients, not only those of the configuration.
    pub(super) clients: Vec<ClientEntry>,
    pub(super) scopes: Vec<ScopeEntry>,
    pub(super) granted: Grants,
    pub(super) profile: Profile,
}

/// Where a mapper of a client stands.
#[derive(Debug, Clone, Copy)]
enum Place<'a> {
    /// At the client itself.
    Own,
    /// In a client scope that is always there.
    Always(&'a str),
    /// In one that is left out for whoever has none of its roles.
    ForSome(&'a str),
    /// In one that a login may ask for.
    Optional(&'a str),
}

impl Realm {
    /// All that is wrong, client by client.
    pub(super) fn flaws(&self, config: &IssuerConfig, reads: &Reads) -> Vec<Flaw> {
        let mut found = Vec::new();
        let Some(lifespan) = self.entry.access_token_lifespan else {
            return vec![Flaw::error(
                "realm-unreadable",
                "the service account sees only a part of the realm",
                "Clients → (its client) → Service account roles: assign `view-realm` of `realm-management` too",
            )];
        };
        for id in config.authorized_parties.iter().chain(&config.service_clients) {
            match self.clients.iter().find(|client| client.client_id == *id) {
                Some(client) if client.enabled => {
                    self.client_flaws(client, lifespan, config, reads, &mut found);
                }
                Some(_) | None => found.push(Flaw::error(
                    "client-missing",
                    format!("the realm has no client `{id}` that is enabled"),
                    "make it, or take it out of `authorized_parties` and `service_clients`: whoever makes a client of \
                     that name later would be believed",
                )),
            }
        }
        self.audience_elsewhere(config, &mut found);
        self.names(&mut found);
        found
    }

    fn client_flaws(
        &self,
        client: &ClientEntry,
        lifespan: u64,
        config: &IssuerConfig,
        reads: &Reads,
        found: &mut Vec<Flaw>,
    ) {
        let id = &client.client_id;
        if config.service_clients.contains(id) && !client.service_accounts_enabled {
            found.push(Flaw::error(
                "no-service-account",
                format!("`{id}` is one of `service_clients` and has no service account"),
                format!("Clients → {id} → Settings: Service account roles on; or take it out of the list"),
            ));
        }
        if client.has("client.use.lightweight.access.token.enabled") {
            found.push(Flaw::error(
                "lightweight-tokens",
                format!("`{id}` gets lightweight access tokens, which lack subject, audience and roles"),
                format!("Clients → {id} → Advanced: Always use lightweight access token off"),
            ));
        }
        self.token_form(client, lifespan, config, found);
        let kinds = kinds(&config.provides);
        for need in kinds.iter().chain([&Need::Audience(&config.audiences)]) {
            match self.unmet(client, *need) {
                Some(flaw) => found.push(flaw),
                None => found.extend(self.overriding(client, *need)),
            }
        }
        self.roles_out_of_scope(client, config, reads, found);
        self.editable_claims(client, reads, found);
    }

    /// Signature and life of its tokens against what the broker takes.
    fn token_form(&self, client: &ClientEntry, lifespan: u64, config: &IssuerConfig, found: &mut Vec<Flaw>) {
        let id = &client.client_id;
        let own = client.attribute("access.token.signed.response.alg");
        let signed = own
            .or(self.entry.default_signature_algorithm.as_deref())
            .unwrap_or("RS256");
        if !config.algorithms.iter().any(|algorithm| algorithm.as_str() == signed) {
            found.push(Flaw::error(
                "token-algorithm",
                format!("tokens of `{id}` are signed with {signed}, which `algorithms` does not allow"),
                format!("Clients → {id} → Advanced: Access token signature algorithm; or add {signed}"),
            ));
        }
        let own = client
            .attribute("access.token.lifespan")
            .and_then(|text| text.parse().ok());
        let (lives, most) = (own.unwrap_or(lifespan), config.max_token_lifetime.as_secs());
        if lives > most {
            found.push(Flaw::error(
                "token-lifetime",
                format!("tokens of `{id}` live for {lives} s, and those over {most} s are refused"),
                format!("Clients → {id} → Advanced: Access token lifespan, or Realm settings → Tokens"),
            ));
        }
    }

    /// Every mapper that can be in a token of the client, and where it stands.
    fn mappers<'a>(&'a self, client: &'a ClientEntry) -> impl Iterator<Item = (Place<'a>, &'a Mapper)> {
        let own = client.protocol_mappers.iter().map(|mapper| (Place::Own, mapper));
        let scoped = self.scopes.iter().flat_map(|scope| {
            let name = scope.name.as_str();
            let place = if client.default_client_scopes.contains(&scope.name) {
                let place = if scope.limited_to_roles {
                    Place::ForSome
                } else {
                    Place::Always
                };
                Some(place(name))
            } else if client.optional_client_scopes.contains(&scope.name) {
                Some(Place::Optional(name))
            } else {
                None
            };
            let mappers = scope.protocol_mappers.iter();
            mappers.filter_map(move |mapper| Some((place?, mapper)))
        });
        own.chain(scoped)
    }

    /// Why a token of the client may lack what it must have; the nearest miss.
    fn unmet(&self, client: &ClientEntry, need: Need<'_>) -> Option<Flaw> {
        if need.is_in_every_token() {
            return None;
        }
        let id = &client.client_id;
        let mut misses: Vec<(u8, String, String)> = Vec::new();
        for (place, mapper) in self.mappers(client).filter(|(_, mapper)| need.is_written_by(mapper)) {
            let (what, at) = (need.words(), &mapper.name);
            match (place, need.misconfigured(mapper)) {
                (Place::Own | Place::Always(_), None) => return None,
                (Place::Own, Some(why)) => misses.push((
                    0,
                    format!("the mapper `{at}` of `{id}` brings {what} and {why}"),
                    format!("Clients → {id} → Client scopes → {id}-dedicated → {at}"),
                )),
                (Place::Always(scope), Some(why)) => misses.push((
                    0,
                    format!("the mapper `{at}` of the client scope `{scope}` brings {what} and {why}"),
                    format!("Client scopes → {scope} → Mappers → {at}"),
                )),
                (Place::ForSome(scope), _) => misses.push((
                    1,
                    format!(
                        "{what} come to tokens of `{id}` by the client scope `{scope}`, which Keycloak leaves out for \
                         whoever has none of the roles in its scope mapping"
                    ),
                    format!("Client scopes → {scope} → Scope: remove the roles, or move the mapper `{at}` elsewhere"),
                )),
                (Place::Optional(scope), _) => misses.push((
                    2,
                    format!(
                        "{what} come to tokens of `{id}` by the client scope `{scope}`, which is optional: a login \
                         that does not ask for it has none"
                    ),
                    format!("Clients → {id} → Client scopes: make `{scope}` Default"),
                )),
            }
        }
        let (_, what, remedy) = misses.into_iter().min().unwrap_or_else(|| {
            (
                3,
                format!("no mapper brings {} to tokens of `{id}`", need.words()),
                format!("Clients → {id} → Client scopes: {}", need.mapper_to_add()),
            )
        });
        Some(match need {
            Need::Audience(_) => Flaw::error("audience-missing", what, remedy),
            Need::RealmRoles | Need::ClientRoles | Need::Groups | Need::Claim(_) => {
                let kind = need.kind();
                let remedy = format!("{remedy}; or take `{kind}` out of `provides`");
                Flaw::error("not-provided", what, remedy)
            }
        })
    }

    /// Mappers that write the same claim after or before ours: seen on Keycloak 26.7, one in an optional scope
    /// replaces the groups of whoever asks for it. Lists of roles and groups are merged and take nothing away.
    fn overriding(&self, client: &ClientEntry, need: Need<'_>) -> Vec<Flaw> {
        let Some(claim) = need.claim() else { return Vec::new() };
        let id = &client.client_id;
        let others = self.mappers(client).filter(|(place, mapper)| {
            let ours = need.is_written_by(mapper) && !matches!(place, Place::Optional(_));
            mapper.is("access.token.claim") && !ours && !mapper.merges() && mapper.writes_claim(claim)
        });
        let flaw = |(place, mapper): (Place<'_>, &Mapper)| {
            let place = match place {
                Place::Own => format!("Clients → {id} → Client scopes → {id}-dedicated"),
                Place::Always(scope) | Place::ForSome(scope) | Place::Optional(scope) => {
                    format!("Client scopes → {scope} → Mappers")
                }
            };
            Flaw::error(
                "claim-overridden",
                format!(
                    "the mapper `{}` can replace {} in tokens of `{id}`",
                    mapper.name,
                    need.words()
                ),
                format!("{place}: remove it, or let it write another claim"),
            )
        };
        others.map(flaw).collect()
    }

    /// Roles that a prohibition names and that tokens of this client never carry, or under another name.
    fn roles_out_of_scope(&self, client: &ClientEntry, config: &IssuerConfig, reads: &Reads, found: &mut Vec<Flaw>) {
        let id = &client.client_id;
        let realm_roles = reads.excluding_realm_roles.iter().map(|role| (None, role));
        let client_roles = reads.excluding_client_roles.iter().map(|(of, role)| (Some(of), role));
        let provided = |of: Option<&String>| match of {
            None => config.provides.realm_roles,
            Some(_) => config.provides.client_roles,
        };
        for (of, role) in realm_roles.chain(client_roles).filter(|(of, _)| provided(*of)) {
            let carried = self.granted.get(&(id.clone(), of.cloned()));
            let name = of.map_or_else(
                || format!("realm role `{role}`"),
                |of| format!("role `{role}` of `{of}`"),
            );
            if !carried.is_some_and(|roles| roles.contains(role)) {
                found.push(Flaw::error(
                    "role-out-of-scope",
                    format!("tokens of `{id}` never carry the {name}, which the policy excludes people by"),
                    format!(
                        "Clients → {id} → Client scopes → {id}-dedicated → Scope: assign it (if the realm has no such \
                         role, make it, or mend the policy)"
                    ),
                ));
            }
            let written = of.map_or_else(|| role.clone(), |of| format!("{of}.{role}"));
            let renames = |(_, mapper): &(Place<'_>, &Mapper)| {
                mapper.kind == "oidc-role-name-mapper" && mapper.text("role") == Some(written.as_str())
            };
            found.extend(self.mappers(client).find(renames).map(|(_, mapper)| {
                Flaw::error(
                    "role-renamed",
                    format!("the mapper `{}` renames the {name} in tokens of `{id}`", mapper.name),
                    "remove it, since the policy excludes people by that role",
                )
            }));
        }
    }

    /// Claims that the policy reads and that people may edit themselves.
    fn editable_claims(&self, client: &ClientEntry, reads: &Reads, found: &mut Vec<Flaw>) {
        for claim in &reads.claims {
            for (_, mapper) in self.mappers(client).filter(|(_, mapper)| mapper.writes_claim(claim)) {
                let attribute = mapper.text("user.attribute").filter(|_| mapper.is_of_user());
                let Some(attribute) = attribute.filter(|attribute| self.is_editable(attribute)) else {
                    continue;
                };
                let flaw = Flaw::error(
                    "claim-editable",
                    format!("the policy reads the claim `{claim}`, and people can edit its source, `{attribute}`"),
                    format!(
                        "Realm settings → User profile → {attribute}: only administrators may edit it; for one that is \
                         not listed there: General → Unmanaged attributes: not Enabled"
                    ),
                );
                if !found.contains(&flaw) {
                    found.push(flaw);
                }
            }
        }
    }

    /// Whether a user may change this attribute of their own.
    fn is_editable(&self, attribute: &str) -> bool {
        if attribute == "username" && self.entry.edit_username_allowed == Some(false) {
            return false;
        }
        match self.profile.attributes.iter().find(|known| known.name == attribute) {
            Some(known) => known.permissions.edit.contains("user"),
            None => self.profile.unmanaged_attribute_policy.as_deref() == Some("ENABLED"),
        }
    }

    /// Clients that nobody listed and whose tokens name us all the same: refused by `azp`, and one defence less.
    fn audience_elsewhere(&self, config: &IssuerConfig, found: &mut Vec<Flaw>) {
        let listed = |id: &String| config.authorized_parties.contains(id) || config.service_clients.contains(id);
        let ours = Need::Audience(&config.audiences);
        let carriers: Vec<&str> = self
            .clients
            .iter()
            .filter(|client| client.enabled && !listed(&client.client_id))
            .filter(|client| self.mappers(client).any(|(_, mapper)| ours.is_written_by(mapper)))
            .map(|client| client.client_id.as_str())
            .collect();
        if !carriers.is_empty() {
            found.push(Flaw::warning(
                "audience-elsewhere",
                format!(
                    "clients that are not listed get tokens for this broker: {}",
                    carriers.join(", ")
                ),
                "take the audience mapper away from them, or from the client scope that brings it",
            ));
        }
    }

    /// What slugs and display names are made of.
    fn names(&self, found: &mut Vec<Flaw>) {
        if self.is_editable("username") {
            found.push(Flaw::warning(
                "name-editable",
                "people can change their user name, which the names of their database users are made of",
                "Realm settings → Login: Edit username off",
            ));
        }
        if self.entry.registration_allowed == Some(true) {
            found.push(Flaw::warning(
                "registration",
                "anybody can register, under any user name that is free",
                "Realm settings → Login: User registration off",
            ));
        }
    }
}

#[cfg(test)]
mod tests;
