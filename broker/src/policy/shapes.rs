//! Whether what a rule says fits the engines of its targets: all that it gives fits all of them, each setting fits one.

use std::collections::BTreeMap;

use kdbt_api::lease::Engine;
use kdbt_api::name::ServerName;

use super::PolicySet;
use super::document::{Place, Rule};
use crate::diagnostics::{Diagnostic, Diagnostics, suggestion};

const ENGINES: [Engine; 2] = [Engine::Postgres, Engine::Snowflake];

impl PolicySet {
    /// What an allow rule gives where.
    pub(super) fn check_shapes(&self, rule: &Rule, found: &mut Diagnostics) {
        for (engine, place) in ENGINES.map(|engine| (engine, self.place_on(rule, engine))) {
            let Some(target) = place.map(|place| &place.value.name) else {
                continue;
            };
            let example = match engine {
                Engine::Postgres => "`postgres: …`",
                Engine::Snowflake => "`snowflake: { grant_role: …, session_role: … }`",
            };
            for named in &rule.grants {
                let set = self.document.grants.iter().find(|set| set.name == named.value);
                if set.is_some_and(|set| !set.fits(engine)) {
                    let message = format!("`{}` gives nothing on {engine}, where `{target}` is", named.value);
                    let help = format!("add {example} to the grant set, or split the rule in two");
                    found.push(Diagnostic::error(message).at(&named.span).help(help));
                }
            }
            if let Some(create_as) = rule.create_as.as_ref().filter(|create_as| !create_as.fits(engine)) {
                let message = format!("`create_as` names no role on {engine}, where `{target}` is");
                let help = format!("add {example} to it, or split the rule in two");
                found.push(Diagnostic::error(message).at(&create_as.span).help(help));
            }
            if let (Engine::Snowflake, Some(own)) = (engine, &rule.own_schema) {
                let message = format!("`own_schema` is for PostgreSQL, and `{target}` is on Snowflake");
                let help = "there, objects belong to roles: use `create_as` with a role that may CREATE SCHEMA, and \
                            `profile: { schema: \"dbt_{{username}}\" }`";
                found.push(Diagnostic::error(message).at(&own.span).help(help));
            }
        }
        for only in rule.session.only.iter().chain(&rule.profile.only) {
            if !rule.targets.is_empty() && self.place_on(rule, only.engine).is_none() {
                let message = format!("`{}` is for {}, and no target of this rule is", only.key, only.engine);
                found.push(Diagnostic::error(message).at(&only.span).help("remove it"));
            }
        }
        let places = self.document.targets.iter();
        for place in places.filter(|place| rule.on(&place.value.name) && !place.warehouses.is_empty()) {
            check_warehouse(rule, place, found);
        }
    }

    /// One server is of one engine.
    pub(super) fn check_engines(&self, found: &mut Diagnostics) {
        let mut first: BTreeMap<&ServerName, &Place> = BTreeMap::new();
        for place in &self.document.targets {
            let before = *first.entry(&place.value.server).or_insert(place);
            if before.value.engine != place.value.engine {
                let message = format!("the server `{}` cannot be of two engines", place.value.server);
                let label = format!("at {} it is {}", before.span, before.value.engine);
                found.push(Diagnostic::error(message).at(&place.span).label(label));
            }
        }
    }

    /// Whether the configuration has every server that targets name, of the engine that they say.
    pub fn check_servers(&self, configured: &BTreeMap<ServerName, Engine>) -> Result<(), Diagnostics> {
        let mut found = Diagnostics::none();
        for place in &self.document.targets {
            let server = &place.value.server;
            let message = match configured.get(server) {
                Some(engine) if *engine == place.value.engine => continue,
                Some(engine) => format!("the server `{server}` is of {engine} in the configuration"),
                None => format!("the policy names server `{server}`, which the config does not have"),
            };
            found.push(Diagnostic::error(message).at(&place.span));
        }
        if found.has_errors() { Err(found) } else { Ok(()) }
    }
}

fn check_warehouse(rule: &Rule, place: &Place, found: &mut Diagnostics) {
    let target = &place.value.name;
    let names = || place.warehouses.iter().map(kdbt_api::name::WarehouseName::as_str);
    match &rule.profile.warehouse {
        Some(chosen) if !place.warehouses.contains(&chosen.value) => {
            let message = format!("`{target}` has no virtual warehouse `{}`", chosen.value);
            let error = Diagnostic::error(message).code("K003").at(&chosen.span);
            found.push(error.label(suggestion(chosen.value.as_str(), names())));
        }
        None if place.warehouses.len() > 1 => {
            let names: Vec<&str> = names().collect();
            let message = format!(
                "the rule `{}` does not say which warehouse computes on `{target}`",
                rule.id
            );
            let help = format!("write `profile: {{ warehouse: … }}` with one of {}", names.join(", "));
            found.push(Diagnostic::error(message).at(&rule.span).help(help));
        }
        Some(_) | None => {}
    }
}
