//! The parts of the configuration, each read and checked on its own so that all mistakes show at once.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use kdbt_api::Ttl;
use kdbt_api::credential::Iterations;
use kdbt_api::name::ServerName;
use url::Url;

use super::secret::secret;
use super::{Admin, Config, Connect, Issuer, Limits, Listen, Protection, Public, Server};
use crate::diagnostics::{Diagnostic, Diagnostics, suggestion};
use crate::identity::{Algorithm, IssuerConfig, Provides};
use crate::policy::IssuerFacts;
use crate::yaml::{Fields, Node, Spanned, text_of};

/// The whole file.
pub(super) fn config(root: &Node, path: &Path, found: &mut Diagnostics) -> Option<Config> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut fields = root.fields("the configuration", found)?;
    if let Some(version) = fields.required::<Spanned<u32>>("kdbt", found)
        && version.value != 1
    {
        found.push(Diagnostic::error("this broker reads `kdbt: 1` only").at(&version.span));
    }
    let installation = fields.required("installation", found);
    let listen = present(&mut fields, "listen", found).and_then(|node| listen(node, folder, found));
    let management = fields.node("management").and_then(|node| management(node, found));
    let public_url = present(&mut fields, "public_url", found).and_then(|node| web_address(node, found));
    let issuers = present(&mut fields, "issuers", found).and_then(|node| issuers(node, folder, found));
    let admins = fields
        .node("admins")
        .map(|node| admins(node, found))
        .unwrap_or_default();
    let store = present(&mut fields, "store", found).and_then(|node| store(node, folder, found));
    let audit_key = fields.node("audit").and_then(|node| audit_key(node, folder, found));
    let servers = present(&mut fields, "servers", found).and_then(|node| servers(node, folder, found));
    let policies = fields.required::<String>("policies", found);
    let limits = fields.node("limits").and_then(|node| limits(node, found));
    let broker_made_secrets = fields.node("secrets").and_then(|node| broker_made(node, found));
    let scram_iterations = fields.node("scram_iterations").and_then(|node| iterations(node, found));
    let shutdown = fields.optional::<Ttl>("shutdown", found);
    fields.finish(found);
    Some(Config {
        path: path.to_owned(),
        installation: installation?,
        listen: listen?,
        management: management.unwrap_or_else(|| SocketAddr::from((Ipv4Addr::LOCALHOST, 8701))),
        public_url: public_url?,
        issuers: issuers?,
        admins,
        store: store?,
        audit_key,
        servers: servers?,
        policies: folder.join(policies?),
        limits: limits.unwrap_or_default(),
        broker_made_secrets: broker_made_secrets.unwrap_or(true),
        scram_iterations: scram_iterations.unwrap_or(Iterations::One),
        shutdown: shutdown.map_or(Duration::from_secs(20), Ttl::as_duration),
        warnings: Vec::new(),
    })
}

/// A node that must be there.
fn present<'a>(fields: &mut Fields<'a>, name: &'static str, found: &mut Diagnostics) -> Option<&'a Node> {
    let node = fields.node(name);
    if node.is_none() {
        fields.missing(name, found);
    }
    node
}

fn listen(node: &Node, folder: &Path, found: &mut Diagnostics) -> Option<Listen> {
    let mut fields = node.fields("`listen`", found)?;
    let address = present(&mut fields, "address", found).and_then(|node| address(node, found));
    let tls = fields.node("tls").and_then(|node| {
        let mut fields = node.fields("`tls`", found)?;
        let cert = fields.required::<String>("cert", found);
        let key = fields.required::<String>("key", found);
        fields.finish(found);
        Some(Protection::Tls {
            cert: folder.join(cert?),
            key: folder.join(key?),
        })
    });
    let proxy = fields.node("behind_proxy").and_then(|node| {
        let mut fields = node.fields("`behind_proxy`", found)?;
        let trusted = present(&mut fields, "trusted", found)?;
        fields.finish(found);
        let items = trusted.items(found)?;
        let parsed = |item: &Node| parse_or(item, "expected an IP address", found);
        let trusted: Vec<IpAddr> = items.iter().filter_map(parsed).collect();
        Some(Protection::BehindProxy { trusted })
    });
    let asked = [fields.node("tls"), fields.node("behind_proxy")];
    fields.finish(found);
    let address = address?;
    let protection = match (tls, proxy) {
        (Some(_), Some(_)) => {
            let error = Diagnostic::error("`tls` and `behind_proxy` exclude each other").at(&node.span);
            found.push(error);
            return None;
        }
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) if asked.iter().any(Option::is_some) => return None,
        (None, None) if address.ip().is_loopback() => Protection::Loopback,
        (None, None) => {
            let error = Diagnostic::error("this address can be reached from outside, and tokens would travel in clear");
            found.push(
                error
                    .at(&node.span)
                    .help("add `tls: { cert, key }` or `behind_proxy: { trusted }`"),
            );
            return None;
        }
    };
    Some(Listen { address, protection })
}

