//! The file of what is approved: `doctor --residue` prints it, people review it, the scan compares with it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use kdbt_api::name::{DatabaseName, ServerName};

use super::Residue;
use crate::diagnostics::{Diagnostic, Diagnostics};
use crate::yaml::{self, Node, Spanned};

/// What is approved, by server and database.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Approved(BTreeMap<ServerName, BTreeMap<DatabaseName, BTreeSet<Residue>>>);

impl Approved {
    /// Reads the file.
    pub fn load(path: &Path) -> Result<Self, Diagnostics> {
        let bytes = yaml::read_file(path)?;
        Self::read(&path.display().to_string(), bytes)
    }

    fn read(name: &str, bytes: Vec<u8>) -> Result<Self, Diagnostics> {
        let source = yaml::source_of(name, bytes, false)?;
        let mut found = Diagnostics::none();
        let approved = yaml::parse(&source, &mut found).and_then(|root| approved(&root, &mut found));
        match approved {
            Some(approved) if !found.has_errors() => Ok(approved),
            Some(_) | None => Err(found.sorted()),
        }
    }

    /// What is approved in a database.
    #[must_use]
    pub fn of(&self, server: &ServerName, database: &DatabaseName) -> BTreeSet<Residue> {
        let databases = self.0.get(server);
        let found = databases.and_then(|databases| databases.get(database));
        found.cloned().unwrap_or_default()
    }

    /// Adds a database as it is.
    pub fn add(&mut self, server: ServerName, database: DatabaseName, residue: BTreeSet<Residue>) {
        self.0.entry(server).or_default().insert(database, residue);
    }

    /// The file's text. What is no plain ASCII is escaped: a reviewer must see what stands there.
    #[must_use]
    pub fn to_yaml(&self) -> String {
        let mut text =
            "# What leases may leave behind besides data: read each line before you approve it.\nkdbt: 1\nservers:\n"
                .to_owned();
        for (server, databases) in &self.0 {
            let _ = writeln!(text, "  {}:", quoted(server.as_str()));
            for (database, residue) in databases {
                let empty = if residue.is_empty() { " []" } else { "" };
                let _ = writeln!(text, "    {}:{empty}", quoted(database.as_str()));
                for one in residue {
                    let _ = writeln!(
                        text,
                        "      - {{ kind: {}, name: {}, owner: {}, fingerprint: {} }}",
                        one.kind,
                        quoted(&one.name),
                        quoted(&one.owner),
                        quoted(&one.fingerprint)
                    );
                }
            }
        }
        text
    }
}

fn approved(root: &Node, found: &mut Diagnostics) -> Option<Approved> {
    let mut fields = root.fields("the file of what is approved", found)?;
    if let Some(version) = fields.required::<Spanned<u32>>("kdbt", found)
        && version.value != 1
    {
        found.push(Diagnostic::error("this broker reads `kdbt: 1` only").at(&version.span));
    }
    let servers = fields.node("servers");
    if servers.is_none() {
        fields.missing("servers", found);
    }
    fields.finish(found);
    let mut approved = Approved::default();
    for (server, databases) in by_name::<ServerName>(servers?, found)? {
        for (database, entries) in by_name(databases, found)? {
            let entries = entries.items(found)?;
            let residue = entries.iter().filter_map(|entry| residue(entry, found)).collect();
            approved.add(server.clone(), database, residue);
        }
    }
    Some(approved)
}

/// The entries of a map whose keys are names.
fn by_name<'a, N>(node: &'a Node, found: &mut Diagnostics) -> Option<Vec<(N, &'a Node)>>
where
    N: std::str::FromStr<Err: std::fmt::Display>,
{
    let mut named = Vec::new();
    for (key, node) in node.entries(found)? {
        match key.text.parse() {
            Ok(name) => named.push((name, node)),
            Err(error) => found.push(Diagnostic::error(format!("{error}")).at(&key.span)),
        }
    }
    Some(named)
}

fn residue(node: &Node, found: &mut Diagnostics) -> Option<Residue> {
    let mut fields = node.fields("an approval", found)?;
    let kind = fields.node("kind").map(|kind| kind.parsed(found));
    if kind.is_none() {
        fields.missing("kind", found);
    }
    let name = fields.required("name", found);
    let owner = fields.required("owner", found);
    let fingerprint = fields.required("fingerprint", found);
    fields.finish(found);
    Some(Residue {
        kind: kind??,
        name: name?,
        owner: owner?,
        fingerprint: fingerprint?,
    })
}

/// A double-quoted scalar.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        let _ = match character {
            '"' | '\\' => write!(quoted, "\\{character}"),
            ' '..='~' => write!(quoted, "{character}"),
            other => write!(quoted, "\\U{:08X}", u32::from(other)),
        };
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::residue;
    use super::*;

    fn read(text: &str) -> Result<Approved, Diagnostics> {
        Approved::read("residue.yaml", text.as_bytes().to_vec())
    }

    #[test]
    fn a_mistake_is_named_with_its_line() {
        let text = "kdbt: 1\nservers:\n  dwh:\n    analytics:\n      - { kind: rutine, name: f, owner: o }\n";
        let wrong = read(text).unwrap_err().to_string();
        for word in ["residue.yaml:5", "no such kind", "no `fingerprint`"] {
            assert!(wrong.contains(word), "{wrong}");
        }
        assert!(read("kdbt: 2\nservers: {}\n").is_err());
        assert!(read("kdbt: 1\n").is_err());
    }

    proptest! {
        /// Names are the server's: an author of objects chooses them freely.
        #[test]
        fn the_file_is_read_as_it_was_written(all in proptest::collection::btree_set(residue(), 0..8)) {
            let mut approved = Approved::default();
            let (server, database) = ("dwh".parse().unwrap(), "analytics".parse().unwrap());
            approved.add(server, database, all);
            let text = approved.to_yaml();
            prop_assert!(text.is_ascii());
            prop_assert_eq!(read(&text).unwrap(), approved);
        }
    }
}
