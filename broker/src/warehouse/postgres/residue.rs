//! What roles of the policy own or gave in a database besides data (S9). Reads the catalog's rows as they are: whatever
//! would open a relation, such as `pg_get_ruledef`, waits for the locks of whoever wants to hide it.

use std::collections::BTreeSet;
use std::time::Duration;

use kdbt_api::name::DatabaseName;

use super::connect::{Connector, Failure, Limits, Link};
use super::plan::{BROKER, DatabaseRoles};
use super::sql::{Step, literal, rights_pass};
use crate::mark;
use crate::residue::{DefaultPrivilege, Kind, Residue};
use crate::warehouse::Needs;

/// So many of one kind are read; one more says that there are others.
const MOST: usize = 1000;

/// For one kind, on the server.
const STATEMENT: Duration = Duration::from_secs(30);

pub(super) async fn look(
    connector: &Connector,
    database: &DatabaseName,
    needs: &Needs,
) -> Result<BTreeSet<Residue>, Failure> {
    let link = open(connector, database).await?;
    let roles = roles(connector, &link, needs);
    let mut all = BTreeSet::new();
    for kind in Kind::ALL {
        all.extend(of_kind(&link, &roles, kind).await?);
    }
    Ok(all)
}

pub(super) async fn restore(
    connector: &Connector,
    database: &DatabaseName,
    lost: &[DefaultPrivilege],
) -> Result<(), Failure> {
    let link = open(connector, database).await?;
    let steps: Vec<Step> = lost.iter().cloned().map(Step::DefaultPrivilege).collect();
    link.run_again("give default privileges again", &steps).await.map(drop)
}

async fn open(connector: &Connector, database: &DatabaseName) -> Result<Link, Failure> {
    let limits = Limits {
        lock: connector.config.end_lock_timeout,
        statement: STATEMENT,
    };
    connector.open(database.as_str(), limits).await
}

async fn of_kind(link: &Link, roles: &str, kind: Kind) -> Result<Vec<Residue>, Failure> {
    let text = format!(
        "{roles} SELECT x.name, r.rolname, COALESCE(pg_catalog.left(pg_catalog.encode(pg_catalog.sha256(\
         pg_catalog.convert_to(x.definition, pg_catalog.getdatabaseencoding())), 'hex'), 32), '') \
         FROM ({}) x(name, owner, definition) JOIN pg_catalog.pg_roles r ON r.oid = x.owner ORDER BY 1, 2, 3 LIMIT {}",
        question(kind),
        MOST + 1
    );
    let rows = link.query("look for what leases leave behind", &text).await?;
    let residue = |name: &str, owner: &str, fingerprint: &str| Residue {
        kind,
        name: name.to_owned(),
        owner: owner.to_owned(),
        fingerprint: fingerprint.to_owned(),
    };
    let mut found: Vec<Residue> = rows
        .iter()
        .take(MOST)
        .filter_map(|row| Some(residue(row.get(0)?, row.get(1)?, row.get(2)?)))
        .collect();
    if rows.len() > MOST {
        let more = format!("more than {MOST}, of which only the first are shown");
        found.push(residue(&more, "", ""));
    }
    Ok(found)
}

/// `who`: the roles that leases act as or inherit from, persons' own ones, and all whose rights they have by that.
/// `insider`: those to whom they may give rights.
fn roles(connector: &Connector, link: &Link, needs: &Needs) -> String {
    let databases = || needs.databases.iter();
    let named = databases().flat_map(|database| database.owners.iter().chain(&database.groups));
    let of_databases = databases().map(|database| DatabaseRoles::of(&database.database));
    let of_databases = of_databases.flat_map(|roles| [roles.connect, roles.temp, roles.create]);
    let list =
        |names: &mut dyn Iterator<Item = String>| names.map(|name| literal(&name)).collect::<Vec<_>>().join(", ");
    format!(
        "WITH RECURSIVE who(oid) AS (SELECT r.oid FROM pg_catalog.pg_roles r \
         LEFT JOIN pg_catalog.pg_shdescription c ON c.objoid = r.oid AND c.classoid = 'pg_catalog.pg_authid'::pg_catalog.regclass \
         WHERE r.rolname IN ({}) OR (pg_catalog.starts_with(r.rolname, 'kdbt__own_') AND pg_catalog.starts_with(c.description, {})) \
         UNION SELECT m.roleid FROM who JOIN pg_catalog.pg_auth_members m ON m.member = who.oid AND {} \
         JOIN pg_catalog.pg_roles r ON r.oid = m.roleid AND NOT r.rolsuper), \
         insider(oid) AS (SELECT who.oid FROM who UNION SELECT r.oid FROM pg_catalog.pg_roles r WHERE r.rolname IN ({}))",
        list(&mut std::iter::once(String::new()).chain(named.map(ToString::to_string))),
        literal(&format!("{}own sub=", mark::prefix(&connector.config.installation))),
        rights_pass(link.era),
        list(&mut std::iter::once(BROKER.to_owned()).chain(of_databases)),
    )
}

