//! Whether a server is as the design needs it: every finding says what is missing, best as SQL. Changes nothing.

use std::collections::BTreeSet;

use kdbt_api::name::RoleName;

use super::connect::{Connector, Failure, Limits, Link};
use super::plan::{BROKER, DatabaseRoles};
use super::sql::{Era, ident, literal};
use super::{PostgresConfig, Tls};
use crate::warehouse::{DatabaseNeeds, Finding, Needs, Severity, WarehouseError};

mod row_policies;
mod trust;

/// All that can be seen from the catalog.
pub(super) async fn check(connector: &Connector, config: &PostgresConfig, needs: &Needs) -> Vec<Finding> {
    let mut doctor = Doctor {
        connector,
        config,
        findings: Vec::new(),
    };
    if let Err(failure) = doctor.server(needs).await {
        doctor.failed(config.database.as_str(), failure);
    }
    doctor.findings
}

struct Doctor<'a> {
    connector: &'a Connector,
    config: &'a PostgresConfig,
    findings: Vec<Finding>,
}

/// Roles that reach out of the database, or into every table.
const DANGEROUS: &str = "'pg_execute_server_program', 'pg_read_server_files', 'pg_write_server_files', 'pg_signal_backend', \
     'pg_write_all_data', 'pg_read_all_data', 'pg_maintain', 'pg_create_subscription', 'pg_database_owner'";

