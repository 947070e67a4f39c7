//! What still stands for a role: its sessions, logins under way, prepared transactions and memberships, as the
//! catalog shows them now, and the single statements that end each.

use super::NO_LOCKS;
use crate::warehouse::postgres::connect::{Failure, Link};
use crate::warehouse::postgres::plan;
use crate::warehouse::postgres::sql::{Era, Step, Target, literal};

/// What may still act for a role.
pub(super) struct Pids {
    /// Sessions of it.
    pub(super) own: Vec<i32>,
    /// They hold locks and stand in no row, or in one without a role: among them a login of the role's that sleeps after its
    /// checks (`post_auth_delay`), and processes of the server's own.
    pub(super) unknown: Vec<i32>,
}

impl Pids {
    pub(super) fn is_empty(&self) -> bool {
        self.own.is_empty() && self.unknown.is_empty()
    }
}

pub(super) async fn all_pids(link: &Link, oid: u32) -> Result<Pids, Failure> {
    let text = "SELECT DISTINCT l.pid FROM pg_catalog.pg_locks l WHERE l.pid IS NOT NULL AND l.pid <> pg_catalog.pg_backend_pid() \
         AND NOT EXISTS (SELECT FROM pg_catalog.pg_stat_get_activity(NULL) a WHERE a.pid = l.pid AND a.usesysid IS NOT NULL)";
    // Both views of one moment do not exist; a login that moves from one to the other is in the second or in the next scan.
    let unknown = match link.query("look for logins under way", text).await {
        Ok(rows) => numbers(&rows),
        // A full lock table must not keep us from ending the sessions that fill it.
        Err(Failure::Refused { .. }) => Vec::new(),
        Err(failure) => return Err(failure),
    };
    let own = sessions(link, oid).await?;
    Ok(Pids { own, unknown })
}

pub(super) async fn sessions(link: &Link, oid: u32) -> Result<Vec<i32>, Failure> {
    let text =
        format!("SELECT a.pid FROM pg_catalog.pg_stat_get_activity(NULL) a WHERE a.usesysid = {oid}::pg_catalog.oid");
    Ok(numbers(&link.query("look for sessions", &text).await?))
}

/// Sessions of others that hold a lock on the role: they have named it in a transaction that is still open.
pub(super) async fn holders(link: &Link, oid: u32) -> Result<Vec<String>, Failure> {
    let text = format!(
        "SELECT DISTINCT l.pid, COALESCE(r.rolname, '') FROM pg_catalog.pg_locks l \
         JOIN pg_catalog.pg_stat_get_activity(NULL) a ON a.pid = l.pid LEFT JOIN pg_catalog.pg_roles r ON r.oid = a.usesysid \
         WHERE l.classid = 'pg_catalog.pg_authid'::pg_catalog.regclass AND l.objid = {oid}::pg_catalog.oid AND l.granted \
         AND l.pid <> pg_catalog.pg_backend_pid() ORDER BY 1 LIMIT 10"
    );
    let rows = link.query("look for who holds a lock on a user", &text).await?;
    let name = |row: &tokio_postgres::SimpleQueryRow| {
        let (pid, user) = (row.get(0)?, row.get(1)?);
        Some(format!("lock on the role, held by {user}'s session with pid {pid}"))
    };
    Ok(rows.iter().filter_map(name).collect())
}

fn numbers(rows: &[tokio_postgres::SimpleQueryRow]) -> Vec<i32> {
    rows.iter().filter_map(|row| row.get(0)?.parse().ok()).collect()
}

/// One statement per pid, so that one that is not ours to end stops no other. How many were told to end.
pub(super) async fn terminate(link: &Link, pids: &[i32]) -> usize {
    let mut told = 0;
    for pid in pids {
        let answer = link.run("end a session", &[Step::Terminate { pid: *pid }]).await;
        if answer.is_ok_and(|rows| rows.first().and_then(|row| row.get(0)) == Some("t")) {
            told += 1;
        }
    }
    told
}

/// The same for backends that nobody knows the user of: those of others go on.
pub(super) async fn terminate_asleep(link: &Link, target: &Target, pids: &[i32]) -> usize {
    let mut told = 0;
    for pid in pids {
        let answer = link
            .run("end a login under way", &plan::terminate_as(target, *pid))
            .await;
        if answer.is_ok_and(|rows| rows.first().and_then(|row| row.get(0)) == Some("t")) {
            told += 1;
        }
    }
    told
}