/// What belongs to an extension is named by that extension.
const IN_EXTENSION: &str =
    "EXISTS (SELECT FROM pg_catalog.pg_depend e WHERE e.objid = x.oid AND e.classid = x.tableoid AND e.deptype = 'e')";

/// Name, owner and definition of each. A routine that is too long to be hashed differs whenever it is written.
fn question(kind: Kind) -> String {
    let routine = format!(
        "SELECT x.oid::pg_catalog.regprocedure::pg_catalog.text, x.proowner, \
         CASE WHEN pg_catalog.octet_length(x.prosrc) + COALESCE(pg_catalog.octet_length(x.prosqlbody::pg_catalog.text), 0) > 1000000 \
         THEN x.xmin::pg_catalog.text ELSE ROW(x.prokind, x.prosrc, x.probin, x.prosqlbody, x.prolang, x.proconfig, x.proacl, \
         x.prorettype, x.proargdefaults)::pg_catalog.text END FROM pg_catalog.pg_proc x JOIN who ON who.oid = x.proowner \
         WHERE NOT pg_catalog.pg_is_other_temp_schema(x.pronamespace) AND NOT {IN_EXTENSION}"
    );
    match kind {
        Kind::DefinerRoutine => format!("{routine} AND x.prosecdef"),
        Kind::Routine => format!("{routine} AND NOT x.prosecdef"),
        Kind::Operator => format!(
            "SELECT x.oid::pg_catalog.regoperator::pg_catalog.text, x.oprowner, ROW(x.oprcode, x.oprrest, x.oprjoin)::pg_catalog.text \
             FROM pg_catalog.pg_operator x JOIN who ON who.oid = x.oprowner WHERE NOT {IN_EXTENSION}"
        ),
        Kind::Cast => format!(
            "SELECT pg_catalog.format('%s as %s', x.castsource::pg_catalog.regtype, x.casttarget::pg_catalog.regtype), who.oid, \
             ROW(x.castfunc, x.castcontext, x.castmethod)::pg_catalog.text FROM pg_catalog.pg_cast x \
             LEFT JOIN pg_catalog.pg_proc p ON p.oid = x.castfunc JOIN pg_catalog.pg_type s ON s.oid = x.castsource \
             JOIN pg_catalog.pg_type t ON t.oid = x.casttarget JOIN who ON who.oid IN (p.proowner, s.typowner, t.typowner) \
             WHERE NOT {IN_EXTENSION}"
        ),
        Kind::Trigger => TRIGGERS.to_owned(),
        Kind::Rule => RULES.to_owned(),
        Kind::RowPolicy => ROW_POLICIES.to_owned(),
        Kind::EventTrigger => EVENT_TRIGGERS.to_owned(),
        Kind::DefaultPrivilege => DEFAULT_PRIVILEGES.to_owned(),
        Kind::Grant => GRANTS.to_owned(),
        Kind::SchemaOfRole => SCHEMAS.to_owned(),
        Kind::Extension => EXTENSIONS.to_owned(),
        Kind::Publication => PUBLICATIONS.to_owned(),
        Kind::Subscription => SUBSCRIPTIONS.to_owned(),
        Kind::ForeignServer => FOREIGN_SERVERS.to_owned(),
        Kind::UserMapping => USER_MAPPINGS.to_owned(),
        Kind::ForeignTable => FOREIGN_TABLES.to_owned(),
    }
}

