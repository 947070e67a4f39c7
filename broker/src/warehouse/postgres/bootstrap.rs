//! What a DBA runs once with psql, made from the policy: the broker's role, its login, and every right that leases
//! need, as memberships. Running it again changes nothing.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use kdbt_api::name::{DatabaseName, InstallationName, RoleName};

use super::plan::{BROKER, DatabaseRoles};
use super::sql::{Era, ident, literal};
use crate::warehouse::{DatabaseNeeds, Needs};

/// The script, for psql as a superuser or the managed service's admin: `psql -v ON_ERROR_STOP=1 -v
/// login_password='SCRAM-SHA-256$…' -f bootstrap.sql postgres`.
#[must_use]
pub fn script(needs: &Needs, era: Era, installation: &InstallationName, login: &str) -> String {
    let mut script = Script {
        text: String::new(),
        era,
    };
    script.cluster(installation, login);
    for database in &needs.databases {
        script.database(database, login);
    }
    script.text
}

struct Script {
    text: String,
    era: Era,
}

impl Script {
    fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    fn statement(&mut self, statement: &str) {
        let _ = writeln!(self.text, "{statement};");
    }

    /// psql's own way to do a thing only if it is missing.
    fn create_role(&mut self, name: &str, attributes: &str) {
        let create = format!("CREATE ROLE {} {attributes}", ident(name));
        let _ = writeln!(
            self.text,
            "SELECT {} WHERE pg_catalog.to_regrole({}) IS NULL \\gexec",
            literal(&create),
            literal(&ident(name))
        );
    }

    fn grant(&mut self, role: &str, to: &str, options: &str) {
        let options = match self.era {
            Era::Before16 => String::new(),
            Era::From16 => format!(" WITH {options}"),
        };
        self.statement(&format!("GRANT {} TO {}{options}", ident(role), ident(to)));
    }

    fn cluster(&mut self, installation: &InstallationName, login: &str) {
        let versions = match self.era {
            Era::Before16 => "PostgreSQL 15",
            Era::From16 => "PostgreSQL 16 and later",
        };
        self.line(&format!(
            "-- kdbt installation {installation}, {versions}. Run again at will."
        ));
        self.line("-- psql -v ON_ERROR_STOP=1 -v login_password='SCRAM-SHA-256$...' -f THIS_FILE postgres");
        self.line("\\set QUIET on");
        self.statement("SET client_min_messages = warning");
        self.line("-- The power, apart from the login that uses it, so that logins can be rotated.");
        match self.era {
            Era::Before16 => {
                self.line("-- Before 16 this role may do nearly all that a superuser may.");
                self.create_role(BROKER, "NOLOGIN INHERIT CREATEROLE");
            }
            Era::From16 => self.create_role(BROKER, "NOLOGIN NOINHERIT CREATEROLE"),
        }
        self.create_role(login, "LOGIN NOINHERIT CONNECTION LIMIT 24");
        self.statement(&format!("ALTER ROLE {} PASSWORD :'login_password'", ident(login)));
        self.grant(BROKER, login, "ADMIN FALSE, INHERIT FALSE, SET TRUE");
        self.statement(&format!("ALTER ROLE {} SET role = {}", ident(login), literal(BROKER)));
        if self.era == Era::From16 {
            self.line("-- A server without free connections can still be told to end a user.");
            self.grant(
                "pg_use_reserved_connections",
                login,
                "ADMIN FALSE, INHERIT TRUE, SET FALSE",
            );
        }
    }

    fn database(&mut self, needs: &DatabaseNeeds, login: &str) {
        let name = &needs.database;
        let database = ident(name.as_str());
        let roles = DatabaseRoles::of(name);
        self.line(&format!("\n-- Database {name}"));
        self.line(&format!("\\connect {database}"));
        self.statement("SET client_min_messages = warning");
        for role in [&roles.connect, &roles.temp, &roles.create] {
            self.create_role(role, "NOLOGIN");
            // ADMIN: to grant it to leases and personal roles.
            if self.era == Era::From16 {
                self.grant(role, BROKER, "ADMIN TRUE, INHERIT TRUE, SET FALSE");
            }
        }
        for (right, role) in [("CONNECT", &roles.connect), ("TEMPORARY", &roles.temp)] {
            self.statement(&format!("GRANT {right} ON DATABASE {database} TO {}", ident(role)));
        }
        let (verb, preposition) = if needs.create_schemas {
            ("GRANT", "TO")
        } else {
            ("REVOKE", "FROM")
        };
        self.statement(&format!(
            "{verb} CREATE ON DATABASE {database} {preposition} {}",
            ident(&roles.create)
        ));
        self.statement(&format!("GRANT CONNECT ON DATABASE {database} TO {}", ident(login)));
        if needs.own_schemas {
            self.line("-- The broker makes the schemas of persons.");
            self.statement(&format!("GRANT CREATE ON DATABASE {database} TO {}", ident(BROKER)));
        }
        self.roles(needs, &database);
        self.close_to_public(name, &database);
    }

