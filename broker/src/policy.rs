//! The policy: who gets what, where and for how long, as DBAs review it in files. Pure after loading.
//!
//! There is no SQL and no expression in a policy, so that a decision can be explained and a file can be tested
//! without a warehouse.

mod cases;
mod check;
mod decide;
mod document;
mod explain;
mod facts;
mod limits;
mod needs;
mod reads;
mod shapes;
mod unite;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::digest;
use kdbt_api::lease::Engine;
use kdbt_api::name::{RuleId, ServerName, TargetName};
use kdbt_api::{Timestamp, Ttl};

pub use self::cases::{CaseResult, TestReport};
pub use self::check::LINTS;
pub use self::decide::Denied;
pub use self::explain::Explanation;

use self::document::{Document, GrantSet, Place, RolePair, Rule};
use self::facts::ClaimTypes;
use crate::diagnostics::{Diagnostic, Diagnostics};
use crate::grant::PolicyHash;
use crate::identity::Provides;
use crate::yaml;

/// What policies need to know of an issuer.
#[derive(Debug, Clone)]
pub struct IssuerFacts {
    /// Its name, as in `iss`.
    pub issuer: Arc<str>,
    /// Which claim kinds are complete in its tokens.
    pub provides: Arc<Provides>,
}

/// What somebody asks for.
#[derive(Debug, Clone)]
pub struct Order {
    /// Where.
    pub target: TargetName,
    /// Exactly the rules that shall join; empty: all that match without being named.
    pub rules: Vec<RuleId>,
    /// How long; the default if `None`.
    pub ttl: Option<Ttl>,
    /// Why.
    pub reason: Option<String>,
    /// When it is asked.
    pub at: Timestamp,
}

/// A policy without mistakes.
#[derive(Debug)]
pub struct PolicySet {
    document: Document,
    claim_types: ClaimTypes,
    issuers: Vec<IssuerFacts>,
    hash: PolicyHash,
}

/// A policy, and what should be looked at.
#[derive(Debug)]
pub struct Loaded {
    /// The policy.
    pub set: PolicySet,
    /// Nothing in here keeps the policy from being used.
    pub warnings: Vec<Diagnostic>,
}

/// How many files a policy may have.
const MAX_FILES: usize = 1000;

/// How deep folders may stand in each other.
const MAX_FOLDERS: usize = 8;

impl PolicySet {
    /// Reads all `*.yaml` below a folder, checks them, and runs their tests: a failing test is an error.
    ///
    /// Without issuers (a check in CI that has no configuration), every claim kind counts as provided.
    pub fn load(folder: &Path, issuers: &[IssuerFacts]) -> Result<Loaded, Diagnostics> {
        let mut loaded = Self::read(folder, issuers)?;
        let failed: Vec<Diagnostic> = loaded.set.run_tests().failures().collect();
        if failed.is_empty() {
            return Ok(loaded);
        }
        let mut found = Diagnostics::none();
        found.extend(failed);
        found.extend(loaded.warnings.drain(..));
        Err(found.sorted())
    }

    /// As [`Self::load`], but the tests are left to the caller.
    pub fn read(folder: &Path, issuers: &[IssuerFacts]) -> Result<Loaded, Diagnostics> {
        let mut found = Diagnostics::none();
        let mut files = Vec::new();
        collect(folder, "", 0, &mut files, &mut found);
        files.sort();
        if files.is_empty() && !found.has_errors() {
            let error = Diagnostic::error(format!("there is no policy in {}", folder.display()));
            found.push(error.help("it is the `*.yaml` files below this folder; start one with `kdbt: 1`"));
        }
        let mut hash = digest::Context::new(&digest::SHA256);
        let mut document = Document::default();
        for name in &files {
            let source = yaml::read_file(&folder.join(name)).and_then(|bytes| {
                hash.update(format!("{name}\0{}\0", bytes.len()).as_bytes());
                hash.update(&bytes);
                yaml::source_of(name, bytes, true)
            });
            match source {
                Ok(source) => {
                    if let Some(root) = yaml::parse(&source, &mut found) {
                        document.add(&root, &mut found);
                    }
                }
                Err(error) => found.push(error),
            }
        }
        Self::checked(document, issuers, hex(hash.finish().as_ref()), found)
    }

