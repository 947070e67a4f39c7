//! Reading a rule: whom it is for, what it gives, for how long, and how the session and the profile look.

use std::collections::BTreeMap;

use kdbt_api::lease::Engine;
use kdbt_api::name::RuleId;

use super::super::snowflake;
use super::super::{ClaimValue, Condition, CreateAs, OnlyOn, OwnSchema, Rule, RuleProfile, RuleSession, RuleTtl};
use super::{named, word};
use crate::diagnostics::{Diagnostic, Diagnostics, Span};
use crate::grant::SchemaTemplate;
use crate::yaml::{Fields, Node, Read, Spanned, Value, text_of};

pub(super) fn rule(node: &Node, found: &mut Diagnostics) -> Option<Rule> {
    let mut fields = node.fields("a rule", found)?;
    let id = fields.required::<Spanned<RuleId>>("id", found);
    let effect = fields.optional::<Spanned<String>>("effect", found);
    let why = fields.optional("why", found);
    let everyone = fields.optional("everyone", found);
    let when = fields.node("when").map(|node| condition(node, found));
    let unless = match fields.node("unless").map(|node| (&node.value, node)) {
        Some((Value::List(items), _)) => items.iter().map(|node| condition(node, found)).collect(),
        Some((_, node)) => vec![condition(node, found)],
        None => Vec::new(),
    };
    let targets = fields.required("targets", found);
    let grants = fields.optional("grants", found);
    let create_as = fields.node("create_as").and_then(|node| create_as(node, found));
    let own_schema = fields.node("own_schema").and_then(|node| own_schema(node, found));
    let ttl = fields.node("ttl").and_then(|node| rule_ttl(node, found));
    let session = fields.node("session").and_then(|node| rule_session(node, found));
    let profile = fields.node("profile").and_then(|node| rule_profile(node, found));
    let opt_in = fields.optional("opt_in", found);
    let reason = fields.optional::<Spanned<String>>("reason", found);
    let rank = fields.optional("rank", found);
    for (name, instead) in [
        ("window", "remove it, or give the role for a time in Keycloak"),
        ("approval", "use `opt_in: true` and `reason: required`"),
        ("notify", "read the audit log"),
        ("each", "write the rules out"),
        ("choice", "use `opt_in: true`"),
        ("valid", "remove the rule on that day"),
        ("only", "let the deny rule hold for the whole target"),
        (
            "on_change",
            "remove it: a lease ends when the policy no longer gives it",
        ),
    ] {
        fields.unsupported(name, instead, found);
    }
    fields.finish(found);
    let deny = word(effect.as_ref(), "effect", [("allow", false), ("deny", true)], found);
    let reason = word(
        reason.as_ref(),
        "reason",
        [("optional", false), ("required", true)],
        found,
    );
    let id = id?;
    Some(Rule {
        span: id.span,
        id: id.value,
        deny,
        why,
        everyone: everyone.unwrap_or(false),
        when: when.unwrap_or_default(),
        unless,
        targets: targets?,
        grants: grants.unwrap_or_default(),
        create_as,
        own_schema,
        ttl,
        session: session.unwrap_or_default(),
        profile: profile.unwrap_or_default(),
        opt_in: opt_in.unwrap_or(false),
        reason_required: reason,
        rank: rank.unwrap_or(0),
    })
}

fn condition(node: &Node, found: &mut Diagnostics) -> Condition {
    let Some(mut fields) = node.fields("a condition", found) else {
        return Condition::default();
    };
    let realm_roles = fields.node("realm_roles").and_then(|node| values(node, found));
    let groups = fields.node("groups").and_then(|node| groups(node, found));
    let mut client_roles = BTreeMap::new();
    for (key, node) in named(&mut fields, "client_roles", found) {
        client_roles.extend(values(node, found).map(|roles| (key.text.clone(), roles)));
    }
    let mut claims = BTreeMap::new();
    for (key, node) in named(&mut fields, "claims", found) {
        let kind = ["/realm_access", "/resource_access", "/groups"];
        if kind.iter().any(|kind| key.text.starts_with(kind)) {
            let error = Diagnostic::error("this claim has a kind of its own").at(&key.span);
            found.push(error.help("use `realm_roles`, `client_roles` or `groups`"));
        }
        claims.extend(values(node, found).map(|values| (key.text.clone(), values)));
    }
    fields.finish(found);
    Condition {
        realm_roles,
        client_roles,
        groups,
        claims,
    }
}

