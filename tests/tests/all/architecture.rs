//! Who may name whom. Reads the paths in the sources, so that a dependency that points the wrong way fails here and
//! not in somebody's review. Tests are left out: they may know all.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The repository.
fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// The broker's modules and what each may name. An adapter is a unit of its own below its port.
const BROKER: &[(&str, &str)] = &[
    // Pure: what a lease is, what was granted, what a mark and an audit row say, what the policy decides.
    ("grant", ""),
    ("lease", "grant"),
    ("mark", "grant lease"),
    ("audit", "lease"),
    ("policy", "diagnostics grant identity yaml warehouse"),
    // Reading files with their places.
    ("diagnostics", ""),
    ("yaml", "diagnostics"),
    // Pure but for the file of what is approved, which `yaml` reads.
    ("residue", "diagnostics yaml"),
    ("config", "diagnostics identity policy yaml"),
    // Named steps at which test builds die or wait.
    ("failpoint", ""),
    // The ports.
    ("clock", ""),
    ("store", "audit grant lease residue warehouse"),
    ("warehouse", "grant lease mark residue"),
    // The adapters: their port and pure modules, never another adapter.
    ("store::sqlite", "audit clock lease store warehouse"),
    ("warehouse::postgres", "failpoint grant lease mark residue warehouse"),
    ("warehouse::snowflake", "clock grant lease mark warehouse"),
    ("identity", "clock"),
    // The use cases and what they share.
    ("server", "clock warehouse"),
    ("view", "grant lease server"),
    ("service", "identity"),
    (
        "broker",
        "audit clock config identity issue lease policy renew revoke server service store view",
    ),
    (
        "issue",
        "audit broker end failpoint grant identity lease policy server service store view warehouse",
    ),
    (
        "renew",
        "audit broker failpoint identity lease policy service store view warehouse",
    ),
    ("revoke", "audit broker end failpoint identity lease service store view"),
    ("end", "audit failpoint lease server store warehouse"),
    ("sweep", "audit clock end failpoint lease server store warehouse"),
    (
        "scan",
        "audit broker diagnostics grant lease metrics residue server store warehouse",
    ),
    // Who starts them: callers, and time.
    ("http", "identity lease metrics service"),
    ("reaper", "clock end metrics server store sweep"),
    ("metrics", ""),
    ("telemetry", ""),
    // The only module of the service that names adapters.
    (
        "app",
        "audit broker clock config failpoint http identity metrics policy reaper scan server store store::sqlite \
         warehouse warehouse::postgres warehouse::snowflake",
    ),
    // The operator's commands: `audit` reads a store's file, `doctor` looks at servers and issuers, both without a broker.
    (
        "cli",
        "app audit clock config diagnostics identity policy residue store::sqlite telemetry warehouse warehouse::postgres \
         yaml",
    ),
];

/// Crates of others, and the only units of the broker that may name them.
const KEPT_TO: &[(&str, &str)] = &[
    ("axum", "http"),
    ("axum_server", "http"),
    ("hyper", "http"),
    ("hyper_util", "http"),
    ("tower", "http"),
    ("utoipa", "http"),
    ("utoipa_axum", "http"),
    ("rusqlite", "store::sqlite"),
    ("tokio_postgres", "warehouse::postgres"),
    ("deadpool_postgres", "warehouse::postgres"),
    ("reqwest", "identity warehouse::snowflake"),
    ("jsonwebtoken", "identity"),
    ("prometheus_client", "metrics"),
    ("clap", "cli main"),
];

/// Units that neither wait nor look around.
const PURE: &[&str] = &[
    "grant",
    "lease",
    "mark",
    "audit",
    "policy",
    "residue",
    "view",
    "diagnostics",
];

/// What a pure unit does not name.
const IMPURE: &[&str] = &[
    "tokio",
    "tokio_util",
    "std::fs",
    "std::env",
    "std::net",
    "std::process",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
];

/// A pure unit's exceptions, with the file that has them: the policy reads its folder.
const EXCEPTIONS: &[(&str, &str)] = &[("broker/src/policy.rs", "std::fs")];

