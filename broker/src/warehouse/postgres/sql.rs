//! A typed step becomes SQL text here and nowhere else. Pure: no connection is in reach.
//!
//! Every name and value goes through [`ident`] or [`literal`]; nothing is cut at semicolons or filled into a template.

use kdbt_api::Timestamp;

use crate::residue::DefaultPrivilege;

/// Where memberships carry their own INHERIT and SET options, and where they do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Era {
    /// PostgreSQL 15: INHERIT is a property of the whole role, and CREATEROLE may grant any role.
    Before16,
    /// PostgreSQL 16 and later.
    From16,
}

impl Era {
    /// From `server_version_num`.
    #[must_use]
    pub fn of(version_num: u32) -> Self {
        if version_num < 160_000 {
            Self::Before16
        } else {
            Self::From16
        }
    }
}

/// An identifier, quoted always: names are taken exactly.
#[must_use]
pub fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A string. Right with `standard_conforming_strings` on and off, although every connection pins it on.
#[must_use]
pub fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') {
        format!(" E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

/// How a member may use a membership.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// Its rights count at once; it cannot be acted as.
    Inherit,
    /// It can be acted as; its rights do not count before.
    Act,
    /// Both: for the broker itself.
    Both,
}

/// What makes an ending or extending statement hit the role that is meant and no other: the name may have been
/// given to another role since it was looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) oid: u32,
    pub(super) name: String,
    /// The comment as the catalog has it. Writing it again takes the lock that keeps the name where it is.
    pub(super) comment: String,
}

/// One statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    CreateUser {
        name: String,
        inherit: bool,
        connection_limit: u16,
        verifier: String,
        until: Timestamp,
    },
    CreateDurable {
        name: String,
    },
    Comment {
        role: String,
        text: String,
    },
    /// `ALTER ROLE … SET name = value`.
    Set {
        role: String,
        name: &'static str,
        value: String,
    },
    /// `ALTER ROLE … SET search_path`.
    SearchPath {
        role: String,
        schemas: Vec<String>,
    },
    Grant {
        roles: Vec<String>,
        to: String,
        usage: Use,
    },
    Revoke {
        role: String,
        from: String,
    },
    /// As the role that granted it: a plain REVOKE leaves somebody else's grant.
    RevokeGrantedBy {
        role: String,
        from: String,
        grantor: String,
    },
    /// Raises [`ROAD_TO_LOGIN`] if one of the users may, by any chain, act as a role that can log in.
    NoRoadToLogin {
        users: Vec<String>,
    },
    /// Raises [`ROW_POLICY`] if a row policy of a database that they may connect to names a role that one of the users
    /// has or can get the rights of.
    NoRowPolicy {
        users: Vec<String>,
    },
    /// The name and OID of each of these roles.
    Oids {
        users: Vec<String>,
    },
    /// Raises [`ANOTHER_ROLE`] if the name is another role's by now.
    SameRole(Target),
    NoLogin {
        role: String,
    },
    ValidUntil {
        role: String,
        until: Timestamp,
    },
    Terminate {
        pid: i32,
    },
    SetRole {
        role: String,
    },
    /// Until the end of the message.
    SetLocalRole {
        role: String,
    },
    RollbackPrepared {
        gid: String,
    },
    /// Unlinks at most so many of the role's large objects, and says how many.
    UnlinkLargeObjects {
        owner: u32,
        limit: u32,
    },
    CreateSchema {
        name: String,
        owner: String,
    },
    SchemaOwner {
        schema: String,
        owner: String,
    },
    /// All or none. The texts are `regprocedure`'s own, quoted by the server.
    DropRoutines {
        signatures: Vec<String>,
    },
    /// What the current role granted. The text is of [`super::clean`]'s query, quoted by the server.
    RevokeAll {
        on: String,
        from: String,
    },
    DefaultPrivilege(DefaultPrivilege),
    ReassignOwned {
        from: String,
        to: String,
    },
    DropOwned {
        by: String,
    },
    DropRole {
        role: String,
    },
}

/// SQLSTATE that [`Step::NoRoadToLogin`] raises.
pub(super) const ROAD_TO_LOGIN: &str = "KD006";
/// SQLSTATE that [`Step::NoRowPolicy`] raises.
pub(super) const ROW_POLICY: &str = "KD007";
/// SQLSTATE that [`Step::SameRole`] raises.
pub(super) const ANOTHER_ROLE: &str = "KD005";