/// A list that is not empty: an empty one can match nobody.
fn values<T: Read>(node: &Node, found: &mut Diagnostics) -> Option<Vec<T>> {
    if node.items(found)?.is_empty() {
        let error = Diagnostic::error("an empty list matches nobody").code("K004");
        found.push(error.at(&node.span).help("list at least one value, or remove it"));
    }
    Vec::read(node, found)
}

fn groups(node: &Node, found: &mut Diagnostics) -> Option<Vec<String>> {
    for item in node.items(found)? {
        match text_of(item, &mut Diagnostics::none()) {
            Some(path) if !path.starts_with('/') => {
                let error = Diagnostic::error("a group is named by its full path, which starts with `/`");
                found.push(error.code("K004").at(&item.span).help(format!("write `/{path}`")));
            }
            Some(path) => check_prefix(path, &item.span, found),
            None => {}
        }
    }
    values(node, found)
}

fn check_prefix(text: &str, span: &Span, found: &mut Diagnostics) {
    let prefix = text.strip_suffix("/*").unwrap_or(text);
    if prefix.contains('*') || prefix.is_empty() {
        let error = Diagnostic::error("`*` stands only at the end, after a name and `/`").code("K021");
        found.push(error.at(span).help("write `/data/*` for all that is below `/data`"));
    }
}

impl Read for ClaimValue {
    fn read(node: &Node, found: &mut Diagnostics) -> Option<Self> {
        match &node.value {
            Value::Plain(text) if text == "true" => Some(Self::Flag(true)),
            Value::Plain(text) if text == "false" => Some(Self::Flag(false)),
            Value::Plain(_) | Value::Quoted(_) | Value::List(_) | Value::Map(_) => {
                let text = text_of(node, found)?;
                check_prefix(text, &node.span, found);
                Some(Self::Text(text.to_owned()))
            }
        }
    }
}

impl Read for SchemaTemplate {
    /// The only variable is `{{username}}`; the rest must be a name for everybody, even with the longest slug.
    fn read(node: &Node, found: &mut Diagnostics) -> Option<Self> {
        let text = text_of(node, found)?;
        let template = Self(text.to_owned());
        let others = text.replace("{{username}}", "");
        if others.contains(['{', '}']) {
            let error = Diagnostic::error("the only variable here is `{{username}}`").code("K022");
            found.push(error.at(&node.span));
            return None;
        }
        let longest = "abcdefghijklmnopqrstuvwx".parse();
        let mistake = longest.and_then(|slug| template.render(&slug)).err();
        if let Some(mistake) = mistake {
            let error = Diagnostic::error(mistake.to_string()).code("K022").at(&node.span);
            found.push(error.label("with a user name of 24 letters"));
            return None;
        }
        Some(template)
    }
}

fn create_as(node: &Node, found: &mut Diagnostics) -> Option<CreateAs> {
    let mut fields = node.fields("`create_as`", found)?;
    let nodes = (fields.node("postgres"), fields.node("snowflake"));
    if nodes == (None, None) {
        let error = Diagnostic::error("`create_as` names a role on `postgres`, on `snowflake`, or on both");
        found.push(error.at(&node.span));
    }
    fields.finish(found);
    Some(CreateAs {
        span: node.span.clone(),
        postgres: nodes.0.and_then(|node| Read::read(node, found)),
        snowflake: nodes.1.and_then(|node| snowflake::role_pair(node, found)),
    })
}

fn own_schema(node: &Node, found: &mut Diagnostics) -> Option<OwnSchema> {
    let mut fields = node.fields("`own_schema`", found)?;
    let name = fields.required::<Spanned<SchemaTemplate>>("name", found);
    let also = fields
        .optional::<Vec<Spanned<String>>>("also", found)
        .unwrap_or_default();
    let extra = fields
        .optional::<Vec<Spanned<SchemaTemplate>>>("extra", found)
        .unwrap_or_default();
    let create_schemas = fields.optional("create_schemas", found);
    fields.finish(found);
    let name = name?;
    for suffix in &also {
        let whole = SchemaTemplate(format!("{}_{}", name.value.0, suffix.value));
        let longest = "abcdefghijklmnopqrstuvwx".parse();
        if let Err(mistake) = longest.and_then(|slug| whole.render(&slug)) {
            let error = Diagnostic::error(mistake.to_string()).code("K022").at(&suffix.span);
            found.push(error.label(format!("makes `{}`", whole.0)));
        }
    }
    let extra_names = extra.iter().map(|extra| (&extra.value, &extra.span));
    for (template, span) in std::iter::once((&name.value, &name.span)).chain(extra_names) {
        if !template.0.contains("{{username}}") {
            let error = Diagnostic::error("everybody would own the same schema")
                .code("K022")
                .at(span);
            found.push(error.help("put `{{username}}` into the name"));
        }
    }
    Some(OwnSchema {
        span: node.span.clone(),
        name: name.value,
        also: also.into_iter().map(|suffix| suffix.value).collect(),
        extra: extra.into_iter().map(|extra| extra.value).collect(),
        create_schemas: create_schemas.unwrap_or(false),
    })
}

