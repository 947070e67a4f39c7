//! A Snowflake account of the configuration: what the broker dials, and what dbt gets.

use std::net::IpAddr;
use std::path::Path;

use kdbt_api::lease::SnowflakeAddress;
use kdbt_api::name::{DatabaseName, RoleName};
use url::Url;

use super::parts::{certificates, present, web_address};
use super::secret::private_key;
use super::servers::{host, port};
use super::{Account, SnowflakeServer};
use crate::diagnostics::{Diagnostic, Diagnostics};
use crate::yaml::{Fields, Node, Spanned, text_of};

/// What a host name (253 octets, RFC 1035) leaves beside `.snowflakecomputing.com`.
const LONGEST_ACCOUNT: usize = 230;

/// How many calls that make users run at once, unless the file says.
const CALLS: u16 = 64;

pub(super) fn snowflake(mut fields: Fields<'_>, folder: &Path, found: &mut Diagnostics) -> Option<SnowflakeServer> {
    let connect = present(&mut fields, "connect", found).and_then(|node| connect(node, folder, found));
    let public = fields.node("public").map(|node| public(node, found));
    let session_policy = fields.node("session_policy").map(|node| full_name(node, found));
    let hard_expiry = fields.optional("hard_expiry", found);
    let calls = fields.optional::<Spanned<u16>>("calls", found);
    fields.finish(found);
    if let Some(calls) = calls.as_ref().filter(|calls| calls.value == 0) {
        found.push(Diagnostic::error("with no call at once nothing is ever done").at(&calls.span));
    }
    let connect = connect?;
    let public = match public {
        Some(read) => read?,
        None => Public::default(),
    };
    Some(SnowflakeServer {
        public_account: public.account.unwrap_or_else(|| connect.account.clone()),
        public_address: public
            .address
            .or_else(|| connect.base_url.as_ref().and_then(address_of)),
        connect,
        session_policy: match session_policy {
            Some(read) => Some(read?),
            None => None,
        },
        hard_expiry: hard_expiry.unwrap_or(false),
        calls: calls.map_or(CALLS, |calls| calls.value),
    })
}

fn connect(node: &Node, folder: &Path, found: &mut Diagnostics) -> Option<Account> {
    let mut fields = node.fields("`connect`", found)?;
    let account = present(&mut fields, "account", found).and_then(|node| account(node, found));
    let user = present(&mut fields, "user", found).and_then(|node| user(node, found));
    let role = present(&mut fields, "role", found).and_then(|node| role(node, found));
    if let Some((key, _)) = fields.entry("password") {
        let error = Diagnostic::error("Snowflake takes no password from a service").at(&key.span);
        found.push(error.help("write `private_key: { file: … }`"));
    }
    let private_key = present(&mut fields, "private_key", found).and_then(|node| private_key(node, folder, found));
    let base_url = fields.node("base_url").map(|node| base_url(node, found));
    let ca_pem = fields.node("ca_file").map(|node| certificates(node, folder, found));
    fields.finish(found);
    Some(Account {
        account: account?,
        user: user?,
        role: role?,
        private_key: private_key?,
        base_url: match base_url {
            Some(read) => Some(read?),
            None => None,
        },
        ca_pem: match ca_pem {
            Some(read) => Some(read?),
            None => None,
        },
    })
}

#[derive(Default)]
struct Public {
    account: Option<String>,
    address: Option<SnowflakeAddress>,
}

