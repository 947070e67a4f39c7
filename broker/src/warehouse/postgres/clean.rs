//! What a user owns or was granted, database by database, so that its role can be dropped and nothing is lost: large
//! objects first (S10), then schemas, then the rest to the user's own owner role in one transaction (S25).

use super::connect::{Failure, Link};
use super::ending::{Ending, LOCKED};
use super::plan;
use super::sql::{Era, Step, Target, literal};
use crate::warehouse::WarehouseError;

/// Who gets what the user owns.
pub(super) enum Heir {
    /// The durable role that the user acted as.
    Role(String),
    /// Nobody: a reader's objects are dropped, since handing them over would lend a reader's code an owner's rights (S8).
    None,
    /// The mark cannot be read: what is owned stays, and is reported.
    Unknown,
}

impl Heir {
    pub(super) fn role(&self) -> Option<&str> {
        match self {
            Self::Role(role) => Some(role),
            Self::None | Self::Unknown => None,
        }
    }
}

/// Large objects per transaction: 20 000 exhaust the lock table.
const UNLINK_AT_ONCE: u32 = 1000;
/// Rounds of that per try; the next try goes on.
const UNLINK_ROUNDS: u32 = 200;
/// More dependencies than this in one database could exhaust the lock table for everybody.
pub(super) const AT_ONCE: u32 = 5000;
/// Databases and objects that are looked at or named; the rest comes with the next try.
const DATABASES: usize = 64;
const NAMED: usize = 10;

/// Cleans every database that the catalog names. What could not be cleaned, in people's words.
pub(super) async fn clean(
    ending: &Ending<'_>,
    link: &Link,
    target: &Target,
    heir: &Heir,
) -> Result<Vec<String>, WarehouseError> {
    let shared = shared_objects(link, target.oid).await?;
    if !shared.is_empty() {
        // REASSIGN would hand these over too, a subscription with its connection string: a DBA decides.
        return Ok(shared);
    }
    let mut left = Vec::new();
    let databases = databases(link, target.oid).await?;
    if databases.is_empty() {
        // Grants on shared objects only: any database will do.
        let dropped = link
            .run_again("drop a user's grants", &plan::guarded(target, [drop_owned(target)]))
            .await;
        if let Err(failure) = dropped {
            left.push(format!("shared objects: {}", failure.code()));
        }
    }
    for (database, count) in databases {
        match clean_database(ending, target, heir, &database, count).await {
            Ok(objects) => left.extend(objects),
            Err(failure) => left.push(format!("objects in database {database}: {}", reason(&failure))),
        }
    }
    Ok(left)
}

fn reason(failure: &Failure) -> String {
    WarehouseError::from(failure.clone()).to_string()
}

fn drop_owned(target: &Target) -> Step {
    Step::DropOwned {
        by: target.name.clone(),
    }
}

async fn clean_database(
    ending: &Ending<'_>,
    target: &Target,
    heir: &Heir,
    database: &str,
    count: u32,
) -> Result<Vec<String>, Failure> {
    let link = ending.open(database).await?;
    if matches!(heir, Heir::Unknown) && owns(&link, target.oid).await? {
        return describe(&link, target.oid, database, true).await;
    }
    unlink_large_objects(&link, target.oid).await?;
    if count > AT_ONCE && count_here(&link, target.oid).await? > AT_ONCE {
        return Ok(vec![format!("more than {AT_ONCE} objects in database {database}")]);
    }
    hand_over(&link, target, heir, database).await
}

