//! Reading the policy files: the form of each part, every mistake at its place.

use std::collections::{BTreeMap, BTreeSet};

use kdbt_api::lease::Engine;
use kdbt_api::name::{RoleName, RuleId, TargetName};
use serde_json::Value as Json;

use super::snowflake::{self, Capitals};
use super::{
    Case, ClaimValue, Condition, CreateAs, Document, Expectation, GrantSet, Guard, Membership, OnlyOn, OwnSchema,
    Place, Rule, RuleProfile, RuleSession, RuleTtl, Tier,
};
use crate::diagnostics::{Diagnostic, Diagnostics, Span, suggestion};
use crate::grant::{SchemaTemplate, Target};
use crate::yaml::{Fields, Key, Node, Read, Spanned, Value, text_of};

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

fn rule(node: &Node, found: &mut Diagnostics) -> Option<Rule> {
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

fn case(node: &Node, found: &mut Diagnostics) -> Option<Case> {
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