/// The files that may take a secret out of its wrapping: where one leaves on purpose.
const SECRETS_LEAVE_IN: &[&str] = &[
    "api/src/credential.rs",
    "api/src/profile.rs",
    "broker/src/app.rs",
    "broker/src/audit/chain.rs",
    "broker/src/identity/bearer.rs",
    "broker/src/identity/doctor/admin.rs",
    "broker/src/issue.rs",
    "broker/src/warehouse/postgres/connect.rs",
    "broker/src/warehouse/snowflake/api/wire.rs",
    "broker/src/warehouse/snowflake/token.rs",
    "client/src/broker.rs",
    "client/src/broker/source.rs",
    "client/src/commands/profile.rs",
    "client/src/login.rs",
    "client/src/oauth.rs",
    "client/src/oauth/browser.rs",
    "client/src/oauth/device.rs",
    "client/src/order.rs",
    "client/src/run/exec.rs",
];

#[test]
fn every_module_names_only_what_it_may() {
    let wrong: Vec<String> = sources()
        .iter()
        .flat_map(|(file, text)| violations(file, text))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_rules_speak_of_modules_and_files_that_exist() {
    let sources = sources();
    let units: BTreeSet<&str> = sources.keys().filter_map(|file| unit_of_file(file)).collect();
    for (unit, named) in BROKER {
        assert!(units.contains(unit), "there is no module `{unit}` any more");
        for named in named.split_whitespace() {
            assert!(units.contains(named), "`{unit}` may name `{named}`, which is no module");
        }
    }
    for file in SECRETS_LEAVE_IN {
        let text = sources.get(*file).unwrap_or_else(|| panic!("{file} is gone"));
        assert!(
            text.contains("expose_secret"),
            "{file} exposes no secret any more: take it off the list"
        );
    }
}

#[test]
fn the_crates_depend_on_each_other_in_one_direction() {
    let ours = |member: &str| -> BTreeSet<String> {
        let manifest = std::fs::read_to_string(root().join(member).join("Cargo.toml")).unwrap();
        let names = manifest.lines().filter_map(|line| line.split(['.', ' ', '=']).next());
        names
            .filter(|name| name.starts_with("kdbt-"))
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(ours("api"), BTreeSet::new());
    assert_eq!(ours("client"), BTreeSet::from(["kdbt-api".to_owned()]));
    assert_eq!(ours("broker"), BTreeSet::from(["kdbt-api".to_owned()]));
}

#[test]
fn the_client_is_built_without_a_server() {
    let manifest = std::fs::read_to_string(root().join("client/Cargo.toml")).unwrap();
    let (_, built) = manifest.split_once("[dependencies]").unwrap();
    let (built, for_tests) = built.split_once("[dev-dependencies]").unwrap();
    let has = |section: &str, name: &str| section.lines().any(|line| line.starts_with(name));
    for server in ["axum", "hyper", "tokio-postgres", "rusqlite", "utoipa"] {
        assert!(!has(built, server), "kdbt-client depends on {server}");
    }
    assert!(
        has(for_tests, "axum"),
        "its tests play a broker no more: take axum's wrapper out of deny.toml"
    );
}

#[test]
fn no_crate_of_ours_may_hold_unsafe_code() {
    let read = |file: &str| std::fs::read_to_string(root().join(file)).unwrap();
    let forbids = |manifest: &str, section: &str| {
        let lints = manifest.split_once(&format!("\n[{section}]\n"));
        let lints = lints.and_then(|(_, rest)| rest.split("\n[").next());
        lints.is_some_and(|lints| lints.lines().any(|line| line == "unsafe_code = \"forbid\""))
    };
    let workspace = read("Cargo.toml");
    assert!(forbids(&workspace, "workspace.lints.rust"));
    let (_, members) = workspace.split_once("members = [").unwrap();
    let members: Vec<&str> = members
        .split(']')
        .next()
        .unwrap()
        .split('"')
        .skip(1)
        .step_by(2)
        .collect();
    assert!(members.len() >= 4, "{members:?}");
    for member in members {
        let manifest = read(&format!("{member}/Cargo.toml"));
        let inherits = manifest.contains("\n[lints]\nworkspace = true\n");
        assert!(inherits || forbids(&manifest, "lints.rust"), "{member}");
    }
}

#[test]
fn a_planted_violation_is_found() {
    for (file, text, name) in [
        (
            "broker/src/store/sqlite/query.rs",
            "use crate::warehouse::postgres::Era;",
            "warehouse::postgres",
        ),
        (
            "broker/src/warehouse/postgres.rs",
            "use super::super::store::{self, sqlite::X};",
            "store::sqlite",
        ),
        ("broker/src/issue.rs", "fn f() { crate::http::serve() }", "http"),
        (
            "broker/src/http/leases.rs",
            "use crate::{service::Service, store::{LeaseStore}};",
            "store",
        ),
        ("broker/src/end.rs", "use axum::Json;", "axum"),
        ("broker/src/policy/decide.rs", "use std::{fmt, fs};", "std::fs"),
        ("broker/src/lease.rs", "let now = tokio::time::Instant::now();", "tokio"),
        ("broker/src/view.rs", "secret.expose_secret()", "expose_secret"),
        ("api/src/time.rs", "use std::env::var;", "std::env"),
        ("client/src/order.rs", "use kdbt_broker::lease::Lease;", "kdbt_broker"),
        ("broker/src/novelty.rs", "", "novelty"),
    ] {
        let found = violations(file, text);
        assert!(
            found.iter().any(|line| line.contains(&format!("`{name}`"))),
            "{file}: {text}: {found:?}"
        );
    }
    let fine =
        "//! use crate::http;\nuse crate::lease::Lease; // axum::Json\n#[cfg(test)]\nmod tests { use crate::http; }";
    assert_eq!(violations("broker/src/end.rs", fine), Vec::<String>::new());
}

/// All sources that are no tests, by their path in the repository.
fn sources() -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    for member in ["api", "broker", "client"] {
        let mut folders = vec![root().join(member).join("src")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                if path.is_dir() && !["tests", "story"].contains(&&*name) {
                    folders.push(path);
                } else if Path::new(&name).extension().is_some_and(|e| e == "rs")
                    && !["story.rs", "tests.rs", "testing.rs"].contains(&&*name)
                {
                    let file = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
                    files.insert(file, std::fs::read_to_string(&path).unwrap());
                }
            }
        }
    }
    assert!(
        files.len() > 100,
        "the sources are not where they are looked for: {}",
        files.len()
    );
    files
}

