//! The bill of materials of a shipped program: every crate that its release build compiles, as `CycloneDX` 1.6 JSON.
//!
//! It holds what the lock file and the manifests say for one platform, and nothing else: no time, no serial number (the
//! specification asks for neither), no path. The same commit gives the same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::provision::run;

/// The programs that are shipped.
pub const SHIPPED: [&str; 2] = ["kdbt-broker", "kdbt-client"];
/// The platform that is shipped for.
pub const TARGET: &str = "x86_64-unknown-linux-gnu";

const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// A `CycloneDX` document: <https://cyclonedx.org/docs/1.6/json/>.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Bill {
    bom_format: &'static str,
    spec_version: &'static str,
    version: u32,
    metadata: Metadata,
    components: Vec<Component>,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Serialize)]
struct Metadata {
    component: Component,
    properties: [Property; 1],
}

#[derive(Debug, Serialize)]
struct Property {
    name: &'static str,
    value: &'static str,
}

#[derive(Debug, Serialize)]
struct Component {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(rename = "bom-ref")]
    bom_ref: String,
    name: String,
    version: String,
    /// `excluded` is the specification's word for what is needed to build only: macros, and what build scripts use.
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    hashes: Vec<Hash>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    licenses: Vec<License>,
    purl: String,
}

#[derive(Debug, Serialize)]
struct Hash {
    alg: &'static str,
    content: String,
}

#[derive(Debug, Serialize)]
struct License {
    expression: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Dependency {
    #[serde(rename = "ref")]
    of: String,
    depends_on: Vec<String>,
}

impl Bill {
    /// Asks cargo what it would build for this program alone, with the features of a release.
    ///
    /// # Errors
    /// If cargo fails, for one because the lock file does not fit the manifests.
    pub fn of(program: &str) -> Result<Self> {
        let all = Tree::of(program, "normal,build")?;
        let runs = Tree::of(program, "normal,no-proc-macro")?;
        let lock = Path::new(REPOSITORY).join("Cargo.lock");
        let lock = std::fs::read_to_string(&lock).with_context(|| format!("read {}", lock.display()))?;
        let checksums = checksums(&lock);

        let component = |krate: &Krate, kind, scope| Component {
            kind,
            bom_ref: krate.purl(),
            name: krate.name.clone(),
            version: krate.version.clone(),
            scope,
            hashes: checksums
                .get(krate)
                .map(|content| Hash::sha_256(content))
                .into_iter()
                .collect(),
            licenses: all
                .licenses
                .get(krate)
                .and_then(|license| License::of(license))
                .into_iter()
                .collect(),
            purl: krate.purl(),
        };
        let scope = |krate| {
            let runs = runs.needs.contains_key(krate);
            if runs { "required" } else { "excluded" }
        };
        let others = all.needs.keys().filter(|krate| **krate != all.root);
        let dependency = |(krate, needs): (&Krate, &BTreeSet<Krate>)| Dependency {
            of: krate.purl(),
            depends_on: needs.iter().map(Krate::purl).collect(),
        };
        Ok(Self {
            bom_format: "CycloneDX",
            spec_version: "1.6",
            version: 1,
            metadata: Metadata {
                component: component(&all.root, "application", None),
                properties: [Property {
                    name: "kdbt:target",
                    value: TARGET,
                }],
            },
            components: others
                .map(|krate| component(krate, "library", Some(scope(krate))))
                .collect(),
            dependencies: all.needs.iter().map(dependency).collect(),
        })
    }

    /// The document as it is written to a file.
    ///
    /// # Errors
    /// Never in fact: it is made of texts.
    pub fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// The crates, as `name@version`: the program itself and everything that it is built from.
    pub fn crates(&self) -> BTreeSet<String> {
        let all = self.components.iter().chain([&self.metadata.component]);
        all.map(|component| format!("{}@{}", component.name, component.version))
            .collect()
    }
}

impl Hash {
    fn sha_256(content: &str) -> Self {
        Self {
            alg: "SHA-256",
            content: content.to_owned(),
        }
    }
}

impl License {
    /// Cargo's older way to say "or" is a slash, which no SPDX expression has.
    fn of(manifest: &str) -> Option<Self> {
        let expression = manifest.replace('/', " OR ");
        (!expression.is_empty()).then_some(Self { expression })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Krate {
    name: String,
    version: String,
}

impl Krate {
    /// As a package URL. Build metadata (`1.0.0+x`) has a plus sign, which stands escaped there.
    fn purl(&self) -> String {
        format!("pkg:cargo/{}@{}", self.name, self.version.replace('+', "%2B"))
    }
}

/// What `cargo tree` says: who needs whom. Unlike `cargo metadata` it resolves features for one program alone.
struct Tree {
    root: Krate,
    needs: BTreeMap<Krate, BTreeSet<Krate>>,
    licenses: BTreeMap<Krate, String>,
}

impl Tree {
    fn of(program: &str, edges: &str) -> Result<Self> {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo
            .args(["tree", "--quiet", "--locked", "--package", program, "--edges", edges])
            .args(["--target", TARGET, "--prefix", "depth", "--format", "|{p}|{l}"])
            .current_dir(REPOSITORY);
        Self::parse(&run(&mut cargo)?)
    }

    /// Reads lines like `2|serde v1.0.228|MIT OR Apache-2.0 (*)`: depth, package, licence, and whether its own needs stand
    /// further up. After the version a package may have `(proc-macro)` and a path.
    fn parse(text: &str) -> Result<Self> {
        let mut path: Vec<Krate> = Vec::new();
        let mut tree = (BTreeMap::<_, BTreeSet<_>>::new(), BTreeMap::new());
        for line in text.lines() {
            let parsed = || {
                let (depth, rest) = line.split_once('|')?;
                let (package, license) = rest.rsplit_once('|')?;
                let mut words = package.split(' ');
                let krate = Krate {
                    name: words.next()?.to_owned(),
                    version: words.next()?.strip_prefix('v')?.to_owned(),
                };
                Some((depth.parse::<usize>().ok()?, krate, license.trim_end_matches(" (*)")))
            };
            let (depth, krate, license) = parsed().with_context(|| format!("cargo tree says `{line}`"))?;
            path.truncate(depth);
            if let Some(needs) = path.last().and_then(|parent| tree.0.get_mut(parent)) {
                needs.insert(krate.clone());
            }
            tree.0.entry(krate.clone()).or_default();
            tree.1.insert(krate.clone(), license.to_owned());
            path.push(krate);
        }
        Ok(Self {
            root: path.into_iter().next().context("cargo tree says nothing")?,
            needs: tree.0,
            licenses: tree.1,
        })
    }
}

/// The checksums of a lock file: SHA-256 of each crate's archive, as the registry has it.
fn checksums(lock: &str) -> BTreeMap<Krate, String> {
    let packages = lock.split("[[package]]").skip(1);
    let checksum = |package: &str| {
        let field = |name: &str| {
            let start = format!("{name} = \"");
            let value = package.lines().find_map(|line| line.strip_prefix(start.as_str()));
            value.map(|value| value.trim_end_matches('"').to_owned())
        };
        let krate = Krate {
            name: field("name")?,
            version: field("version")?,
        };
        Some((krate, field("checksum")?))
    };
    packages.filter_map(checksum).collect()
}
