//! What a token says of the kinds that policies read, and whether a condition holds for it.
//!
//! A kind that the issuer does not provide is neither there nor empty: it matches nothing and excludes nothing.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value as Json;

use super::document::{ClaimValue, Condition};
use crate::identity::Claims;

/// The longest list of roles or groups that is read.
const MAX_ROLES: usize = 1000;

/// The claims of one token, by kind. `None`, or not in `claims`: the issuer does not provide that kind.
#[derive(Debug, Default)]
pub(super) struct Facts {
    realm_roles: Option<BTreeSet<String>>,
    client_roles: Option<BTreeMap<String, BTreeSet<String>>>,
    groups: Option<BTreeSet<String>>,
    claims: BTreeMap<String, BTreeSet<ClaimValue>>,
}

/// Which claims a policy reads, with an example of every type that it compares them to.
pub(super) type ClaimTypes = BTreeMap<String, Types>;

/// The types that a policy lists for a claim.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Types {
    pub(super) text: bool,
    pub(super) flag: bool,
}

/// A provided kind that has the wrong type: the name of the claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WrongType(pub(super) String);

impl Facts {
    pub(super) fn read(claims: &Claims, read: &ClaimTypes) -> Result<Self, WrongType> {
        let provides = &claims.provides;
        let values = &claims.values;
        let mut facts = Self::default();
        if provides.realm_roles {
            facts.realm_roles = Some(roles(values.get("realm_access"), "realm_access")?);
        }
        if provides.client_roles {
            let mut by_client = BTreeMap::new();
            let wrong = || WrongType("resource_access".to_owned());
            for (client, access) in object(values.get("resource_access")).ok_or_else(wrong)? {
                by_client.insert(client.clone(), roles(Some(access), "resource_access")?);
            }
            facts.client_roles = Some(by_client);
        }
        if provides.groups {
            let groups = texts(values.get("groups"), "groups")?;
            if groups.iter().any(|path| !path.starts_with('/')) {
                return Err(WrongType("groups".to_owned()));
            }
            facts.groups = Some(groups);
        }
        for (name, types) in read {
            if provides.claims.contains(name) {
                facts.claims.insert(name.clone(), claim(values, name, *types)?);
            }
        }
        Ok(facts)
    }
}

fn object(value: Option<&Json>) -> Option<impl Iterator<Item = (&String, &Json)>> {
    match value {
        None | Some(Json::Null) => Some(None.into_iter().flatten()),
        Some(Json::Object(members)) => Some(Some(members).into_iter().flatten()),
        Some(Json::Bool(_) | Json::Number(_) | Json::String(_) | Json::Array(_)) => None,
    }
}

fn roles(access: Option<&Json>, name: &str) -> Result<BTreeSet<String>, WrongType> {
    let mut members = object(access).ok_or_else(|| WrongType(name.to_owned()))?;
    texts(members.find(|(key, _)| *key == "roles").map(|(_, roles)| roles), name)
}

fn texts(list: Option<&Json>, name: &str) -> Result<BTreeSet<String>, WrongType> {
    let wrong = || WrongType(name.to_owned());
    match list {
        None | Some(Json::Null) => Ok(BTreeSet::new()),
        Some(Json::Array(items)) if items.len() <= MAX_ROLES => {
            let text = |item: &Json| item.as_str().map(str::to_owned).ok_or_else(wrong);
            items.iter().map(text).collect()
        }
        Some(_) => Err(wrong()),
    }
}

fn claim(values: &serde_json::Map<String, Json>, name: &str, types: Types) -> Result<BTreeSet<ClaimValue>, WrongType> {
    let value = match name.strip_prefix('/') {
        Some(pointer) => {
            let (first, rest) = pointer.split_once('/').unwrap_or((pointer, ""));
            let root = values.get(&first.replace("~1", "/").replace("~0", "~"));
            let rest = if rest.is_empty() {
                String::new()
            } else {
                format!("/{rest}")
            };
            root.and_then(|root| root.pointer(&rest))
        }
        None => values.get(name),
    };
    let one = |value: &Json| match value {
        Json::String(text) if types.text => Ok(ClaimValue::Text(text.clone())),
        Json::Bool(flag) if types.flag => Ok(ClaimValue::Flag(*flag)),
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) | Json::Array(_) | Json::Object(_) => {
            Err(WrongType(name.to_owned()))
        }
    };
    match value {
        None | Some(Json::Null) => Ok(BTreeSet::new()),
        Some(Json::Array(items)) if items.len() <= MAX_ROLES => items.iter().map(one).collect(),
        Some(value) => Ok(BTreeSet::from([one(value)?])),
    }
}

/// Equal, or below: `X/*` means `X/` and at least one character.
fn fits(wanted: &str, got: &str) -> bool {
    match wanted.strip_suffix('*') {
        Some(prefix) if prefix.ends_with('/') => got.len() > prefix.len() && got.starts_with(prefix),
        Some(_) | None => wanted == got,
    }
}

fn claim_fits(wanted: &ClaimValue, got: &ClaimValue) -> bool {
    match (wanted, got) {
        (ClaimValue::Text(wanted), ClaimValue::Text(got)) => fits(wanted, got),
        (wanted, got) => wanted == got,
    }
}

impl Condition {
    /// Why it does not hold, in words for people, kind by kind; empty if it holds.
    pub(super) fn misses(&self, facts: &Facts) -> Vec<String> {
        let mut misses = Vec::new();
        let mut look = |kind: &str, wanted: String, holds: Option<bool>| match holds {
            Some(true) => {}
            Some(false) => misses.push(format!("{kind}: needs {wanted}")),
            None => misses.push(format!("{kind}: this issuer does not provide it")),
        };
        if let Some(wanted) = &self.realm_roles {
            let got = facts.realm_roles.as_ref();
            let holds = got.map(|got| wanted.iter().any(|role| got.contains(role)));
            look("realm_roles", wanted.join(" or "), holds);
        }
        for (client, wanted) in &self.client_roles {
            let has = |roles: &BTreeSet<String>| wanted.iter().any(|role| roles.contains(role));
            let got = facts.client_roles.as_ref();
            let holds = got.map(|clients| clients.get(client).is_some_and(has));
            look(&format!("client_roles.{client}"), wanted.join(" or "), holds);
        }
        if let Some(wanted) = &self.groups {
            let has = |got: &BTreeSet<String>| wanted.iter().any(|path| got.iter().any(|got| fits(path, got)));
            look("groups", wanted.join(" or "), facts.groups.as_ref().map(has));
        }
        for (name, wanted) in &self.claims {
            let has =
                |got: &BTreeSet<ClaimValue>| wanted.iter().any(|value| got.iter().any(|got| claim_fits(value, got)));
            let words: Vec<String> = wanted.iter().map(ToString::to_string).collect();
            look(
                &format!("claims.{name}"),
                words.join(" or "),
                facts.claims.get(name).map(has),
            );
        }
        misses
    }

    /// Whether it holds.
    pub(super) fn holds(&self, facts: &Facts) -> bool {
        self.misses(facts).is_empty()
    }
}

impl std::fmt::Display for ClaimValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Flag(flag) => flag.fmt(f),
        }
    }
}
