//! The issuers of the configuration: whose tokens are taken, and what they always hold.

use std::path::Path;
use std::sync::Arc;

use kdbt_api::Ttl;

use super::Issuer;
use super::parts::{certificates, present, web_address};
use crate::diagnostics::{Diagnostic, Diagnostics};
use crate::identity::{Algorithm, IssuerConfig, Provides};
use crate::policy::IssuerFacts;
use crate::yaml::{Node, text_of};

pub(super) fn issuers(node: &Node, folder: &Path, found: &mut Diagnostics) -> Option<Vec<Issuer>> {
    let items = node.items(found)?;
    if items.is_empty() {
        let error = Diagnostic::error("there must be an issuer, else nobody can log in").at(&node.span);
        found.push(error);
    }
    let mut issuers: Vec<Issuer> = Vec::new();
    for item in items {
        let Some(issuer) = issuer(item, folder, found) else {
            continue;
        };
        if issuers.iter().any(|other| other.tokens.issuer == issuer.tokens.issuer) {
            let error = Diagnostic::error("this issuer is configured twice").at(&item.span);
            found.push(error.help("give one entry the clients of both"));
        }
        issuers.push(issuer);
    }
    Some(issuers)
}

/// Names and claim kinds of the issuers, and nothing else of the file.
pub(super) fn issuer_facts(root: &Node, found: &mut Diagnostics) -> Option<Vec<IssuerFacts>> {
    let mut fields = root.fields("the configuration", found)?;
    let node = present(&mut fields, "issuers", found)?;
    let mut issuers = Vec::new();
    for item in node.items(found)? {
        let mut fields = item.fields("an issuer", found)?;
        let issuer = fields.required::<String>("issuer", found);
        let provides = fields.node("provides").map(|node| provides(node, found));
        issuers.push(IssuerFacts {
            issuer: issuer?.into(),
            provides: Arc::new(provides.unwrap_or_default()),
        });
    }
    Some(issuers)
}

fn issuer(node: &Node, folder: &Path, found: &mut Diagnostics) -> Option<Issuer> {
    let mut fields = node.fields("an issuer", found)?;
    // The issuer is compared byte for byte with `iss`, so it is kept as written, not as a URL prints itself.
    let id = present(&mut fields, "issuer", found).and_then(|node| {
        web_address(node, found)?;
        text_of(node, found).map(str::to_owned)
    });
    let defaults = IssuerConfig::new(id.clone().unwrap_or_default());
    let audiences = present(&mut fields, "audiences", found).and_then(|node| names(node, true, found));
    let parties = fields
        .node("authorized_parties")
        .and_then(|node| names(node, false, found));
    let services = fields
        .node("service_clients")
        .and_then(|node| names(node, false, found));
    let (parties, services) = (parties.unwrap_or_default(), services.unwrap_or_default());
    if parties.is_empty() && services.is_empty() {
        let error = Diagnostic::error("an issuer needs `authorized_parties` or `service_clients`").at(&node.span);
        found.push(error.help("name the clients whose tokens are taken"));
    }
    let provides = fields
        .node("provides")
        .map(|node| provides(node, found))
        .unwrap_or_default();
    let jwks_uri = fields.node("jwks_uri").and_then(|node| web_address(node, found));
    let discovery_url = fields.node("discovery_url").and_then(|node| web_address(node, found));
    let ca_pem = fields
        .node("ca_file")
        .and_then(|node| certificates(node, folder, found));
    let algorithms = fields.node("algorithms").and_then(|node| algorithms(node, found));
    let max_token_age = fields.optional::<Ttl>("max_token_age", found).map(Ttl::as_duration);
    let max_token_lifetime = fields
        .optional::<Ttl>("max_token_lifetime", found)
        .map(Ttl::as_duration);
    let required = fields.optional("required", found);
    let require_at_jwt = fields.optional("require_at_jwt", found);
    let required_scope = fields.optional("required_scope", found);
    let client_id: Option<String> = fields.optional("client_id", found);
    let scopes = fields.optional("scopes", found);
    fields.finish(found);
    if let Some(client) = client_id.as_ref().filter(|client| !parties.contains(client)) {
        let error = Diagnostic::error(format!("tokens of the client `{client}` would be refused")).at(&node.span);
        found.push(error.help("`client_id` must be one of `authorized_parties`"));
    }
    Some(Issuer {
        client_id: client_id.or_else(|| parties.first().cloned()).unwrap_or_default(),
        scopes: scopes.unwrap_or_else(|| vec!["openid".to_owned()]),
        tokens: IssuerConfig {
            issuer: id?,
            audiences: audiences?,
            authorized_parties: parties,
            service_clients: services,
            provides,
            jwks_uri,
            discovery_url,
            ca_pem,
            required: required.unwrap_or(defaults.required),
            algorithms: algorithms.unwrap_or(defaults.algorithms),
            max_token_age: max_token_age.unwrap_or(defaults.max_token_age),
            max_token_lifetime: max_token_lifetime.unwrap_or(defaults.max_token_lifetime),
            require_at_jwt: require_at_jwt.unwrap_or(defaults.require_at_jwt),
            required_scope,
        },
    })
}

/// A list of names, none empty, none twice.
fn names(node: &Node, at_least_one: bool, found: &mut Diagnostics) -> Option<Vec<String>> {
    let mut names: Vec<String> = Vec::new();
    let items = node.items(found)?;
    if items.is_empty() && at_least_one {
        found.push(Diagnostic::error("the list is empty").at(&node.span));
    }
    for item in items {
        let Some(name) = text_of(item, found) else { continue };
        if name.is_empty() || names.iter().any(|other| other == name) {
            found.push(Diagnostic::error("a name is empty or stands twice").at(&item.span));
        }
        names.push(name.to_owned());
    }
    Some(names)
}

fn provides(node: &Node, found: &mut Diagnostics) -> Provides {
    let mut kinds: Vec<&str> = Vec::new();
    for item in node.items(found).unwrap_or_default() {
        let Some(kind) = text_of(item, found) else { continue };
        match Provides::from_kinds([kind]) {
            Ok(_) => kinds.push(kind),
            Err(error) => found.push(Diagnostic::error(error.to_string()).at(&item.span)),
        }
    }
    Provides::from_kinds(kinds).unwrap_or_default()
}

fn algorithms(node: &Node, found: &mut Diagnostics) -> Option<Vec<Algorithm>> {
    let items = node.items(found)?;
    if items.is_empty() {
        found.push(Diagnostic::error("the list is empty").at(&node.span));
    }
    Some(items.iter().filter_map(|item| item.parsed(found)).collect())
}