/// On a table of theirs, or calling a routine of theirs. A partition's is its parent's.
const TRIGGERS: &str = "SELECT pg_catalog.format('%I on %s', t.tgname, t.tgrelid::pg_catalog.regclass), c.relowner, \
     ROW(t.tgfoid::pg_catalog.regprocedure, t.tgtype, t.tgenabled, t.tgqual, t.tgattr, t.tgargs)::pg_catalog.text \
     FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid \
     WHERE NOT t.tgisinternal AND t.tgparentid = 0 AND EXISTS (SELECT FROM who WHERE who.oid IN (c.relowner, p.proowner))";

const RULES: &str = "SELECT pg_catalog.format('%I on %s', w.rulename, w.ev_class::pg_catalog.regclass), c.relowner, \
     ROW(w.ev_type, w.ev_enabled, w.is_instead, w.ev_qual, w.ev_action)::pg_catalog.text \
     FROM pg_catalog.pg_rewrite w JOIN pg_catalog.pg_class c ON c.oid = w.ev_class JOIN who ON who.oid = c.relowner \
     WHERE NOT (c.relkind IN ('v', 'm') AND w.rulename = '_RETURN')";

/// With what switches them off.
const ROW_POLICIES: &str = "SELECT pg_catalog.format('%I on %s', p.polname, p.polrelid::pg_catalog.regclass), c.relowner, \
     ROW(c.relrowsecurity, c.relforcerowsecurity, p.polcmd, p.polpermissive, p.polroles, p.polqual, p.polwithcheck)::pg_catalog.text \
     FROM pg_catalog.pg_policy p JOIN pg_catalog.pg_class c ON c.oid = p.polrelid JOIN who ON who.oid = c.relowner";

const EVENT_TRIGGERS: &str = "SELECT pg_catalog.quote_ident(e.evtname), e.evtowner, \
     ROW(e.evtevent, e.evtfoid::pg_catalog.regprocedure, e.evtenabled, e.evttags)::pg_catalog.text \
     FROM pg_catalog.pg_event_trigger e JOIN who ON who.oid = e.evtowner";

/// Theirs for others, and others' for them: those a holder of their rights can drop (S7).
const DEFAULT_PRIVILEGES: &str = "SELECT pg_catalog.format('ALTER DEFAULT PRIVILEGES FOR ROLE %I%s GRANT %s ON %s TO %s%s', o.rolname, \
     ' IN SCHEMA ' || pg_catalog.quote_ident(n.nspname), a.privilege_type, \
     CASE d.defaclobjtype WHEN 'r' THEN 'TABLES' WHEN 'S' THEN 'SEQUENCES' WHEN 'f' THEN 'FUNCTIONS' WHEN 'T' THEN 'TYPES' \
     WHEN 'n' THEN 'SCHEMAS' ELSE 'LARGE OBJECTS' END, COALESCE(pg_catalog.quote_ident(g.rolname), 'PUBLIC'), \
     CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' END), d.defaclrole, NULL \
     FROM pg_catalog.pg_default_acl d CROSS JOIN LATERAL pg_catalog.aclexplode(d.defaclacl) a \
     JOIN pg_catalog.pg_roles o ON o.oid = d.defaclrole LEFT JOIN pg_catalog.pg_namespace n ON n.oid = d.defaclnamespace \
     LEFT JOIN pg_catalog.pg_roles g ON g.oid = a.grantee \
     WHERE a.grantee <> d.defaclrole AND EXISTS (SELECT FROM who WHERE who.oid IN (d.defaclrole, a.grantee))";