    fn checked(
        document: Document,
        issuers: &[IssuerFacts],
        hash: String,
        mut found: Diagnostics,
    ) -> Result<Loaded, Diagnostics> {
        let claim_types = check::claim_types(&document);
        let issuers = if issuers.is_empty() {
            vec![check::providing_all(&claim_types)]
        } else {
            issuers.to_vec()
        };
        let set = Self {
            document,
            claim_types,
            issuers,
            hash: PolicyHash(hash),
        };
        set.check(&mut found);
        let found = found.sorted();
        if found.has_errors() {
            return Err(found);
        }
        Ok(Loaded {
            set,
            warnings: found.into_vec(),
        })
    }

    /// SHA-256 over the files, by name.
    #[must_use]
    pub fn hash(&self) -> &PolicyHash {
        &self.hash
    }

    /// The servers that targets name, and of which engine they say that each is.
    #[must_use]
    pub fn servers(&self) -> BTreeMap<ServerName, Engine> {
        let targets = self.document.targets.iter().map(|target| &target.value);
        targets.map(|target| (target.server.clone(), target.engine)).collect()
    }

    /// The grant sets of a rule.
    fn sets_of<'a>(&'a self, rule: &'a Rule) -> impl Iterator<Item = &'a GrantSet> {
        let named = rule.grants.iter();
        named.filter_map(|name| self.document.grants.iter().find(|set| set.name == name.value))
    }

    /// Whether leases of a rule can write to what they do not own personally, on targets of an engine.
    fn writes(&self, rule: &Rule, engine: Engine) -> bool {
        rule.create_as.is_some() || self.sets_of(rule).any(|set| set.writes(engine))
    }

    /// The pairs of roles that a rule gives on Snowflake. The first one's session role is the rule's.
    fn pairs_of<'a>(&'a self, rule: &'a Rule) -> impl Iterator<Item = &'a RolePair> {
        let owner = rule.create_as.iter().filter_map(|create| create.snowflake.as_ref());
        let wrappers = self.sets_of(rule).filter_map(|set| set.snowflake.as_ref());
        owner.chain(wrappers.map(|wrapper| &wrapper.pair))
    }

    /// The first of a rule's targets on an engine.
    fn place_on<'a>(&'a self, rule: &'a Rule, engine: Engine) -> Option<&'a Place> {
        let mut targets = self.document.targets.iter();
        targets.find(|target| target.value.engine == engine && rule.on(&target.value.name))
    }
}

/// The names of all policy files, relative to the folder, with `/`.
fn collect(folder: &Path, below: &str, depth: usize, files: &mut Vec<String>, found: &mut Diagnostics) {
    let here = folder.join(below);
    let entries = match std::fs::read_dir(&here) {
        Ok(entries) => entries,
        Err(error) => {
            found.push(Diagnostic::error(format!("cannot read {}: {error}", here.display())));
            return;
        }
    };
    for entry in entries {
        let (name, kind) = match entry.and_then(|entry| Ok((entry.file_name(), entry.file_type()?))) {
            Ok(entry) => entry,
            Err(error) => {
                found.push(Diagnostic::error(format!("cannot read {}: {error}", here.display())));
                continue;
            }
        };
        let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else {
            continue;
        };
        let path = if below.is_empty() {
            name.to_owned()
        } else {
            format!("{below}/{name}")
        };
        let extension = Path::new(name).extension().and_then(|extension| extension.to_str());
        if kind.is_dir() && depth < MAX_FOLDERS {
            collect(folder, &path, depth + 1, files, found);
        } else if kind.is_dir() {
            found.push(Diagnostic::error(format!(
                "{path}: folders stand too deep in each other"
            )));
        } else if extension == Some("yml") {
            let error = Diagnostic::error(format!("{path} is not read: policy files end in `.yaml`"));
            found.push(error.help("rename it, so that nobody takes it for part of the policy"));
        } else if extension == Some("yaml") && !kind.is_file() {
            found.push(Diagnostic::error(format!(
                "{path} is a link or no regular file; links are not followed"
            )));
        } else if extension == Some("yaml") && files.len() < MAX_FILES {
            files.push(path);
        } else if extension == Some("yaml") {
            found.push(Diagnostic::error(format!(
                "there are more than {MAX_FILES} policy files"
            )));
            return;
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a `String` cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests;
