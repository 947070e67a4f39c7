//! A default privilege that can be given again: read from an approved line word by word, never run as text.

use std::str::FromStr;

use kdbt_api::name::{RoleName, SchemaName};

/// `ALTER DEFAULT PRIVILEGES FOR ROLE owner [IN SCHEMA schema] GRANT privilege ON objects TO grantee`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefaultPrivilege {
    /// Whose future objects.
    pub owner: RoleName,
    /// In this schema; everywhere if `None`.
    pub schema: Option<SchemaName>,
    /// Such as `SELECT`.
    pub privilege: &'static str,
    /// Such as `TABLES`.
    pub objects: &'static str,
    /// To whom.
    pub grantee: RoleName,
}

const PRIVILEGES: [&str; 11] = [
    "SELECT",
    "INSERT",
    "UPDATE",
    "DELETE",
    "TRUNCATE",
    "REFERENCES",
    "TRIGGER",
    "MAINTAIN",
    "EXECUTE",
    "USAGE",
    "CREATE",
];
const OBJECTS: [&str; 5] = ["TABLES", "SEQUENCES", "FUNCTIONS", "TYPES", "SCHEMAS"];

/// A default privilege that people have to give: to PUBLIC, with grant option, or of a name that no policy can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a default privilege that the broker gives")]
pub struct NotOurs;

impl FromStr for DefaultPrivilege {
    type Err = NotOurs;

    fn from_str(text: &str) -> Result<Self, NotOurs> {
        let words: Vec<&str> = text.split(' ').collect();
        let (owner, schema, rest) = match words[..] {
            [
                "ALTER",
                "DEFAULT",
                "PRIVILEGES",
                "FOR",
                "ROLE",
                owner,
                "IN",
                "SCHEMA",
                schema,
                ref rest @ ..,
            ] => (owner, Some(name(schema)?), rest),
            ["ALTER", "DEFAULT", "PRIVILEGES", "FOR", "ROLE", owner, ref rest @ ..] => (owner, None, rest),
            _ => return Err(NotOurs),
        };
        let ["GRANT", privilege, "ON", objects, "TO", grantee] = *rest else {
            return Err(NotOurs);
        };
        let word = |known: &[&'static str], given| known.iter().copied().find(|word| *word == given).ok_or(NotOurs);
        Ok(Self {
            owner: name(owner)?,
            schema,
            privilege: word(&PRIVILEGES, privilege)?,
            objects: word(&OBJECTS, objects)?,
            grantee: name(grantee)?,
        })
    }
}

/// As the server quotes it. Without quotes it has capitals only where the word means something else, as in PUBLIC.
fn name<N: FromStr>(text: &str) -> Result<N, NotOurs> {
    let quoted = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
    let plain = Some(text).filter(|text| !text.bytes().any(|byte| byte.is_ascii_uppercase()));
    quoted.or(plain).ok_or(NotOurs)?.parse().map_err(|_| NotOurs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_approved_line_is_read_and_whatever_else_stands_there_is_not() {
        let read = |text: &str| text.parse::<DefaultPrivilege>();
        let line = "ALTER DEFAULT PRIVILEGES FOR ROLE dbt_finance IN SCHEMA \"Marts\" GRANT SELECT ON TABLES TO grp_ro";
        let privilege = read(line).unwrap();
        assert_eq!(privilege.schema.unwrap().as_str(), "Marts");
        assert_eq!(
            (privilege.owner.as_str(), privilege.grantee.as_str()),
            ("dbt_finance", "grp_ro")
        );
        assert_eq!(read(&line.replace(" IN SCHEMA \"Marts\"", "")).unwrap().schema, None);
        for (word, other) in [
            ("grp_ro", "PUBLIC"),
            ("grp_ro", "grp_ro WITH GRANT OPTION"),
            ("grp_ro", "grp_ro; DROP TABLE t"),
            ("grp_ro", "\"a b\""),
            ("grp_ro", "kdbt__broker"),
            ("SELECT", "ALL"),
            ("TABLES", "tables"),
            ("GRANT", "REVOKE"),
        ] {
            assert_eq!(read(&line.replace(word, other)), Err(NotOurs), "{other}");
        }
    }
}