/// One line for all relations of a schema: what dbt gives for each new table is approved once.
const GRANTS: &str = "SELECT DISTINCT pg_catalog.format('%s on %s %I to %s%s', a.privilege_type, x.what, n.nspname, \
     COALESCE(pg_catalog.quote_ident(g.rolname), 'PUBLIC'), CASE WHEN a.is_grantable THEN ' with grant option' END), a.grantor, NULL \
     FROM (SELECT c.relnamespace, 'relations of schema', c.relacl FROM pg_catalog.pg_class c \
     UNION ALL SELECT c.relnamespace, 'columns of schema', t.attacl FROM pg_catalog.pg_attribute t JOIN pg_catalog.pg_class c ON c.oid = t.attrelid \
     UNION ALL SELECT p.pronamespace, 'routines of schema', p.proacl FROM pg_catalog.pg_proc p \
     UNION ALL SELECT s.oid, 'schema', s.nspacl FROM pg_catalog.pg_namespace s) x(namespace, what, acl) \
     JOIN pg_catalog.pg_namespace n ON n.oid = x.namespace CROSS JOIN LATERAL pg_catalog.aclexplode(x.acl) a \
     JOIN who ON who.oid = a.grantor LEFT JOIN pg_catalog.pg_roles g ON g.oid = a.grantee \
     WHERE a.grantee NOT IN (SELECT insider.oid FROM insider) AND NOT pg_catalog.pg_is_other_temp_schema(n.oid)";

/// Also like a login that a lease will have.
const SCHEMAS: &str = "SELECT pg_catalog.quote_ident(n.nspname), n.nspowner, NULL \
     FROM pg_catalog.pg_namespace n JOIN who ON who.oid = n.nspowner \
     WHERE pg_catalog.starts_with(n.nspname, 'kdbt_') OR EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE r.rolname = n.nspname)";

const EXTENSIONS: &str = "SELECT pg_catalog.quote_ident(e.extname), e.extowner, \
     ROW(e.extversion, e.extnamespace::pg_catalog.regnamespace)::pg_catalog.text \
     FROM pg_catalog.pg_extension e JOIN who ON who.oid = e.extowner";

const PUBLICATIONS: &str = "SELECT pg_catalog.quote_ident(p.pubname), p.pubowner, \
     ROW(p.puballtables, p.pubinsert, p.pubupdate, p.pubdelete, p.pubtruncate, (SELECT pg_catalog.array_agg(r.prrelid ORDER BY r.prrelid) \
     FROM pg_catalog.pg_publication_rel r WHERE r.prpubid = p.oid))::pg_catalog.text \
     FROM pg_catalog.pg_publication p JOIN who ON who.oid = p.pubowner";

const SUBSCRIPTIONS: &str = "SELECT pg_catalog.quote_ident(s.subname), s.subowner, ROW(s.subenabled, s.subslotname, s.subpublications)::pg_catalog.text \
     FROM pg_catalog.pg_subscription s JOIN who ON who.oid = s.subowner \
     JOIN pg_catalog.pg_database d ON d.oid = s.subdbid AND d.datname = pg_catalog.current_database()";

const FOREIGN_SERVERS: &str = "SELECT pg_catalog.quote_ident(s.srvname), s.srvowner, ROW(s.srvfdw, s.srvtype, s.srvversion, s.srvoptions)::pg_catalog.text \
     FROM pg_catalog.pg_foreign_server s JOIN who ON who.oid = s.srvowner";

/// Their options hold passwords, and only their owners see them.
const USER_MAPPINGS: &str = "SELECT pg_catalog.format('%s on %I', COALESCE(pg_catalog.quote_ident(r.rolname), 'PUBLIC'), m.srvname), \
     COALESCE(r.oid, s.srvowner), NULL FROM pg_catalog.pg_user_mappings m JOIN pg_catalog.pg_foreign_server s ON s.oid = m.srvid \
     LEFT JOIN pg_catalog.pg_roles r ON r.oid = m.umuser WHERE EXISTS (SELECT FROM who WHERE who.oid IN (m.umuser, s.srvowner))";

const FOREIGN_TABLES: &str = "SELECT c.oid::pg_catalog.regclass::pg_catalog.text, c.relowner, ROW(s.srvname, f.ftoptions)::pg_catalog.text \
     FROM pg_catalog.pg_foreign_table f JOIN pg_catalog.pg_class c ON c.oid = f.ftrelid \
     JOIN pg_catalog.pg_foreign_server s ON s.oid = f.ftserver JOIN who ON who.oid = c.relowner";