/// What is owned to the heir; then grants to the role, and what is still owned, are dropped.
async fn hand_over(link: &Link, target: &Target, heir: &Heir, database: &str) -> Result<Vec<String>, Failure> {
    let mut act = Vec::new();
    if let Heir::Role(owner) = heir
        && owns(link, target.oid).await?
    {
        if !made_by_broker(link, target.oid).await? {
            let mut left = vec!["the broker did not make this role, so its mark names no heir".to_owned()];
            left.extend(describe(link, target.oid, database, true).await?);
            return Ok(left);
        }
        if !exists(link, owner).await? {
            let mut left = vec![format!("the owner role {owner} is gone or renamed")];
            left.extend(describe(link, target.oid, database, true).await?);
            return Ok(left);
        }
        let stuck = drop_routines(link, target, database).await?;
        if !stuck.is_empty() {
            return Ok(stuck);
        }
        act.extend(
            own_schemas(link, target.oid)
                .await?
                .into_iter()
                .map(|schema| Step::SchemaOwner {
                    schema,
                    owner: owner.clone(),
                }),
        );
        act.push(Step::ReassignOwned {
            from: target.name.clone(),
            to: owner.clone(),
        });
    }
    act.push(drop_owned(target));
    // One transaction: a DROP OWNED after a failed REASSIGN would destroy data.
    match link
        .run_again("clean up after a user", &plan::guarded(target, act))
        .await
    {
        Ok(_) | Err(Failure::Warned { .. }) => {
            if describe(link, target.oid, database, false).await?.is_empty() {
                return Ok(Vec::new());
            }
            revoke_as_grantors(link, target).await?;
            describe(link, target.oid, database, false).await
        }
        Err(failure @ Failure::Lost(_)) => Err(failure),
        Err(failure) => {
            let mut left = vec![format!("cleaning database {database} failed: {}", reason(&failure))];
            if failure.code() == LOCKED {
                left.extend(lockers(link, target.oid).await?);
            }
            left.extend(describe(link, target.oid, database, false).await?);
            Ok(left)
        }
    }
}

/// The rights of a role on something in this database, by what depends on it: on what, as REVOKE names it; whose that is;
/// and who gave the right.
fn rights(oid: u32) -> String {
    let kinds = [
        (
            "pg_class",
            "SELECT CASE t.relkind WHEN 'S' THEN 'SEQUENCE ' ELSE 'TABLE ' END || t.oid::pg_catalog.regclass::pg_catalog.text, t.relowner, t.relacl \
             FROM pg_catalog.pg_class t WHERE t.oid = s.objid AND s.objsubid = 0",
        ),
        (
            "pg_class",
            "SELECT 'TABLE ' || t.oid::pg_catalog.regclass::pg_catalog.text, t.relowner, c.attacl \
             FROM pg_catalog.pg_class t JOIN pg_catalog.pg_attribute c ON c.attrelid = t.oid WHERE t.oid = s.objid AND c.attnum = s.objsubid",
        ),
        (
            "pg_proc",
            "SELECT 'ROUTINE ' || p.oid::pg_catalog.regprocedure::pg_catalog.text, p.proowner, p.proacl \
             FROM pg_catalog.pg_proc p WHERE p.oid = s.objid",
        ),
        (
            "pg_namespace",
            "SELECT 'SCHEMA ' || pg_catalog.quote_ident(n.nspname), n.nspowner, n.nspacl FROM pg_catalog.pg_namespace n WHERE n.oid = s.objid",
        ),
        (
            "pg_type",
            "SELECT 'TYPE ' || y.oid::pg_catalog.regtype::pg_catalog.text, y.typowner, y.typacl FROM pg_catalog.pg_type y WHERE y.oid = s.objid",
        ),
        (
            "pg_largeobject",
            "SELECT 'LARGE OBJECT ' || l.oid::pg_catalog.text, l.lomowner, l.lomacl FROM pg_catalog.pg_largeobject_metadata l WHERE l.oid = s.objid",
        ),
        (
            "pg_foreign_server",
            "SELECT 'FOREIGN SERVER ' || pg_catalog.quote_ident(f.srvname), f.srvowner, f.srvacl FROM pg_catalog.pg_foreign_server f WHERE f.oid = s.objid",
        ),
    ];
    let kinds = kinds.map(|(class, look)| format!("{look} AND s.classid = 'pg_catalog.{class}'::pg_catalog.regclass"));
    format!(
        "(SELECT o.object, o.owner, a.grantor FROM pg_catalog.pg_shdepend s CROSS JOIN LATERAL ({}) o(object, owner, acl) \
         CROSS JOIN LATERAL pg_catalog.aclexplode(o.acl) a \
         WHERE {HERE}{oid}::pg_catalog.oid AND s.deptype = 'a' AND a.grantee = {oid}::pg_catalog.oid)",
        kinds.join(" UNION ALL ")
    )
}