/// The steps as one message: one implicit transaction, one round trip.
#[must_use]
pub(super) fn message(steps: &[Step], era: Era) -> String {
    let statements: Vec<String> = steps.iter().map(|step| render(step, era)).collect();
    statements.join(";\n")
}

fn idents(names: &[String]) -> String {
    names.iter().map(|name| ident(name)).collect::<Vec<_>>().join(", ")
}

fn literals(names: &[String]) -> String {
    names.iter().map(|name| literal(name)).collect::<Vec<_>>().join(", ")
}

fn render(step: &Step, era: Era) -> String {
    match step {
        Step::CreateUser {
            name,
            inherit,
            connection_limit,
            verifier,
            until,
        } => format!(
            "CREATE ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS {} CONNECTION LIMIT {connection_limit} PASSWORD {} VALID UNTIL {}",
            ident(name),
            if *inherit { "INHERIT" } else { "NOINHERIT" },
            literal(verifier),
            literal(&until.to_string()),
        ),
        Step::CreateDurable { name } => format!("CREATE ROLE {} NOLOGIN INHERIT", ident(name)),
        Step::Comment { role, text } => format!("COMMENT ON ROLE {} IS {}", ident(role), literal(text)),
        Step::Set { role, name, value } => format!("ALTER ROLE {} SET {name} = {}", ident(role), literal(value)),
        Step::SearchPath { role, schemas } => {
            format!("ALTER ROLE {} SET search_path = {}", ident(role), idents(schemas))
        }
        Step::Grant { roles, to, usage } => format!("GRANT {} TO {}{}", idents(roles), ident(to), options(*usage, era)),
        Step::Revoke { role, from } => format!("REVOKE {} FROM {}", ident(role), ident(from)),
        Step::RevokeGrantedBy { role, from, grantor } => format!(
            "REVOKE {} FROM {} GRANTED BY {} CASCADE",
            ident(role),
            ident(from),
            ident(grantor)
        ),
        Step::NoRoadToLogin { users } => raise_if_road_to_login(users, era),
        Step::NoRowPolicy { users } => raise_if_row_policy(users, era),
        Step::Oids { users } => format!(
            "SELECT r.rolname, r.oid FROM pg_catalog.pg_roles r WHERE r.rolname IN ({})",
            literals(users)
        ),
        Step::SameRole(Target { oid, name, .. }) => raise(
            "",
            &format!(
                "(SELECT r.oid FROM pg_catalog.pg_roles r WHERE r.rolname = {}) IS DISTINCT FROM {oid}::pg_catalog.oid",
                literal(name)
            ),
            ANOTHER_ROLE,
            "'the name belongs to another role'",
        ),
        Step::NoLogin { role } => format!("ALTER ROLE {} NOLOGIN", ident(role)),
        Step::ValidUntil { role, until } => {
            format!("ALTER ROLE {} VALID UNTIL {}", ident(role), literal(&until.to_string()))
        }
        Step::Terminate { pid } => format!("SELECT pg_catalog.pg_terminate_backend({pid})"),
        Step::SetRole { role } => format!("SET ROLE {}", ident(role)),
        Step::SetLocalRole { role } => format!("SET LOCAL ROLE {}", ident(role)),
        Step::RollbackPrepared { gid } => format!("ROLLBACK PREPARED {}", literal(gid)),
        Step::UnlinkLargeObjects { owner, limit } => format!(
            "SELECT pg_catalog.count(pg_catalog.lo_unlink(l.oid)) FROM (SELECT m.oid FROM pg_catalog.pg_largeobject_metadata m WHERE m.lomowner = {owner}::pg_catalog.oid LIMIT {limit}) l"
        ),
        Step::CreateSchema { name, owner } => {
            format!("CREATE SCHEMA {} AUTHORIZATION {}", ident(name), ident(owner))
        }
        Step::SchemaOwner { schema, owner } => format!("ALTER SCHEMA {} OWNER TO {}", ident(schema), ident(owner)),
        Step::DropRoutines { signatures } => format!("DROP ROUTINE {}", signatures.join(", ")),
        Step::RevokeAll { on, from } => format!("REVOKE ALL ON {on} FROM {} CASCADE", ident(from)),
        Step::DefaultPrivilege(given) => {
            let place = given.schema.as_ref();
            format!(
                "ALTER DEFAULT PRIVILEGES FOR ROLE {}{} GRANT {} ON {} TO {}",
                ident(given.owner.as_str()),
                place.map_or_else(String::new, |schema| format!(" IN SCHEMA {}", ident(schema.as_str()))),
                given.privilege,
                given.objects,
                ident(given.grantee.as_str())
            )
        }
        Step::ReassignOwned { from, to } => format!("REASSIGN OWNED BY {} TO {}", ident(from), ident(to)),
        Step::DropOwned { by } => format!("DROP OWNED BY {}", ident(by)),
        Step::DropRole { role } => format!("DROP ROLE {}", ident(role)),
    }
}