    fn roles(&mut self, needs: &DatabaseNeeds, database: &str) {
        let owners: BTreeSet<&str> = needs.owners.iter().map(RoleName::as_str).collect();
        for owner in &owners {
            self.line("-- Leases act as it; INHERIT and SET let the broker hand it what they leave behind.");
            self.create_role(owner, "NOLOGIN");
            self.grant(owner, BROKER, "ADMIN TRUE, INHERIT TRUE, SET TRUE");
            self.statement(&format!(
                "GRANT CREATE, TEMPORARY ON DATABASE {database} TO {}",
                ident(owner)
            ));
        }
        let groups: BTreeSet<&str> = needs.groups.iter().map(RoleName::as_str).collect();
        for group in groups.difference(&owners) {
            self.create_role(group, "NOLOGIN");
            if self.era == Era::From16 {
                self.grant(group, BROKER, "ADMIN TRUE, INHERIT FALSE, SET FALSE");
            }
        }
    }

    /// Every login may do what PUBLIC may, so leases would too.
    fn close_to_public(&mut self, name: &DatabaseName, database: &str) {
        if self.era == Era::From16 {
            self.line("-- These logins connect by the right of PUBLIC only. Run those lines that you want to keep:");
            let _ = writeln!(
                self.text,
                "SELECT '-- GRANT CONNECT ON DATABASE ' || {} || ' TO ' || pg_catalog.quote_ident(r.rolname) || ';' AS \"grant back\" \
                 FROM pg_catalog.pg_roles r, pg_catalog.pg_database d WHERE d.datname = {} AND r.rolcanlogin AND NOT r.rolsuper \
                 AND r.oid <> d.datdba AND EXISTS (SELECT FROM pg_catalog.aclexplode(COALESCE(d.datacl, pg_catalog.acldefault('d', d.datdba))) a \
                 WHERE a.grantee = 0 AND a.privilege_type = 'CONNECT') \
                 AND NOT EXISTS (SELECT FROM pg_catalog.aclexplode(d.datacl) a WHERE a.grantee <> 0 AND a.privilege_type = 'CONNECT' \
                 AND pg_catalog.pg_has_role(r.oid, a.grantee, 'USAGE'));",
                literal(database),
                literal(name.as_str())
            );
            self.statement(&format!("REVOKE CONNECT, TEMPORARY ON DATABASE {database} FROM PUBLIC"));
        } else {
            self.line("-- CONNECT stays with PUBLIC: before 16 a user that acts as a role inherits from none.");
            self.statement(&format!("REVOKE TEMPORARY ON DATABASE {database} FROM PUBLIC"));
        }
        self.statement("REVOKE CREATE ON SCHEMA public FROM PUBLIC");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script_for(era: Era) -> String {
        let database = DatabaseNeeds {
            database: "analytics".parse().unwrap(),
            owners: vec!["dbt_finance".parse().unwrap()],
            groups: vec!["grp_marts_ro".parse().unwrap()],
            zones: Vec::new(),
            own_schemas: true,
            create_schemas: false,
            connections: 40,
            targets: 1,
            roles: Vec::new(),
            warehouses: Vec::new(),
        };
        let needs = Needs {
            databases: vec![database],
        };
        script(&needs, era, &"acme-prod".parse().unwrap(), "kdbt__login_1")
    }

    #[test]
    fn from_16_the_broker_gets_options_on_each_role_and_public_loses_connect() {
        insta::assert_snapshot!(script_for(Era::From16));
    }

    #[test]
    fn before_16_the_broker_gets_plain_memberships_and_public_keeps_connect() {
        insta::assert_snapshot!(script_for(Era::Before16));
    }
}