fn rule_ttl(node: &Node, found: &mut Diagnostics) -> Option<RuleTtl> {
    let mut fields = node.fields("`ttl`", found)?;
    let min = fields.optional("min", found);
    let default = fields.required("default", found);
    let max = fields.required("max", found);
    fields.finish(found);
    let ttl = RuleTtl {
        span: node.span.clone(),
        min,
        default: default?,
        max: max?,
    };
    if ttl.least() > ttl.default || ttl.default > ttl.max {
        let error = Diagnostic::error("`min` ≤ `default` ≤ `max` does not hold").at(&node.span);
        found.push(error);
    }
    Some(ttl)
}

fn rule_session(node: &Node, found: &mut Diagnostics) -> Option<RuleSession> {
    let mut fields = node.fields("`session`", found)?;
    let session = RuleSession {
        connection_limit: fields.optional("connection_limit", found),
        statement_timeout: fields.optional("statement_timeout", found),
        lock_timeout: fields.optional("lock_timeout", found),
        idle_in_transaction_session_timeout: fields.optional("idle_in_transaction_session_timeout", found),
        read_only: fields.optional("read_only", found),
        query_tag: fields
            .node("query_tag")
            .and_then(|node| snowflake::query_tag(node, found)),
        only: only_on(
            &mut fields,
            &[
                ("connection_limit", Engine::Postgres),
                ("idle_in_transaction_session_timeout", Engine::Postgres),
                ("read_only", Engine::Postgres),
                ("query_tag", Engine::Snowflake),
            ],
        ),
    };
    fields.finish(found);
    if let Some(limit) = session.connection_limit.as_ref().filter(|limit| limit.value == 0) {
        found.push(Diagnostic::error("a connection limit of 0 lets nobody in").at(&limit.span));
    }
    Some(session)
}

fn rule_profile(node: &Node, found: &mut Diagnostics) -> Option<RuleProfile> {
    let mut fields = node.fields("`profile`", found)?;
    let profile = RuleProfile {
        threads: fields.optional("threads", found),
        schema: fields.optional("schema", found),
        search_path: fields.optional("search_path", found),
        keepalives_idle: fields.optional("keepalives_idle", found),
        connect_timeout: fields.optional("connect_timeout", found),
        retries: fields.optional("retries", found),
        connect_retries: fields.optional("connect_retries", found),
        warehouse: fields.optional("warehouse", found).map(snowflake::unwrap),
        only: only_on(
            &mut fields,
            &[
                ("search_path", Engine::Postgres),
                ("keepalives_idle", Engine::Postgres),
                ("retries", Engine::Postgres),
                ("connect_retries", Engine::Snowflake),
                ("warehouse", Engine::Snowflake),
            ],
        ),
    };
    snowflake::refuse_keep_alive(&mut fields, found);
    for name in ["sslmode", "sslrootcert"] {
        fields.unsupported(
            name,
            "the broker's configuration says how connections are secured",
            found,
        );
    }
    fields.finish(found);
    if let Some(threads) = profile.threads.as_ref().filter(|threads| threads.value == 0) {
        found.push(Diagnostic::error("dbt needs at least one thread").at(&threads.span));
    }
    Some(profile)
}

/// The keys of these that are there.
fn only_on(fields: &mut Fields<'_>, keys: &[(&'static str, Engine)]) -> Vec<OnlyOn> {
    let mut there = Vec::new();
    for (key, engine) in keys {
        let entry = fields.entry(key);
        there.extend(entry.map(|(text, _)| OnlyOn {
            key,
            span: text.span.clone(),
            engine: *engine,
        }));
    }
    there
}