fn management(node: &Node, found: &mut Diagnostics) -> Option<SocketAddr> {
    let mut fields = node.fields("`management`", found)?;
    let at = present(&mut fields, "address", found).and_then(|node| address(node, found));
    fields.finish(found);
    at
}

fn address(node: &Node, found: &mut Diagnostics) -> Option<SocketAddr> {
    parse_or(
        node,
        "expected an IP address and a port, such as `127.0.0.1:8700`",
        found,
    )
}

fn parse_or<T: FromStr>(node: &Node, message: &str, found: &mut Diagnostics) -> Option<T> {
    let parsed = text_of(node, found)?.parse().ok();
    if parsed.is_none() {
        found.push(Diagnostic::error(message).at(&node.span));
    }
    parsed
}

/// An https address; http is for loopback hosts. Never one with a user or password in it.
fn web_address(node: &Node, found: &mut Diagnostics) -> Option<Url> {
    let url: Url = parse_or(
        node,
        "expected an absolute URL, such as `https://kdbt.acme.example`",
        found,
    )?;
    let mistake = match url.scheme() {
        _ if !url.username().is_empty() || url.password().is_some() => "a URL must not hold a user or a password",
        _ if url.query().is_some() || url.fragment().is_some() => "this URL must have no query and no fragment",
        "https" if url.has_host() => return Some(url),
        "http" if is_loopback(&url) => return Some(url),
        _ => "expected an https URL; plain http is for loopback addresses only",
    };
    found.push(Diagnostic::error(mistake).at(&node.span));
    None
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

fn issuers(node: &Node, folder: &Path, found: &mut Diagnostics) -> Option<Vec<Issuer>> {
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

fn certificates(node: &Node, folder: &Path, found: &mut Diagnostics) -> Option<String> {
    let path = folder.join(text_of(node, found)?);
    match std::fs::read_to_string(&path) {
        Ok(pem) if pem.contains("-----BEGIN CERTIFICATE-----") => return Some(pem),
        Ok(_) => {
            let error = Diagnostic::error(format!("{} holds no certificate in PEM", path.display()));
            found.push(error.at(&node.span));
        }
        Err(error) => {
            let error = Diagnostic::error(format!("cannot read {}: {error}", path.display()));
            found.push(error.at(&node.span));
        }
    }
    None
}

fn admins(node: &Node, found: &mut Diagnostics) -> Vec<Admin> {
    let items = node.items(found).unwrap_or_default();
    items.iter().filter_map(|item| item.parsed(found)).collect()
}

/// A text that names no kind of admin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an admin is `realm:<role>`, `client:<client>:<role>` or `group:/<path>`")]
pub struct AdminError;

impl FromStr for Admin {
    type Err = AdminError;

    fn from_str(text: &str) -> Result<Self, AdminError> {
        let (kind, rest) = text.split_once(':').ok_or(AdminError)?;
        match kind {
            "realm" if !rest.is_empty() => Ok(Self::RealmRole(rest.to_owned())),
            "client" => match rest.split_once(':') {
                Some((client, role)) if !client.is_empty() && !role.is_empty() => Ok(Self::ClientRole {
                    client: client.to_owned(),
                    role: role.to_owned(),
                }),
                Some(_) | None => Err(AdminError),
            },
            "group" if rest.starts_with('/') && rest.len() > 1 => Ok(Self::Group(rest.to_owned())),
            _ => Err(AdminError),
        }
    }
}

fn store(node: &Node, folder: &Path, found: &mut Diagnostics) -> Option<PathBuf> {
    let mut fields = node.fields("`store`", found)?;
    fields.unsupported("postgres", "use `sqlite: <path>`", found);
    let path = fields.required::<String>("sqlite", found);
    fields.finish(found);
    Some(folder.join(path?))
}

fn audit_key(node: &Node, folder: &Path, found: &mut Diagnostics) -> Option<secrecy::SecretString> {
    let mut fields = node.fields("`audit`", found)?;
    fields.unsupported("keep", "remove it: audit rows are kept", found);
    let key = fields.node("key").and_then(|node| secret(node, folder, found));
    fields.finish(found);
    key
}

fn servers(node: &Node, folder: &Path, found: &mut Diagnostics) -> Option<BTreeMap<ServerName, Server>> {
    let mut servers = BTreeMap::new();
    for (key, node) in node.entries(found)? {
        let name = match key.text.parse::<ServerName>() {
            Ok(name) => Some(name),
            Err(error) => {
                found.push(Diagnostic::error(error.to_string()).at(&key.span));
                None
            }
        };
        if let (Some(server), Some(name)) = (server(node, folder, found), name) {
            servers.insert(name, server);
        }
    }
    if servers.is_empty() && !found.has_errors() {
        found.push(Diagnostic::error("there must be a server").at(&node.span));
    }
    Some(servers)
}

fn server(node: &Node, folder: &Path, found: &mut Diagnostics) -> Option<Server> {
    let mut fields = node.fields("a server", found)?;
    let engine = fields.required::<Spanned<String>>("engine", found);
    if let Some(engine) = engine.filter(|engine| engine.value != "postgres") {
        let error = if engine.value == "snowflake" {
            Diagnostic::error("`snowflake` is not supported yet")
        } else {
            Diagnostic::error("unknown engine").help(suggestion(&engine.value, ["postgres"]))
        };
        found.push(error.at(&engine.span));
    }
    let connect = present(&mut fields, "connect", found).and_then(|node| connect(node, folder, found));
    let public = fields.node("public").map(|node| public(node, folder, found));
    let insecure_transport = fields.optional("insecure_transport", found);
    let accept_createrole = fields.optional("accept_createrole", found);
    fields.finish(found);
    let connect = connect?;
    let public = match public {
        Some(public) => public?,
        None => Public {
            host: connect.host.clone(),
            port: connect.port,
            ca_pem: connect.ca_pem.clone(),
        },
    };
    Some(Server {
        connect,
        public,
        insecure_transport: insecure_transport.unwrap_or(false),
        accept_createrole: accept_createrole.unwrap_or(false),
    })
}

fn connect(node: &Node, folder: &Path, found: &mut Diagnostics) -> Option<Connect> {
    let mut fields = node.fields("`connect`", found)?;
    let host = present(&mut fields, "host", found).and_then(|node| host(node, found));
    let port = fields.node("port").map(|node| port(node, found));
    let user = fields.required::<String>("user", found);
    let password = fields.node("password").map(|node| secret(node, folder, found));
    let database = fields.optional("database", found);
    let ca_pem = fields
        .node("ca_file")
        .and_then(|node| certificates(node, folder, found));
    fields.finish(found);
    Some(Connect {
        host: host?,
        port: port.unwrap_or(Some(5432))?,
        user: user?,
        password: match password {
            Some(read) => Some(read?),
            None => None,
        },
        database: match database {
            Some(database) => database,
            None => "postgres".parse().ok()?,
        },
        ca_pem,
    })
}

fn public(node: &Node, folder: &Path, found: &mut Diagnostics) -> Option<Public> {
    let mut fields = node.fields("`public`", found)?;
    let host = present(&mut fields, "host", found).and_then(|node| host(node, found));
    let port = fields.node("port").map(|node| port(node, found));
    let ca_pem = fields
        .node("ca_file")
        .and_then(|node| certificates(node, folder, found));
    fields.finish(found);
    Some(Public {
        host: host?,
        port: port.unwrap_or(Some(5432))?,
        ca_pem,
    })
}

/// A host name or address: it goes into connection strings and profiles, so its alphabet is small.
fn host(node: &Node, found: &mut Diagnostics) -> Option<String> {
    let text = text_of(node, found)?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':');
    if text.is_empty() || text.len() > 253 || !text.bytes().all(plain) {
        found.push(Diagnostic::error("expected a host name or an IP address").at(&node.span));
        return None;
    }
    Some(text.to_owned())
}

fn port(node: &Node, found: &mut Diagnostics) -> Option<u16> {
    use crate::yaml::Read as _;
    let port = u16::read(node, found)?;
    if port == 0 {
        found.push(Diagnostic::error("a port is a number from 1 to 65535").at(&node.span));
        return None;
    }
    Some(port)
}

fn limits(node: &Node, found: &mut Diagnostics) -> Option<Limits> {
    let mut fields = node.fields("`limits`", found)?;
    let default = Limits::default();
    let mut count = |name: &'static str, default: u32| {
        let given = fields.optional::<Spanned<u32>>(name, found);
        if let Some(zero) = given.as_ref().filter(|given| given.value == 0) {
            found.push(Diagnostic::error("a limit of 0 would stop everybody").at(&zero.span));
        }
        given.map_or(default, |given| given.value)
    };
    let mut limits = Limits {
        leases_per_person: count("leases_per_person", default.leases_per_person),
        leases_per_rule: count("leases_per_rule", default.leases_per_rule),
        leases_per_target: count("leases_per_target", default.leases_per_target),
        requests: count("requests", default.requests),
        request_time: default.request_time,
    };
    if let Some(time) = fields.optional::<Ttl>("request_time", found) {
        limits.request_time = time.as_duration();
    }
    fields.finish(found);
    Some(limits)
}

fn broker_made(node: &Node, found: &mut Diagnostics) -> Option<bool> {
    let mut fields = node.fields("`secrets`", found)?;
    let word = fields.required::<Spanned<String>>("broker_made", found);
    fields.finish(found);
    let word = word?;
    match word.value.as_str() {
        "allow" => Some(true),
        "deny" => Some(false),
        _ => {
            found.push(Diagnostic::error("expected `allow` or `deny`").at(&word.span));
            None
        }
    }
}

fn iterations(node: &Node, found: &mut Diagnostics) -> Option<Iterations> {
    use crate::yaml::Read as _;
    match u32::read(node, found)? {
        1 => Some(Iterations::One),
        4096 => Some(Iterations::Standard),
        _ => {
            let error = Diagnostic::error("expected 1 (dbt and psql) or 4096 (clients without libpq)");
            found.push(error.at(&node.span));
            None
        }
    }
}
