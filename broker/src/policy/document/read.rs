//! Reading the policy files: the form of each part, every mistake at its place.

use std::collections::BTreeSet;

use kdbt_api::lease::Engine;
use kdbt_api::name::{RoleName, TargetName};

use self::case::case;
use self::rule::rule;
use super::snowflake::{self, Capitals};
use super::{Document, GrantSet, Guard, Membership, Place, Tier};
use crate::diagnostics::{Diagnostic, Diagnostics, suggestion};
use crate::grant::Target;
use crate::yaml::{Fields, Key, Node, Spanned};

mod case;
mod rule;

impl Document {
    /// Adds one file.
    pub(in crate::policy) fn add(&mut self, root: &Node, found: &mut Diagnostics) {
        let Some(mut fields) = root.fields("a policy file", found) else {
            return;
        };
        if let Some(version) = fields.required::<Spanned<u32>>("kdbt", found)
            && version.value != 1
        {
            found.push(Diagnostic::error("this broker reads `kdbt: 1` only").at(&version.span));
        }
        for (key, node) in named(&mut fields, "targets", found) {
            self.targets.extend(target(key, node, found));
        }
        for (key, node) in named(&mut fields, "grants", found) {
            self.grants.extend(grant_set(key, node, found));
        }
        for node in listed(&mut fields, "rules", found) {
            self.rules.extend(rule(node, found));
        }
        for (key, node) in named(&mut fields, "limits", found) {
            if key.text == "protect" {
                for node in node.items(found).unwrap_or_default() {
                    self.guards.extend(guard(node, found));
                }
            } else {
                self.tiers.extend(tier(key, node, found));
            }
        }
        for node in listed(&mut fields, "tests", found) {
            self.tests.extend(case(node, found));
        }
        fields.unsupported("sets", "write the rules out, one per member", found);
        fields.finish(found);
    }
}

fn named<'a>(fields: &mut Fields<'a>, name: &'static str, found: &mut Diagnostics) -> &'a [(Key, Node)] {
    fields
        .node(name)
        .and_then(|node| node.entries(found))
        .unwrap_or_default()
}

fn listed<'a>(fields: &mut Fields<'a>, name: &'static str, found: &mut Diagnostics) -> &'a [Node] {
    fields.node(name).and_then(|node| node.items(found)).unwrap_or_default()
}

fn target(key: &Key, node: &Node, found: &mut Diagnostics) -> Option<Place> {
    let name = match key.text.parse::<TargetName>() {
        Ok(name) => Some(name),
        Err(error) => {
            found.push(Diagnostic::error(error.to_string()).at(&key.span));
            None
        }
    };
    let mut fields = node.fields("a target", found)?;
    let server = fields.required("server", found);
    let engine = fields
        .required::<Spanned<String>>("engine", found)
        .and_then(|word| engine(&word, found));
    let tier = fields.required::<String>("tier", found);
    let (database, warehouses) = match engine {
        Some(Engine::Snowflake) => (
            fields.required("database", found).map(|Capitals(name)| name),
            snowflake::warehouses(&mut fields, &key.span, found),
        ),
        Some(Engine::Postgres) | None => (fields.required("database", found), Vec::new()),
    };
    let warehouses_key = fields.entry("warehouses").map(|(key, _)| &key.span);
    if let (Some(Engine::Postgres), Some(span)) = (engine, warehouses_key) {
        let error = Diagnostic::error("PostgreSQL has no virtual warehouses").at(span);
        found.push(error.help("remove it"));
    }
    fields.finish(found);
    let value = Target {
        name: name?,
        server: server?,
        engine: engine?,
        database: database?,
        tier: tier?,
    };
    let span = key.span.clone();
    Some(Place {
        value,
        span,
        warehouses,
    })
}

fn engine(word: &Spanned<String>, found: &mut Diagnostics) -> Option<Engine> {
    let engines = [Engine::Postgres, Engine::Snowflake];
    let engine = engines.into_iter().find(|engine| engine.as_str() == word.value);
    if engine.is_none() {
        let error = Diagnostic::error(format!("unknown engine `{}`", word.value)).at(&word.span);
        found.push(error.label(suggestion(&word.value, engines.map(Engine::as_str))));
    }
    engine
}

fn grant_set(key: &Key, node: &Node, found: &mut Diagnostics) -> Option<GrantSet> {
    let mut fields = node.fields("a grant set", found)?;
    fields.unsupported("each", "write the grant sets out", found);
    let nodes = (fields.node("postgres"), fields.node("snowflake"));
    if nodes == (None, None) {
        let error = Diagnostic::error("a grant set gives something on `postgres`, on `snowflake`, or on both");
        found.push(error.at(&key.span));
    }
    fields.finish(found);
    Some(GrantSet {
        name: key.text.clone(),
        span: key.span.clone(),
        postgres: nodes.0.and_then(|node| membership(node, found)),
        snowflake: nodes.1.and_then(|node| snowflake::wrapper(node, found)),
    })
}

fn membership(node: &Node, found: &mut Diagnostics) -> Option<Membership> {
    let mut fields = node.fields("`postgres`", found)?;
    fields.unsupported(
        "objects",
        "grant the objects to a group role, and name it in `member_of`",
        found,
    );
    let member_of = fields.required::<BTreeSet<RoleName>>("member_of", found);
    let write = writes(&mut fields, found);
    fields.finish(found);
    Some(Membership {
        roles: member_of?,
        write,
    })
}

/// `access: read` or `write`.
pub(super) fn writes(fields: &mut Fields<'_>, found: &mut Diagnostics) -> bool {
    let access = fields.optional::<Spanned<String>>("access", found);
    word(access.as_ref(), "access", [("read", false), ("write", true)], found)
}

/// One of two words; the first where none is given.
fn word(
    given: Option<&Spanned<String>>,
    what: &str,
    words: [(&'static str, bool); 2],
    found: &mut Diagnostics,
) -> bool {
    let Some(given) = given else { return false };
    if let Some((_, value)) = words.iter().find(|(word, _)| *word == given.value) {
        return *value;
    }
    let [first, second] = words.map(|(word, _)| word);
    found.push(Diagnostic::error(format!("`{what}` is `{first}` or `{second}`")).at(&given.span));
    false
}

fn tier(key: &Key, node: &Node, found: &mut Diagnostics) -> Option<Tier> {
    let mut fields = node.fields("a tier's limits", found)?;
    let max_ttl = fields.optional("max_ttl", found);
    let max_ttl_write = fields.optional("max_ttl_write", found);
    fields.unsupported("errors", "fix the warnings", found);
    fields.finish(found);
    Some(Tier {
        name: key.text.clone(),
        span: key.span.clone(),
        max_ttl,
        max_ttl_write,
    })
}

fn guard(node: &Node, found: &mut Diagnostics) -> Option<Guard> {
    let mut fields = node.fields("a guard", found)?;
    fields.unsupported(
        "objects",
        "guard the group roles that reach them: `roles: [grp_finance_ro]`",
        found,
    );
    fields.unsupported("access", "guard the group roles that write", found);
    let reserved = fields.required("roles", found);
    let admitted = fields.required("rules", found);
    fields.finish(found);
    Some(Guard {
        roles: reserved?,
        rules: admitted?,
    })
}
