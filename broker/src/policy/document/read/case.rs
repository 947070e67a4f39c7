//! Reading a test of the policies: a token's claims, an order, and what must come of it.

use std::collections::BTreeSet;

use kdbt_api::name::RoleName;
use serde_json::Value as Json;

use super::super::snowflake::Capitals;
use super::super::{Case, Expectation};
use crate::diagnostics::{Diagnostic, Diagnostics};
use crate::yaml::{Node, Spanned, Value};

pub(super) fn case(node: &Node, found: &mut Diagnostics) -> Option<Case> {
    let mut fields = node.fields("a test", found)?;
    let name = fields.required::<Spanned<String>>("name", found);
    let claims = fields.node("claims").map(json);
    if claims.is_none() {
        fields.missing("claims", found);
    }
    let target = fields.required("target", found);
    let rules = fields.optional("rules", found);
    let ttl = fields.optional("ttl", found);
    let reason = fields.optional("reason", found);
    let at = fields.optional("at", found);
    let expect = fields.node("expect").and_then(|node| expectation(node, found));
    if expect.is_none() {
        fields.missing("expect", found);
    }
    fields.unsupported("each", "write the tests out", found);
    fields.finish(found);
    let name = name?;
    Some(Case {
        name: name.value,
        span: name.span,
        claims: match claims? {
            Json::Object(claims) => claims,
            Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) | Json::Array(_) => {
                found.push(Diagnostic::error("`claims` is a map, as in a token").at(&node.span));
                return None;
            }
        },
        target: target?,
        rules: rules.unwrap_or_default(),
        ttl,
        reason,
        at,
        expect: expect?,
    })
}

fn expectation(node: &Node, found: &mut Diagnostics) -> Option<Expectation> {
    let mut fields = node.fields("`expect`", found)?;
    let expect = Expectation {
        denied: fields.optional("denied", found),
        rules: fields.optional("rules", found),
        member_of: fields.optional("member_of", found),
        create_as: fields.optional("create_as", found),
        own_schema: fields.optional("own_schema", found),
        grant_roles: fields
            .optional::<BTreeSet<Capitals<RoleName>>>("grant_roles", found)
            .map(|roles| roles.into_iter().map(|Capitals(role)| role).collect()),
        session_role: fields.optional("session_role", found).map(|Capitals(role)| role),
        warehouse: fields.optional("warehouse", found).map(|Capitals(name)| name),
        default_ttl: fields.optional("default_ttl", found),
        max_ttl: fields.optional("max_ttl", found),
    };
    fields.finish(found);
    if node.entries(found)?.is_empty() {
        found.push(Diagnostic::error("a test that expects nothing cannot fail").at(&node.span));
    }
    Some(expect)
}

/// A token's claims as JSON: what is quoted is text.
fn json(node: &Node) -> Json {
    match &node.value {
        Value::Quoted(text) => Json::String(text.clone()),
        Value::Plain(text) => match text.as_str() {
            "true" => Json::Bool(true),
            "false" => Json::Bool(false),
            number => match number.parse::<i64>() {
                Ok(number) => Json::from(number),
                Err(_) => Json::String(text.clone()),
            },
        },
        Value::List(items) => items.iter().map(json).collect(),
        Value::Map(entries) => {
            let members = entries.iter().map(|(key, node)| (key.text.clone(), json(node)));
            Json::Object(members.collect())
        }
    }
}