/// DROP OWNED revokes as the owner of each object. What somebody handed on by a grant option (S11) falls to nobody but
/// them, so it is revoked in their name: the broker can act as every lease and every owner. What remains is named.
async fn revoke_as_grantors(link: &Link, target: &Target) -> Result<(), Failure> {
    let text = format!(
        "SELECT DISTINCT r.rolname, g.object FROM {} g JOIN pg_catalog.pg_roles r ON r.oid = g.grantor \
         WHERE g.grantor <> g.owner AND g.grantor <> {}::pg_catalog.oid LIMIT {AT_ONCE}",
        rights(target.oid),
        target.oid
    );
    for row in link.query("look for who granted", &text).await? {
        let (Some(grantor), Some(on)) = (row.get(0), row.get(1)) else {
            continue;
        };
        let revoke = [
            Step::SetLocalRole {
                role: grantor.to_owned(),
            },
            Step::RevokeAll {
                on: on.to_owned(),
                from: target.name.clone(),
            },
        ];
        if let Err(failure @ Failure::Lost(_)) = link.run("revoke a grant", &plan::guarded(target, revoke)).await {
            return Err(failure);
        }
    }
    Ok(())
}

/// Who has locked a table of the role's, as far as that can be told.
async fn lockers(link: &Link, oid: u32) -> Result<Vec<String>, Failure> {
    let text = format!(
        "SELECT DISTINCT c.oid::pg_catalog.regclass || ' is locked by ' || CASE WHEN l.pid IS NULL \
         THEN 'prepared transaction ' || COALESCE(p.gid, '') ELSE 'a session of ' || COALESCE(r.rolname, '') || ' with pid ' || l.pid END \
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_locks l ON l.relation = c.oid AND l.granted \
         AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()) \
         LEFT JOIN pg_catalog.pg_stat_get_activity(NULL) a ON a.pid = l.pid LEFT JOIN pg_catalog.pg_roles r ON r.oid = a.usesysid \
         LEFT JOIN pg_catalog.pg_locks x ON l.pid IS NULL AND x.virtualtransaction = l.virtualtransaction AND x.locktype = 'transactionid' \
         LEFT JOIN pg_catalog.pg_prepared_xact() p ON p.transaction = x.transactionid \
         WHERE c.relowner = {oid}::pg_catalog.oid AND l.pid IS DISTINCT FROM pg_catalog.pg_backend_pid() ORDER BY 1 LIMIT {NAMED}"
    );
    let rows = link.query("look for who has locked a user's tables", &text).await?;
    Ok(rows.iter().filter_map(|row| row.get(0)).map(str::to_owned).collect())
}

/// From 16 on the server notes, in its own name, who made a role; nobody else can. Somebody with CREATEROLE could put our
/// mark on a role of theirs, and have a view of theirs handed to the owner that it names, to read with that owner's
/// rights (S13). Before 16 nothing tells, and CREATEROLE may take such rights anyway.
async fn made_by_broker(link: &Link, oid: u32) -> Result<bool, Failure> {
    /// The role that a server begins with.
    const BOOTSTRAP_SUPERUSER: u32 = 10;
    if link.era == Era::Before16 {
        return Ok(true);
    }
    let text = format!(
        "SELECT 1 FROM pg_catalog.pg_auth_members m JOIN pg_catalog.pg_roles r ON r.oid = m.member \
         WHERE m.roleid = {oid}::pg_catalog.oid AND r.rolname = CURRENT_USER AND m.admin_option AND m.grantor = {BOOTSTRAP_SUPERUSER}::pg_catalog.oid"
    );
    Ok(!link.query("look who made a user", &text).await?.is_empty())
}

