//! The parts of the configuration, each read and checked on its own so that all mistakes show at once.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use kdbt_api::Ttl;
use kdbt_api::credential::Iterations;
use url::Url;

use super::issuers::issuers;
use super::secret::secret;
use super::servers::servers;
use super::{Admin, Config, Limits, Listen, Protection, Scan};
use crate::diagnostics::{Diagnostic, Diagnostics};
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
    let scan = fields.node("scan").and_then(|node| scan(node, folder, found));
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
        scan: scan.unwrap_or_default(),
        limits: limits.unwrap_or_default(),
        broker_made_secrets: broker_made_secrets.unwrap_or(true),
        scram_iterations: scram_iterations.unwrap_or(Iterations::One),
        shutdown: shutdown.map_or(Duration::from_secs(20), Ttl::as_duration),
        warnings: Vec::new(),
    })
}

/// A node that must be there.
pub(super) fn present<'a>(fields: &mut Fields<'a>, name: &'static str, found: &mut Diagnostics) -> Option<&'a Node> {
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
pub(super) fn web_address(node: &Node, found: &mut Diagnostics) -> Option<Url> {
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

pub(super) fn certificates(node: &Node, folder: &Path, found: &mut Diagnostics) -> Option<String> {
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

fn scan(node: &Node, folder: &Path, found: &mut Diagnostics) -> Option<Scan> {
    let mut fields = node.fields("`scan`", found)?;
    let every = fields.optional::<Ttl>("every", found);
    let approved = fields.optional::<String>("approved", found);
    fields.finish(found);
    Some(Scan {
        every: every.map_or(Scan::default().every, Ttl::as_duration),
        approved: approved.map(|path| folder.join(path)),
    })
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