impl Doctor<'_> {
    fn add(&mut self, severity: Severity, code: &'static str, message: String, remedy: Option<String>) {
        self.findings.push(Finding {
            severity,
            code,
            message,
            remedy,
        });
    }

    fn failed(&mut self, database: &str, failure: Failure) {
        let error = WarehouseError::from(failure);
        let message = format!("database {database}: {error}");
        self.add(Severity::Error, "connection", message, None);
    }

    async fn open(&self, database: &str) -> Result<Link, Failure> {
        let limits = Limits {
            lock: self.config.end_lock_timeout,
            statement: self.config.end_timeout,
        };
        self.connector.open(database, limits).await
    }

    async fn server(&mut self, needs: &Needs) -> Result<(), Failure> {
        let link = self.open(&self.config.database).await?;
        let (major, host) = (link.version / 10_000, self.config.host.clone());
        self.add(
            Severity::Ok,
            "connected",
            format!("PostgreSQL {major} on {host}, as {BROKER}"),
            None,
        );
        self.version(&link);
        let loopback = ["localhost", "127.0.0.1", "::1"].contains(&host.as_str()) || host.starts_with('/');
        if matches!(self.config.tls, Tls::Plain) && !loopback {
            let message = format!("the connection to {host} has no TLS");
            self.add(
                Severity::Warning,
                "no-tls",
                message,
                Some("remove `insecure_transport`".into()),
            );
        }
        self.broker(&link).await?;
        self.capacity(&link, needs).await?;
        let owners: BTreeSet<&str> = needs
            .databases
            .iter()
            .flat_map(|d| &d.owners)
            .map(RoleName::as_str)
            .collect();
        let groups: BTreeSet<&str> = needs
            .databases
            .iter()
            .flat_map(|d| &d.groups)
            .map(RoleName::as_str)
            .collect();
        for role in owners.union(&groups) {
            self.role(&link, role, owners.contains(role)).await?;
        }
        for database in &needs.databases {
            self.database_roles(&link, database).await?;
            match self.open(database.database.as_str()).await {
                Ok(here) => self.inside(&here, database).await?,
                Err(failure) => self.failed(database.database.as_str(), failure),
            }
        }
        Ok(())
    }

    fn version(&mut self, link: &Link) {
        if link.era == Era::Before16 {
            let (severity, remedy) = if self.config.accept_createrole {
                (Severity::Warning, "upgrade to PostgreSQL 16 or later")
            } else {
                (
                    Severity::Error,
                    "set `accept_createrole: true` for this server, or upgrade to 16 or later",
                )
            };
            let message = "before PostgreSQL 16 CREATEROLE may grant any role, so the broker is nearly a superuser";
            self.add(severity, "createrole-before-16", message.into(), Some(remedy.into()));
        }
    }

    async fn broker(&mut self, link: &Link) -> Result<(), Failure> {
        let text = "SELECT r.rolsuper, r.rolcreaterole, pg_catalog.pg_has_role(r.oid, 'pg_signal_backend', 'USAGE'), r.rolinherit, \
             pg_catalog.current_setting('max_prepared_transactions') FROM pg_catalog.pg_roles r WHERE r.rolname = CURRENT_USER";
        let rows = link.query("look at the broker's role", text).await?;
        let is = |index| rows.first().and_then(|row| row.get(index)) == Some("t");
        if is(0) {
            let remedy = format!("ALTER ROLE {BROKER} NOSUPERUSER;");
            self.add(
                Severity::Error,
                "broker-superuser",
                "the broker is a superuser".into(),
                Some(remedy),
            );
            return Ok(());
        }
        if !is(1) {
            let remedy = format!("ALTER ROLE {BROKER} CREATEROLE;");
            self.add(
                Severity::Error,
                "broker-createrole",
                "the broker cannot create roles".into(),
                Some(remedy),
            );
        }
        if is(2) {
            let message = "the broker may end any session, so an end could hit others".into();
            let remedy = format!("REVOKE pg_signal_backend FROM {BROKER};");
            self.add(Severity::Error, "broker-signals-all", message, Some(remedy));
        }
        if link.era == Era::Before16 && !is(3) {
            let message = "the broker does not inherit, so it cannot end sessions".into();
            self.add(
                Severity::Error,
                "broker-noinherit",
                message,
                Some(format!("ALTER ROLE {BROKER} INHERIT;")),
            );
        }
        let prepared = rows.first().and_then(|row| row.get(4)).unwrap_or_default();
        if prepared != "0" {
            let message = "prepared transactions are on: they outlive sessions and can hold a lease's role".into();
            let remedy = "ALTER SYSTEM SET max_prepared_transactions = 0; -- and restart";
            self.add(Severity::Error, "prepared-transactions", message, Some(remedy.into()));
        }
        Ok(())
    }

    async fn capacity(&mut self, link: &Link, needs: &Needs) -> Result<(), Failure> {
        let text = "SELECT pg_catalog.current_setting('max_connections')::pg_catalog.int8 \
             - pg_catalog.current_setting('superuser_reserved_connections')::pg_catalog.int8 \
             - COALESCE(pg_catalog.current_setting('reserved_connections', true)::pg_catalog.int8, 0)";
        let rows = link.query("count connections", text).await?;
        let usable: u64 = rows
            .first()
            .and_then(|row| row.get(0))
            .and_then(|n| n.parse().ok())
            .unwrap_or(0);
        let wanted: u64 = needs
            .databases
            .iter()
            .map(|database| u64::from(database.connections))
            .sum();
        if wanted >= usable {
            let message = format!("leases may hold {wanted} connections, and the server has {usable} for all");
            let remedy = "lower `connection_limit` in the policy, or raise max_connections";
            self.add(Severity::Error, "connections", message, Some(remedy.into()));
            return Ok(());
        }
        // As many leases as may live at once. No error: a cap that no leases could exceed lets too few people work.
        let leases = u64::from(self.config.leases_per_target);
        let together: u64 = needs
            .databases
            .iter()
            .map(|database| leases * u64::from(database.targets) * u64::from(database.connections))
            .sum();
        if together >= usable {
            let message = format!(
                "all leases that may live at once may hold {together} connections, and the server has {usable} for all"
            );
            let remedy = "lower `limits.leases_per_target` or `connection_limit`, or raise max_connections";
            self.add(Severity::Warning, "connections-together", message, Some(remedy.into()));
        }
        Ok(())
    }

    async fn role(&mut self, link: &Link, role: &str, owner: bool) -> Result<(), Failure> {
        let text = format!(
            "SELECT r.rolcanlogin, r.rolsuper OR r.rolcreaterole OR r.rolreplication OR r.rolbypassrls, \
             pg_catalog.pg_has_role(CURRENT_USER, r.oid, 'MEMBER WITH ADMIN OPTION'), pg_catalog.pg_has_role(CURRENT_USER, r.oid, 'USAGE'), \
             {}, (SELECT pg_catalog.string_agg(d.datname, ', ') FROM pg_catalog.pg_database d \
             WHERE pg_catalog.pg_has_role(r.oid, d.datdba, 'MEMBER')) \
             FROM pg_catalog.pg_roles r WHERE r.rolname = {}",
            match link.era {
                Era::Before16 => "pg_catalog.pg_has_role(CURRENT_USER, r.oid, 'MEMBER')",
                Era::From16 => "pg_catalog.pg_has_role(CURRENT_USER, r.oid, 'SET')",
            },
            literal(role)
        );
        let rows = link.query("look at a role", &text).await?;
        let quoted = ident(role);
        let Some(row) = rows.first() else {
            let message = format!("the role {role} is not there");
            self.add(
                Severity::Error,
                "role-missing",
                message,
                Some(format!("CREATE ROLE {quoted} NOLOGIN;")),
            );
            return Ok(());
        };
        let is = |index| row.get(index) == Some("t");
        if is(0) {
            let message = format!("the role {role} can log in: a lease could give it a password");
            self.add(
                Severity::Error,
                "role-can-log-in",
                message,
                Some(format!("ALTER ROLE {quoted} NOLOGIN;")),
            );
        }
        if is(1) {
            let message = format!("the role {role} has power over the whole server");
            let remedy = format!("ALTER ROLE {quoted} NOSUPERUSER NOCREATEROLE NOREPLICATION NOBYPASSRLS;");
            self.add(Severity::Error, "role-powerful", message, Some(remedy));
        }
        let granted = match (link.era, owner) {
            (Era::Before16, true) => is(3),
            (Era::Before16, false) => true,
            (Era::From16, true) => is(2) && is(3) && is(4),
            (Era::From16, false) => is(2),
        };
        if !granted {
            let options = match (link.era, owner) {
                (Era::Before16, _) => "",
                (Era::From16, true) => " WITH ADMIN TRUE, INHERIT TRUE, SET TRUE",
                (Era::From16, false) => " WITH ADMIN TRUE, INHERIT FALSE, SET FALSE",
            };
            let message = format!("the broker cannot grant {role} as leases need it");
            self.add(
                Severity::Error,
                "role-grant",
                message,
                Some(format!("GRANT {quoted} TO {BROKER}{options};")),
            );
        }
        if let (true, Some(databases)) = (owner, row.get(5)) {
            let message = format!(
                "the role {role} owns the database {databases}, itself or by a membership, so a lease could change settings of every session there"
            );
            let remedy = "ALTER DATABASE … OWNER TO another role, or REVOKE the membership".to_owned();
            self.add(Severity::Error, "owner-owns-database", message, Some(remedy));
        }
        self.roads(link, role, owner).await
    }

    /// To a role that can log in (S6), and to one that reaches out of the database.
    async fn roads(&mut self, link: &Link, role: &str, owner: bool) -> Result<(), Failure> {
        let edge = match link.era {
            Era::Before16 => "true",
            Era::From16 => "m.set_option OR m.admin_option",
        };
        let text = format!(
            "WITH RECURSIVE road(oid, path, act) AS (SELECT r.oid, r.rolname::pg_catalog.text, true FROM pg_catalog.pg_roles r WHERE r.rolname = {} \
             UNION ALL SELECT r.oid, road.path || ' > ' || r.rolname, road.act AND ({edge}) FROM road \
             JOIN pg_catalog.pg_auth_members m ON m.member = road.oid JOIN pg_catalog.pg_roles r ON r.oid = m.roleid) \
             SELECT road.path, r.rolcanlogin AND road.act FROM road JOIN pg_catalog.pg_roles r ON r.oid = road.oid WHERE r.rolname <> {} \
             AND ((r.rolcanlogin AND road.act) OR r.rolsuper OR r.rolcreaterole OR r.rolname IN ({DANGEROUS})) LIMIT 20",
            literal(role),
            literal(role),
        );
        for row in link.query("follow memberships", &text).await? {
            let path = row.get(0).unwrap_or_default();
            let login = row.get(1) == Some("t");
            // Before 16 a reader may act as its groups too.
            if login && (owner || link.era == Era::Before16) {
                let message = format!("a lease could act as a role that can log in: {path}");
                let remedy = "revoke a step of that path, or make the last role NOLOGIN".to_owned();
                self.add(Severity::Error, "road-to-login", message, Some(remedy));
            } else if !login {
                let message = format!("a lease would hold rights over the whole server: {path}");
                self.add(
                    Severity::Error,
                    "dangerous-membership",
                    message,
                    Some("revoke a step of that path".into()),
                );
            }
        }
        Ok(())
    }

    async fn database_roles(&mut self, link: &Link, needs: &DatabaseNeeds) -> Result<(), Failure> {
        let (database, quoted) = (needs.database.as_str(), ident(needs.database.as_str()));
        let roles = DatabaseRoles::of(&needs.database);
        let mut wanted = vec![(&roles.connect, "CONNECT"), (&roles.temp, "TEMPORARY")];
        if needs.create_schemas {
            wanted.push((&roles.create, "CREATE"));
        }
        for (role, right) in wanted {
            let text = format!(
                "SELECT pg_catalog.has_database_privilege(r.oid, d.oid, {}), pg_catalog.pg_has_role(CURRENT_USER, r.oid, 'MEMBER WITH ADMIN OPTION') \
                 FROM pg_catalog.pg_roles r, pg_catalog.pg_database d WHERE r.rolname = {} AND d.datname = {}",
                literal(right),
                literal(role),
                literal(database)
            );
            let rows = link.query("look at a database's roles", &text).await?;
            let is = |index| rows.first().and_then(|row| row.get(index)) == Some("t");
            if !is(0) || (link.era == Era::From16 && !is(1)) {
                let message =
                    format!("leases lack {right} on {database}: the role {role} is missing, or lacks a grant");
                let remedy = "run what `doctor --bootstrap` prints".to_owned();
                self.add(Severity::Error, "database-role", message, Some(remedy));
            }
        }
        let text = format!(
            "SELECT pg_catalog.has_database_privilege('public', d.oid, 'CONNECT'), pg_catalog.has_database_privilege('public', d.oid, 'TEMPORARY'), \
             pg_catalog.has_database_privilege(CURRENT_USER, d.oid, 'CREATE') FROM pg_catalog.pg_database d WHERE d.datname = {}",
            literal(database)
        );
        let rows = link.query("look at a database", &text).await?;
        let is = |index| rows.first().and_then(|row| row.get(index)) == Some("t");
        if is(0) && link.era == Era::From16 {
            let message = format!("every login may connect to {database}, leases of other targets included");
            let remedy = format!("REVOKE CONNECT ON DATABASE {quoted} FROM PUBLIC;");
            self.add(Severity::Warning, "public-connect", message, Some(remedy));
        }
        if is(1) {
            let message = format!("every login may make temporary tables in {database}");
            let remedy = format!("REVOKE TEMPORARY ON DATABASE {quoted} FROM PUBLIC;");
            self.add(Severity::Warning, "public-temp", message, Some(remedy));
        }
        if needs.own_schemas && !rows.is_empty() && !is(2) {
            let message = format!("the broker cannot make the schemas of persons in {database}");
            let remedy = format!("GRANT CREATE ON DATABASE {quoted} TO {BROKER};");
            self.add(Severity::Error, "broker-create", message, Some(remedy));
        }
        Ok(())
    }

    /// What only a connection to the database shows.
    async fn inside(&mut self, link: &Link, needs: &DatabaseNeeds) -> Result<(), Failure> {
        let database = needs.database.as_str();
        let text = "SELECT n.nspname FROM pg_catalog.pg_namespace n WHERE pg_catalog.has_schema_privilege('public', n.oid, 'CREATE') LIMIT 20";
        for row in link.query("look for open schemas", text).await? {
            let schema = row.get(0).unwrap_or_default();
            let message = format!(
                "every login may create objects in schema {schema} of {database}: readers could plant code there"
            );
            let remedy = format!(
                "REVOKE CREATE ON SCHEMA {} FROM PUBLIC; -- in {database}",
                ident(schema)
            );
            self.add(Severity::Error, "public-create", message, Some(remedy));
        }
        for owner in &needs.owners {
            let text = format!(
                "SELECT 1 FROM pg_catalog.pg_roles r WHERE r.rolname = {} AND NOT pg_catalog.has_database_privilege(r.oid, pg_catalog.current_database(), 'TEMPORARY')",
                literal(owner.as_str())
            );
            if !link.query("look at an owner's rights", &text).await?.is_empty() {
                let message = format!("{owner} cannot make temporary tables in {database}, so incremental models fail");
                let remedy = format!(
                    "GRANT TEMPORARY ON DATABASE {} TO {};",
                    ident(database),
                    ident(owner.as_str())
                );
                self.add(Severity::Error, "owner-temp", message, Some(remedy));
            }
        }
        self.trust(link, needs).await?;
        self.row_policies(link, needs).await
    }
}