async fn unlink_large_objects(link: &Link, oid: u32) -> Result<(), Failure> {
    let step = [Step::UnlinkLargeObjects {
        owner: oid,
        limit: UNLINK_AT_ONCE,
    }];
    for _ in 0..UNLINK_ROUNDS {
        let rows = link.run_again("unlink large objects", &step).await?;
        if rows.first().and_then(|row| row.get(0)).is_none_or(|count| count == "0") {
            break;
        }
    }
    Ok(())
}

/// Routines are never handed over: one with definer rights would run as its new owner from then on (S8).
async fn drop_routines(link: &Link, target: &Target, database: &str) -> Result<Vec<String>, Failure> {
    let text = format!(
        "SELECT p.oid::pg_catalog.regprocedure::pg_catalog.text FROM pg_catalog.pg_proc p WHERE p.proowner = {}::pg_catalog.oid LIMIT {AT_ONCE}",
        target.oid
    );
    let rows = link.query("look for routines", &text).await?;
    let routines: Vec<String> = rows.iter().filter_map(|row| row.get(0)).map(str::to_owned).collect();
    let drop = async |signatures| {
        let drop = Step::DropRoutines { signatures };
        match link.run_again("drop routines", &plan::guarded(target, [drop])).await {
            Ok(_) => Ok(true),
            Err(failure @ Failure::Lost(_)) => Err(failure),
            Err(_) => Ok(false),
        }
    };
    // Together first: those that need each other, even in a circle, can go in no order.
    if routines.is_empty() || drop(routines.clone()).await? {
        return Ok(Vec::new());
    }
    let mut stuck = Vec::new();
    for signature in routines {
        if !drop(vec![signature.clone()]).await? {
            stuck.push(format!(
                "function {signature} in database {database}, which others depend on"
            ));
        }
    }
    Ok(stuck)
}

/// All that still depends on the role, for the one who has to remove it.
pub(super) async fn dependencies(ending: &Ending<'_>, link: &Link, oid: u32) -> Result<Vec<String>, WarehouseError> {
    let mut left = shared_objects(link, oid).await?;
    for (database, _) in databases(link, oid).await? {
        match ending.open(&database).await {
            Ok(here) => left.extend(describe(&here, oid, &database, false).await?),
            Err(_) => left.push(format!(
                "objects in database {database}, which the broker cannot connect to"
            )),
        }
    }
    left.extend(shared_grants(link, oid).await?);
    Ok(left)
}

/// Databases with something of the role's, and how much.
async fn databases(link: &Link, oid: u32) -> Result<Vec<(String, u32)>, Failure> {
    let text = format!(
        "SELECT d.datname, pg_catalog.count(*) FROM pg_catalog.pg_shdepend s JOIN pg_catalog.pg_database d ON d.oid = s.dbid \
         WHERE s.refclassid = 'pg_catalog.pg_authid'::pg_catalog.regclass AND s.refobjid = {oid}::pg_catalog.oid \
         GROUP BY d.datname ORDER BY d.datname LIMIT {DATABASES}"
    );
    let rows = link.query("look for databases to clean", &text).await?;
    Ok(rows
        .iter()
        .filter_map(|row| Some((row.get(0)?.to_owned(), row.get(1)?.parse().ok()?)))
        .collect())
}

const HERE: &str = "s.dbid = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()) \
     AND s.refclassid = 'pg_catalog.pg_authid'::pg_catalog.regclass AND s.refobjid = ";

async fn count_here(link: &Link, oid: u32) -> Result<u32, Failure> {
    count_where(link, &format!("{HERE}{oid}::pg_catalog.oid")).await
}