fn public(node: &Node, found: &mut Diagnostics) -> Option<Public> {
    let mut fields = node.fields("`public`", found)?;
    let account = fields.node("account").map(|node| account(node, found));
    let host_node = fields.node("host");
    let host = host_node.map(|node| host(node, found));
    let port = fields.node("port").map(|node| port(node, found));
    let plain = fields.optional::<Spanned<bool>>("plain", found);
    let others = ["port", "plain"].map(|name| fields.entry(name).map(|(key, _)| &key.span));
    fields.finish(found);
    for span in others.into_iter().flatten().filter(|_| host_node.is_none()) {
        let error = Diagnostic::error("this belongs to a `host`, and there is none").at(span);
        found.push(error.help("add `host`, or remove it"));
    }
    let address = match host {
        None => None,
        Some(host) => {
            let host = host?;
            if let Some(plain) = plain.as_ref().filter(|plain| plain.value && !is_loopback(&host)) {
                let error = Diagnostic::error("without TLS is for loopback addresses only").at(&plain.span);
                found.push(error.help("remove `plain`"));
            }
            Some(SnowflakeAddress {
                host,
                port: port.unwrap_or(Some(443))?,
                plain: plain.is_some_and(|plain| plain.value),
            })
        }
    };
    let account = match account {
        Some(read) => Some(read?),
        None => None,
    };
    Some(Public { account, address })
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Whoever dials the account by another address wants dbt to do so too, unless `public` says otherwise.
fn address_of(url: &Url) -> Option<SnowflakeAddress> {
    Some(SnowflakeAddress {
        host: url.host_str()?.trim_matches(['[', ']']).to_owned(),
        port: url.port_or_known_default()?,
        plain: url.scheme() == "http",
    })
}

/// The identifier of an account: `<organization>-<account>`, or a locator with its region.
fn account(node: &Node, found: &mut Diagnostics) -> Option<String> {
    let text = text_of(node, found)?;
    let lower = text.to_ascii_lowercase();
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let part = |part: &str| {
        let ends = part.bytes().next().into_iter().chain(part.bytes().last());
        !part.is_empty() && part.bytes().all(inner) && ends.into_iter().all(|byte| byte.is_ascii_alphanumeric())
    };
    let address = ["/", ".snowflakecomputing", "app.snowflake.com"];
    let mistake = if address.iter().any(|part| lower.contains(part)) {
        "expected the account identifier alone, not an address"
    } else if text.len() > LONGEST_ACCOUNT || !text.split('.').all(part) {
        "expected an account identifier: letters, digits, `-`, `_`, and dots between parts"
    } else {
        return Some(text.to_owned());
    };
    let error = Diagnostic::error(mistake).at(&node.span);
    found.push(error.help("it looks like `myorg-myacct`, or `xy12345.eu-central-1` with a locator and its region"));
    None
}

/// A login name. It goes into tokens, so it holds no space and nothing invisible.
fn user(node: &Node, found: &mut Diagnostics) -> Option<String> {
    let text = text_of(node, found)?;
    if text.is_empty() || text.len() > 255 || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        let error = Diagnostic::error("expected the LOGIN_NAME of the broker's user, without spaces");
        found.push(error.at(&node.span));
        return None;
    }
    Some(text.to_owned())
}

fn role(node: &Node, found: &mut Diagnostics) -> Option<RoleName> {
    match text_of(node, found)?.to_ascii_uppercase().parse() {
        Ok(role) => Some(role),
        Err(error) => {
            found.push(Diagnostic::error(format!("{error}")).at(&node.span));
            None
        }
    }
}

fn base_url(node: &Node, found: &mut Diagnostics) -> Option<Url> {
    let url = web_address(node, found)?;
    if url.path() != "/" {
        found.push(Diagnostic::error("this URL must have no path").at(&node.span));
        return None;
    }
    Some(url)
}

/// `DATABASE.SCHEMA.POLICY`, in capitals. The three have one alphabet.
fn full_name(node: &Node, found: &mut Diagnostics) -> Option<String> {
    let text = text_of(node, found)?.to_ascii_uppercase();
    let parts = text.split('.').map(str::parse::<DatabaseName>);
    if text.split('.').count() == 3 && parts.into_iter().all(|part| part.is_ok()) {
        return Some(text);
    }
    let error = Diagnostic::error("expected the full name of a session policy, such as `SECURITY.POLICIES.KDBT`");
    found.push(error.at(&node.span));
    None
}
