//! The servers of the configuration: what the broker dials, and what dbt gets.

use std::collections::BTreeMap;
use std::path::Path;

use kdbt_api::lease::Engine;
use kdbt_api::name::ServerName;

use super::parts::{certificates, present};
use super::secret::secret;
use super::snowflake::snowflake;
use super::{Connect, PostgresServer, Public, Server};
use crate::diagnostics::{Diagnostic, Diagnostics, suggestion};
use crate::yaml::{Fields, Node, Spanned, text_of};

pub(super) fn servers(node: &Node, folder: &Path, found: &mut Diagnostics) -> Option<BTreeMap<ServerName, Server>> {
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
    match engine(&mut fields, found)? {
        Engine::Postgres => postgres(fields, folder, found).map(Server::Postgres),
        Engine::Snowflake => snowflake(fields, folder, found).map(Server::Snowflake),
    }
}

fn engine(fields: &mut Fields<'_>, found: &mut Diagnostics) -> Option<Engine> {
    let word = fields.required::<Spanned<String>>("engine", found)?;
    let engines = [Engine::Postgres, Engine::Snowflake];
    let engine = engines.into_iter().find(|engine| engine.as_str() == word.value);
    if engine.is_none() {
        let error = Diagnostic::error("unknown engine").at(&word.span);
        found.push(error.help(suggestion(&word.value, engines.map(Engine::as_str))));
    }
    engine
}

/// The engine of each server, and nothing else of the file.
pub(super) fn engines(root: &Node, found: &mut Diagnostics) -> Option<BTreeMap<ServerName, Engine>> {
    let mut fields = root.fields("the configuration", found)?;
    let mut engines = BTreeMap::new();
    for (key, node) in present(&mut fields, "servers", found)?.entries(found)? {
        let mut fields = node.fields("a server", found)?;
        if let (Ok(name), Some(engine)) = (key.text.parse(), engine(&mut fields, found)) {
            engines.insert(name, engine);
        }
    }
    Some(engines)
}

fn postgres(mut fields: Fields<'_>, folder: &Path, found: &mut Diagnostics) -> Option<PostgresServer> {
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
    Some(PostgresServer {
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
pub(super) fn host(node: &Node, found: &mut Diagnostics) -> Option<String> {
    let text = text_of(node, found)?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':');
    if text.is_empty() || text.len() > 253 || !text.bytes().all(plain) {
        found.push(Diagnostic::error("expected a host name or an IP address").at(&node.span));
        return None;
    }
    Some(text.to_owned())
}

pub(super) fn port(node: &Node, found: &mut Diagnostics) -> Option<u16> {
    use crate::yaml::Read as _;
    let port = u16::read(node, found)?;
    if port == 0 {
        found.push(Diagnostic::error("a port is a number from 1 to 65535").at(&node.span));
        return None;
    }
    Some(port)
}