/// What a file names and may not, a line each.
fn violations(file: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let code = code_of(text);
    if code.contains("expose_secret") && !SECRETS_LEAVE_IN.contains(&file) {
        found.push(format!("{file} may not use `expose_secret`"));
    }
    let unit = unit_of_file(file);
    for path in paths(&code) {
        let path = resolve(file, &path);
        let name = path.join("::");
        let is = |other: &str| name == other || name.starts_with(&format!("{other}::"));
        if unit.is_none_or(|unit| PURE.contains(&unit))
            && !file.starts_with("client/")
            && let Some(impure) = IMPURE.iter().find(|impure| is(impure))
            && !EXCEPTIONS.contains(&(file, impure))
            && !ROOTS.contains(&file)
        {
            found.push(format!("{file} is pure and may not name `{impure}`"));
        }
        if !file.starts_with("broker/") {
            if is("kdbt_broker") {
                found.push(format!("{file} may not name `kdbt_broker`"));
            }
            continue;
        }
        let Some(unit) = unit else { continue };
        if let Some((krate, keepers)) = KEPT_TO.iter().find(|(krate, _)| is(krate))
            && !keepers.split_whitespace().any(|keeper| keeper == unit)
        {
            found.push(format!("{file} may not name `{krate}`: it is kept to {keepers}"));
        }
        if let Some(("crate", inner)) = name.split_once("::")
            && let Some(other) = unit_of_path(inner)
            && other != unit
            && !may_name(unit, other)
        {
            found.push(format!("{file} may not name `{other}`"));
        }
    }
    if file.starts_with("broker/") && unit.is_none() && !ROOTS.contains(&file) {
        let name = file.trim_start_matches("broker/src/").trim_end_matches(".rs");
        found.push(format!("{file}: the architecture has no place for `{name}` yet"));
    }
    found.sort();
    found.dedup();
    found
}