fn options(usage: Use, era: Era) -> &'static str {
    match (era, usage) {
        (Era::Before16, _) => "",
        (Era::From16, Use::Inherit) => " WITH INHERIT TRUE, SET FALSE",
        (Era::From16, Use::Act) => " WITH INHERIT FALSE, SET TRUE",
        (Era::From16, Use::Both) => " WITH INHERIT TRUE, SET TRUE",
    }
}

/// A DO block. Its body is a quoted literal, since a name from the catalog may hold any dollar quote.
fn raise(declare: &str, condition: &str, code: &str, text: &str) -> String {
    format!("DO {}", literal(&block(declare, condition, code, text)))
}

fn block(declare: &str, condition: &str, code: &str, text: &str) -> String {
    format!(
        "{declare}BEGIN IF {condition} THEN RAISE EXCEPTION USING ERRCODE = {}, MESSAGE = {text}; END IF; END",
        literal(code)
    )
}

/// Who may act as a role may, with ADMIN on the next one, give itself the right to act as that too.
fn raise_if_road_to_login(users: &[String], era: Era) -> String {
    let edge = match era {
        Era::Before16 => "",
        Era::From16 => " AND (m.set_option OR m.admin_option)",
    };
    let condition = format!(
        "(WITH RECURSIVE road(oid, path) AS (\
         SELECT r.oid, r.rolname::pg_catalog.text FROM pg_catalog.pg_roles r WHERE r.rolname IN ({}) \
         UNION ALL SELECT r.oid, road.path || ' > ' || r.rolname FROM road \
         JOIN pg_catalog.pg_auth_members m ON m.member = road.oid{edge} \
         JOIN pg_catalog.pg_roles r ON r.oid = m.roleid) \
         SELECT road.path FROM road JOIN pg_catalog.pg_roles r ON r.oid = road.oid \
         WHERE r.rolcanlogin AND r.rolname NOT IN ({}) LIMIT 1)",
        literals(users),
        literals(users)
    );
    raise(
        &format!("DECLARE found pg_catalog.text := {condition}; "),
        "found IS NOT NULL",
        ROAD_TO_LOGIN,
        "found",
    )
}

/// The rows of `pg_auth_members` by which the member has, or can give itself, the rights of the other role.
pub(super) fn rights_pass(era: Era) -> &'static str {
    match era {
        Era::Before16 => "true",
        Era::From16 => "(m.inherit_option OR m.set_option OR m.admin_option)",
    }
}

/// Whoever has the rights of a role may DROP OWNED BY it, and the policies `TO` that role are gone (S7). The policies
/// themselves are rows of other databases; that they name a role stands in the shared `pg_shdepend`. Most servers have
/// none, and there the question that costs is not even planned.
fn raise_if_row_policy(users: &[String], era: Era) -> String {
    const NAMED: &str = "pg_catalog.pg_database d JOIN pg_catalog.pg_shdepend s ON s.dbid = d.oid \
         AND s.classid = 'pg_catalog.pg_policy'::pg_catalog.regclass AND s.deptype = 'r' \
         AND s.refclassid = 'pg_catalog.pg_authid'::pg_catalog.regclass";
    let condition = format!(
        "(WITH RECURSIVE up(login, oid) AS (\
         SELECT r.oid, r.oid FROM pg_catalog.pg_roles r WHERE r.rolname IN ({}) \
         UNION SELECT up.login, m.roleid FROM up JOIN pg_catalog.pg_auth_members m ON m.member = up.oid AND {}) \
         SELECT r.rolname || ' in database ' || d.datname FROM {NAMED} JOIN up ON up.oid = s.refobjid \
         JOIN pg_catalog.pg_roles r ON r.oid = up.oid \
         WHERE pg_catalog.has_database_privilege(up.login, d.oid, 'CONNECT') LIMIT 1)",
        literals(users),
        rights_pass(era)
    );
    let check = block(
        &format!("DECLARE found pg_catalog.text := {condition}; "),
        "found IS NOT NULL",
        ROW_POLICY,
        "found",
    );
    let body = format!("BEGIN IF EXISTS (SELECT FROM {NAMED}) THEN {check}; END IF; END");
    format!("DO {}", literal(&body))
}

#[cfg(test)]
mod tests;