/// How much depends on the role, in all databases.
pub(super) async fn count(link: &Link, oid: u32) -> Result<u32, Failure> {
    let condition =
        format!("s.refclassid = 'pg_catalog.pg_authid'::pg_catalog.regclass AND s.refobjid = {oid}::pg_catalog.oid");
    count_where(link, &condition).await
}

async fn count_where(link: &Link, condition: &str) -> Result<u32, Failure> {
    let text = format!("SELECT pg_catalog.count(*) FROM pg_catalog.pg_shdepend s WHERE {condition}");
    let rows = link.query("count what is left", &text).await?;
    let count = rows
        .first()
        .and_then(|row| row.get(0))
        .and_then(|text| text.parse().ok());
    Ok(count.unwrap_or(u32::MAX))
}

async fn owns(link: &Link, oid: u32) -> Result<bool, Failure> {
    let text =
        format!("SELECT 1 FROM pg_catalog.pg_shdepend s WHERE {HERE}{oid}::pg_catalog.oid AND s.deptype = 'o' LIMIT 1");
    Ok(!link.query("look for what is owned", &text).await?.is_empty())
}

async fn exists(link: &Link, role: &str) -> Result<bool, Failure> {
    let text = format!(
        "SELECT 1 FROM pg_catalog.pg_roles r WHERE r.rolname = {}",
        literal(role)
    );
    Ok(!link.query("look for the owner role", &text).await?.is_empty())
}

async fn own_schemas(link: &Link, oid: u32) -> Result<Vec<String>, Failure> {
    let text = format!(
        "SELECT n.nspname FROM pg_catalog.pg_namespace n WHERE n.nspowner = {oid}::pg_catalog.oid LIMIT {AT_ONCE}"
    );
    let rows = link.query("look for schemas", &text).await?;
    Ok(rows.iter().filter_map(|row| row.get(0)).map(str::to_owned).collect())
}

async fn describe(link: &Link, oid: u32, database: &str, owned_only: bool) -> Result<Vec<String>, Failure> {
    let owned = if owned_only { " AND s.deptype = 'o'" } else { "" };
    let text = format!(
        "SELECT CASE s.deptype WHEN 'o' THEN 'owner of ' WHEN 'r' THEN 'target of ' ELSE 'privileges for ' END || \
         COALESCE(pg_catalog.pg_describe_object(s.classid, s.objid, s.objsubid), 'an object') FROM pg_catalog.pg_shdepend s \
         WHERE {HERE}{oid}::pg_catalog.oid{owned} ORDER BY 1 LIMIT {NAMED}"
    );
    let rows = link.query("name what is left", &text).await?;
    Ok(rows
        .iter()
        .filter_map(|row| row.get(0))
        .map(|object| format!("{object} in database {database}"))
        .collect())
}

/// Databases, tablespaces and subscriptions that the role owns.
async fn shared_objects(link: &Link, oid: u32) -> Result<Vec<String>, Failure> {
    shared(link, oid, "s.deptype = 'o'", "owner of ").await
}

async fn shared_grants(link: &Link, oid: u32) -> Result<Vec<String>, Failure> {
    shared(link, oid, "s.deptype <> 'o'", "privileges for ").await
}

async fn shared(link: &Link, oid: u32, kind: &str, label: &str) -> Result<Vec<String>, Failure> {
    let text = format!(
        "SELECT COALESCE(pg_catalog.pg_describe_object(s.classid, s.objid, s.objsubid), 'a shared object') FROM pg_catalog.pg_shdepend s \
         WHERE s.dbid = 0 AND s.refclassid = 'pg_catalog.pg_authid'::pg_catalog.regclass AND s.refobjid = {oid}::pg_catalog.oid AND {kind} \
         ORDER BY 1 LIMIT {NAMED}"
    );
    let rows = link.query("look for shared objects", &text).await?;
    Ok(rows
        .iter()
        .filter_map(|row| row.get(0))
        .map(|object| format!("{label}{object}"))
        .collect())
}