pub(super) struct Prepared {
    pub(super) gid: String,
    pub(super) database: String,
    pub(super) owner: String,
}

impl Prepared {
    pub(super) fn describe(&self) -> String {
        format!(
            "prepared transaction {} of {} in database {}",
            self.gid, self.owner, self.database
        )
    }
}

/// Prepared transactions of the role; those that hold a lock on the role; and those of its owner role that have
/// written to the table of roles, as only a user that alters itself has reason to.
pub(super) async fn prepared(link: &Link, oid: u32, owner: Option<&str>) -> Result<Vec<Prepared>, Failure> {
    let by_owner = owner.map(|owner| {
        format!(
            " OR (o.rolname = {} AND EXISTS (SELECT FROM pg_catalog.pg_locks b JOIN pg_catalog.pg_locks x ON x.virtualtransaction = b.virtualtransaction \
             WHERE b.pid IS NULL AND b.relation = 'pg_catalog.pg_authid'::pg_catalog.regclass AND b.mode = 'RowExclusiveLock' \
             AND x.transactionid = p.transaction))",
            literal(owner)
        )
    });
    let text = format!(
        "SELECT p.gid, d.datname, COALESCE(o.rolname, '') FROM pg_catalog.pg_prepared_xact() p \
         JOIN pg_catalog.pg_database d ON d.oid = p.dbid LEFT JOIN pg_catalog.pg_roles o ON o.oid = p.ownerid \
         WHERE p.ownerid = {oid}::pg_catalog.oid OR EXISTS (SELECT FROM pg_catalog.pg_locks b \
         JOIN pg_catalog.pg_locks x ON x.virtualtransaction = b.virtualtransaction \
         WHERE b.pid IS NULL AND b.classid = 'pg_catalog.pg_authid'::pg_catalog.regclass AND b.objid = {oid}::pg_catalog.oid \
         AND x.transactionid = p.transaction){}",
        by_owner.unwrap_or_default()
    );
    let rows = match link.query("look for prepared transactions", &text).await {
        Ok(rows) => rows,
        Err(Failure::Refused { code, .. }) if code == NO_LOCKS => return Ok(Vec::new()),
        Err(failure) => return Err(failure),
    };
    Ok(rows
        .iter()
        .filter_map(|row| {
            Some(Prepared {
                gid: row.get(0)?.to_owned(),
                database: row.get(1)?.to_owned(),
                owner: row.get(2)?.to_owned(),
            })
        })
        .collect())
}

/// Every membership that the catalog shows now, one by one: somebody else may have granted some, and a REVOKE of ours
/// leaves theirs. What remains goes with the role.
pub(super) async fn revoke_memberships(link: &Link, target: &Target) -> Result<(), Failure> {
    let text = format!(
        "SELECT DISTINCT r.rolname, m.rolname, g.rolname FROM pg_catalog.pg_auth_members a \
         JOIN pg_catalog.pg_roles r ON r.oid = a.roleid JOIN pg_catalog.pg_roles m ON m.oid = a.member \
         LEFT JOIN pg_catalog.pg_roles g ON g.oid = a.grantor \
         WHERE a.member = {oid}::pg_catalog.oid OR a.grantor = {oid}::pg_catalog.oid",
        oid = target.oid
    );
    let rows = match link.query("look for memberships", &text).await {
        Ok(rows) => rows,
        Err(failure @ Failure::Lost(_)) => return Err(failure),
        Err(_) => return Ok(()),
    };
    for row in rows {
        let (Some(role), Some(from)) = (row.get(0), row.get(1)) else {
            continue;
        };
        let (role, from) = (role.to_owned(), from.to_owned());
        let revoke = match (link.era, row.get(2)) {
            (Era::From16, Some(grantor)) => Step::RevokeGrantedBy {
                role,
                from,
                grantor: grantor.to_owned(),
            },
            (Era::Before16 | Era::From16, _) => Step::Revoke { role, from },
        };
        if let Err(failure @ Failure::Lost(_)) = link.run("revoke a membership", &plan::guarded(target, [revoke])).await
        {
            return Err(failure);
        }
    }
    Ok(())
}