/// They start and list everything.
const ROOTS: &[&str] = &["broker/src/main.rs", "broker/src/lib.rs"];

fn may_name(unit: &str, other: &str) -> bool {
    let named = BROKER.iter().find(|(name, _)| *name == unit).map(|(_, named)| *named);
    named.is_some_and(|named| named.split_whitespace().any(|name| name == other))
}

/// The unit that a path below `crate` leads to: the longest one that it starts with.
fn unit_of_path(inner: &str) -> Option<&'static str> {
    let starts = |unit: &&str| inner == *unit || inner.starts_with(&format!("{unit}::"));
    BROKER
        .iter()
        .map(|(unit, _)| *unit)
        .filter(starts)
        .max_by_key(|unit| unit.len())
}

/// The unit of a file of the broker.
fn unit_of_file(file: &str) -> Option<&'static str> {
    let inner = file
        .strip_prefix("broker/src/")?
        .strip_suffix(".rs")?
        .replace('/', "::");
    unit_of_path(&inner)
}

/// A path as it would be written from the root of its crate.
fn resolve(file: &str, path: &[String]) -> Vec<String> {
    let inner = file
        .split_once("/src/")
        .map_or("", |(_, inner)| inner)
        .trim_end_matches(".rs");
    let mut here: Vec<String> = inner.split('/').map(str::to_owned).collect();
    match path.first().map(String::as_str) {
        Some("self" | "super") => {}
        _ => return path.to_vec(),
    }
    let mut rest = path;
    while let [first, more @ ..] = rest
        && matches!(first.as_str(), "self" | "super")
    {
        if first == "super" {
            here.pop();
        }
        rest = more;
    }
    std::iter::once("crate".to_owned())
        .chain(here)
        .chain(rest.iter().cloned())
        .collect()
}

/// The text without comments, strings and inline tests.
fn code_of(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let text = text
        .split("#[cfg(test)]\npub(crate) mod tests")
        .next()
        .unwrap_or_default();
    let mut code = String::new();
    for line in text.lines() {
        let mut quoted = false;
        let mut before = ' ';
        for (at, char) in line.char_indices() {
            if !quoted && line[at..].starts_with("//") {
                break;
            }
            if char == '"' && before != '\\' && before != '\'' {
                quoted = !quoted;
            } else if !quoted {
                code.push(char);
            }
            before = char;
        }
        code.push('\n');
    }
    code
}

/// Every path of two names or more, groups written out.
fn paths(code: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut rest = code;
    let mut inside = false;
    while let Some(char) = rest.chars().next() {
        if inside || !(char.is_alphabetic() || char == '_') {
            inside = char.is_alphanumeric() || char == '_' || char == ':' || char == '.';
            rest = &rest[char.len_utf8()..];
            continue;
        }
        rest = tree(rest, &mut Vec::new(), &mut found);
        inside = true;
    }
    found.retain(|path| path.len() > 1);
    found
}

/// Reads one path, which may end in a group of more, and returns what comes after it.
fn tree<'a>(text: &'a str, prefix: &mut Vec<String>, found: &mut Vec<Vec<String>>) -> &'a str {
    let depth = prefix.len();
    let mut rest = text;
    loop {
        let end = rest
            .find(|c: char| !(c.is_alphanumeric() || c == '_'))
            .unwrap_or(rest.len());
        prefix.push(rest[..end].to_owned());
        rest = &rest[end..];
        let Some(more) = rest.strip_prefix("::") else {
            found.push(prefix.clone());
            break;
        };
        rest = more;
        if let Some(group) = rest.strip_prefix('{') {
            rest = group.trim_start();
            while !rest.is_empty() && !rest.starts_with('}') {
                let after = tree(rest, prefix, found);
                let next = after.find([',', '}']).unwrap_or(after.len());
                rest = after[next..].trim_start_matches(',').trim_start();
            }
            rest = rest.strip_prefix('}').unwrap_or(rest);
            break;
        }
        if !rest.starts_with(|c: char| c.is_alphabetic() || c == '_') {
            found.push(prefix.clone());
            break;
        }
    }
    prefix.truncate(depth);
    rest
}
