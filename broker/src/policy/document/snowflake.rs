//! Reading what only Snowflake has: names in capitals, pairs of roles, virtual warehouses, the query tag.

use std::fmt::Display;
use std::str::FromStr;

use kdbt_api::name::{RoleName, WarehouseName};

use super::read::writes;
use super::{RolePair, Wrapper};
use crate::diagnostics::{Diagnostic, Diagnostics, Span};
use crate::yaml::{Fields, Node, Read, Spanned, Value, text_of};

/// The longest query tag, in characters: what is left of Snowflake's 2000 is the broker's.
const LONGEST_TAG: usize = 200;

/// A name as Snowflake keeps whatever is written without quotes, as dbt does: in capitals.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Capitals<T>(pub(super) T);

impl<T> Read for Capitals<T>
where
    T: FromStr,
    T::Err: Display,
{
    fn read(node: &Node, found: &mut Diagnostics) -> Option<Self> {
        if let Value::Map(_) = node.value {
            let error = Diagnostic::error("names on Snowflake have one form, and no `exact`").at(&node.span);
            found.push(error.help(
                "write the name alone: dbt writes it without quotes, so an object whose name is not in capitals would not be found",
            ));
            return None;
        }
        match text_of(node, found)?.to_ascii_uppercase().parse() {
            Ok(name) => Some(Self(name)),
            Err(error) => {
                found.push(Diagnostic::error(format!("{error}")).at(&node.span));
                None
            }
        }
    }
}

pub(super) fn unwrap<T>(name: Spanned<Capitals<T>>) -> Spanned<T> {
    let Capitals(value) = name.value;
    Spanned { value, span: name.span }
}

/// The virtual warehouses of a target. Without one nothing that dbt asks for could be computed.
pub(super) fn warehouses(fields: &mut Fields<'_>, target: &Span, found: &mut Diagnostics) -> Vec<WarehouseName> {
    const HELP: &str = "list those that rules may choose: `warehouses: [BI]`";
    let Some(node) = fields.node("warehouses") else {
        let error = Diagnostic::error("a target on Snowflake has virtual warehouses, and this one names none");
        found.push(error.at(target).help(HELP));
        return Vec::new();
    };
    let mut warehouses = Vec::new();
    for item in node.items(found).unwrap_or_default() {
        if let Some(Capitals(name)) = Capitals::read(item, found) {
            if warehouses.contains(&name) {
                found.push(Diagnostic::error("stands twice in the list").at(&item.span));
            }
            warehouses.push(name);
        }
    }
    if node.items(&mut Diagnostics::none()).is_some_and(<[Node]>::is_empty) {
        let error = Diagnostic::error("without a virtual warehouse nothing can be computed").code("K004");
        found.push(error.at(&node.span).help(HELP));
    }
    warehouses
}

/// `{ grant_role, session_role, access }` of a grant set.
pub(super) fn wrapper(node: &Node, found: &mut Diagnostics) -> Option<Wrapper> {
    let mut fields = node.fields("`snowflake`", found)?;
    fields.unsupported(
        "objects",
        "grant the objects to a role, and name it as `session_role`",
        found,
    );
    let write = writes(&mut fields, found);
    let pair = pair(fields, node, found)?;
    Some(Wrapper { pair, write })
}

/// `{ grant_role, session_role }`.
pub(super) fn role_pair(node: &Node, found: &mut Diagnostics) -> Option<RolePair> {
    if let Value::Plain(_) | Value::Quoted(_) = node.value {
        let error = Diagnostic::error("on Snowflake this takes two roles").at(&node.span);
        found.push(error.help(PAIR));
        return None;
    }
    pair(node.fields("`snowflake`", found)?, node, found)
}

const PAIR: &str = "write `{ grant_role: …, session_role: … }`: sessions use `session_role`; `grant_role` is a role of the broker's that holds it, since on Snowflake only a role's owner can grant it";

fn pair(mut fields: Fields<'_>, node: &Node, found: &mut Diagnostics) -> Option<RolePair> {
    let memberships = fields.entry("member_of").map(|(key, _)| &key.span);
    if let Some(span) = memberships {
        let error = Diagnostic::error("`member_of` is for PostgreSQL").at(span);
        found.push(error.help(PAIR));
    }
    let grant_role = fields.node("grant_role");
    let session_role = fields.node("session_role");
    for (name, role) in [("grant_role", grant_role), ("session_role", session_role)] {
        if role.is_none() && memberships.is_none() {
            fields.missing(name, found);
        }
    }
    fields.finish(found);
    let mut role = |node: Option<&Node>| node.and_then(|node| Capitals::<RoleName>::read(node, found));
    let (grant_role, session_role) = (role(grant_role), role(session_role));
    Some(RolePair {
        span: node.span.clone(),
        grant_role: grant_role?.0,
        session_role: session_role?.0,
    })
}

/// Plain text: it stands behind the lease's id on the user, and a reader of the query history must be able to trust it.
pub(super) fn query_tag(node: &Node, found: &mut Diagnostics) -> Option<String> {
    let text = text_of(node, found)?;
    let plain = |c: char| c.is_ascii_graphic() || c == ' ';
    let mistake = if text.contains("{{") {
        "a query tag has no variables: the broker puts the lease before it"
    } else if text.is_empty() || text.len() > LONGEST_TAG || !text.chars().all(plain) {
        "a query tag is 1 to 200 letters, digits, spaces and signs of ASCII"
    } else {
        return Some(text.to_owned());
    };
    found.push(Diagnostic::error(mistake).at(&node.span));
    None
}

pub(super) fn refuse_keep_alive(fields: &mut Fields<'_>, found: &mut Diagnostics) {
    if let Some((key, _)) = fields.entry("client_session_keep_alive") {
        let error = Diagnostic::error("`client_session_keep_alive` would keep sessions alive beyond their lease");
        found.push(error.at(&key.span).help("remove it: dbt's default is off"));
    }
}
