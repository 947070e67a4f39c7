//! The ladder that ends a user: no new logins, no memberships, no sessions, nothing owned, no role. Each rung is a
//! transaction of its own, may be repeated, and failing never stops the next (S2). A rung acts on a name only in a
//! message that compares its OID (S5), and waits for no lock that a lease could hold where it can do without.

use std::sync::PoisonError;
use std::time::Duration;

use kdbt_api::Timestamp;
use tokio::time::Instant;

use self::remains::{Prepared, all_pids, holders, prepared, revoke_memberships, sessions, terminate, terminate_asleep};
use super::clean::{self, Heir};
use super::connect::{Connector, Failure, Limits, Link};
use super::plan::{self, BROKER};
use super::pool::Taken;
use super::sql::{ANOTHER_ROLE, Era, Step, Target, Use, literal};
use super::{PostgresConfig, PostgresWarehouse};
use crate::failpoint::{self, Point};
use crate::lease::{EngineId, UserRef};
use crate::mark::{self, Mark};
use crate::warehouse::{EndOutcome, MarkedUser, WarehouseError};

mod remains;

/// Two scans this far apart that find nothing, after NOLOGIN is committed, are enough: measured, no orphan in 50.
const BETWEEN_SCANS: Duration = Duration::from_millis(20);

/// SQLSTATE of a full lock table.
pub(super) const NO_LOCKS: &str = "53200";

/// SQLSTATE of a lock that was not to be had in time.
pub(super) const LOCKED: &str = "55P03";

/// One user's end, with all it needs.
pub(super) struct Ending<'a> {
    warehouse: &'a PostgresWarehouse,
    pub(super) config: &'a PostgresConfig,
}

/// What the catalog says of a role.
struct Found {
    target: Target,
    can_login: bool,
    /// The broker has its rights, as it has from the start: users of older brokers are joined when that is needed.
    joined: bool,
}

impl PostgresWarehouse {
    pub(super) fn ending(&self) -> Ending<'_> {
        Ending {
            warehouse: self,
            config: &self.config,
        }
    }
}

impl Ending<'_> {
    /// The whole ladder for a lease's user.
    pub(super) async fn end(&self, user: &UserRef) -> Result<EndOutcome, WarehouseError> {
        let link = self.warehouse.end.take().await?;
        let oid = user.engine_id.and_then(EngineId::oid);
        let found = match (self.find(&link, user).await, oid) {
            // No room for one more lock: end what may fill the table, by functions that need none (S4).
            (Err(WarehouseError::Server { code, .. }), Some(oid)) if code == NO_LOCKS => {
                self.make_room(&link, oid).await?;
                self.find(&link, user).await?
            }
            (found, _) => found?,
        };
        let Some(found) = found else {
            return Ok(match oid {
                Some(oid) => self.orphans(&link, oid).await?,
                None => EndOutcome::Dropped,
            });
        };
        let heir = match &user.owner {
            Some(owner) => Heir::Role(owner.to_string()),
            None => Heir::None,
        };
        self.ladder(link, found, &heir).await
    }

    /// The whole ladder for a user that no lease explains: its mark is ours, and no more is known.
    pub(super) async fn end_marked(&self, user: &MarkedUser) -> Result<EndOutcome, WarehouseError> {
        let link = self.warehouse.end.take().await?;
        let Some(oid) = user.engine_id.oid() else {
            return Ok(EndOutcome::Dropped);
        };
        let Some(found) = look(&link, &format!("r.oid = {oid}::pg_catalog.oid")).await? else {
            return self.orphans(&link, oid).await;
        };
        if !found
            .target
            .comment
            .starts_with(&mark::prefix(&self.config.installation))
        {
            return Ok(EndOutcome::Dropped);
        }
        let heir = match found.target.comment.parse::<Mark>() {
            Ok(Mark { owner: Some(owner), .. }) => Heir::Role(owner.to_string()),
            Ok(Mark { owner: None, .. }) => Heir::None,
            Err(_) => Heir::Unknown,
        };
        self.ladder(link, found, &heir).await
    }

    /// Moves the native expiry.
    pub(super) async fn extend(&self, user: &UserRef, ends_at: Timestamp) -> Result<(), WarehouseError> {
        let link = self.warehouse.end.take().await?;
        let found = self.find(&link, user).await?.ok_or(WarehouseError::Gone)?;
        failpoint::at(Point::ExtendFound).await;
        let act = Step::ValidUntil {
            role: found.target.name.clone(),
            until: ends_at,
        };
        link.run_again("extend a user", &plan::guarded(&found.target, [act]))
            .await?;
        Ok(())
    }

    /// Ends the sessions that stand now; the user may log in again at once.
    pub(super) async fn end_sessions(&self, user: &UserRef) -> Result<u32, WarehouseError> {
        let link = self.warehouse.end.take().await?;
        let found = self.find(&link, user).await?.ok_or(WarehouseError::Gone)?;
        let target = &found.target;
        let mut pids = sessions(&link, target.oid).await?;
        if pids.is_empty() {
            return Ok(0);
        }
        if !found.joined {
            self.join(&link, target).await?;
        }
        let count = u32::try_from(pids.len()).unwrap_or(u32::MAX);
        let deadline = Instant::now() + self.config.fence_timeout;
        while !pids.is_empty() {
            if Instant::now() > deadline {
                let left = pids.len();
                return Err(WarehouseError::Unsafe(format!("{left} sessions do not end")));
            }
            terminate(&link, &pids).await;
            tokio::time::sleep(BETWEEN_SCANS).await;
            let now = sessions(&link, target.oid).await?;
            pids.retain(|pid| now.contains(pid));
        }
        Ok(count)
    }

    /// The role that is meant: by OID if it is known, and with this lease's mark in any case.
    async fn find(&self, link: &Link, user: &UserRef) -> Result<Option<Found>, WarehouseError> {
        let condition = match user.engine_id.and_then(EngineId::oid) {
            Some(oid) => format!("r.oid = {oid}::pg_catalog.oid"),
            None => format!("r.rolname = {}", literal(user.username.as_str())),
        };
        let found = look(link, &condition).await?;
        let mine = format!("{}{} ", mark::prefix(&self.config.installation), user.lease);
        Ok(found.filter(|found| found.target.comment.starts_with(&mine)))
    }

    /// Ends the sessions of a role without reading a table; the broker is a member of those that the sweep has seen
    /// with sessions.
    async fn make_room(&self, link: &Link, oid: u32) -> Result<(), WarehouseError> {
        for _ in 0..2 {
            let pids = sessions(link, oid).await?;
            terminate(link, &pids).await;
            tokio::time::sleep(BETWEEN_SCANS * 5).await;
        }
        Ok(())
    }

    /// Ends the session of a lease that holds more locks than all others together. False: there is none. No table can be
    /// read then, so whose the sessions are is what the last sweep has seen.
    pub(super) async fn end_the_greediest(&self) -> bool {
        let Ok(link) = self.warehouse.end.take().await else {
            return false;
        };
        let text = "SELECT l.pid, a.usesysid, pg_catalog.count(*), pg_catalog.sum(pg_catalog.count(*)) OVER () \
             FROM pg_catalog.pg_lock_status() l LEFT JOIN pg_catalog.pg_stat_get_activity(NULL) a ON a.pid = l.pid \
             GROUP BY l.pid, a.usesysid ORDER BY 3 DESC LIMIT 1";
        let rows = link
            .query("look who holds the most locks", text)
            .await
            .unwrap_or_default();
        let number = |index| rows.first().and_then(|row| row.get(index)?.parse::<u32>().ok());
        let (Some(oid), Some(locks), Some(all)) = (number(1), number(2), number(3)) else {
            return false;
        };
        let user = self
            .warehouse
            .busy
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&oid)
            .cloned();
        let pid = number(0).and_then(|pid| i32::try_from(pid).ok());
        let (Some(user), Some(pid), true) = (user, pid, locks > all / 2) else {
            return false;
        };
        if terminate(&link, &[pid]).await == 0 {
            return false;
        }
        tracing::error!(
            server = %self.config.server,
            user,
            pid,
            locks,
            "ended a session that left others no room in the lock table; the lease goes on"
        );
        let deadline = Instant::now() + self.config.fence_timeout;
        while Instant::now() < deadline {
            tokio::time::sleep(BETWEEN_SCANS).await;
            if !sessions(&link, oid).await.is_ok_and(|pids| pids.contains(&pid)) {
                return true;
            }
        }
        false
    }

    /// The right to end sessions, before it is needed: for users that have some and that the broker has not joined
    /// yet. What fails is tried again by the next sweep.
    pub(super) async fn join_busy(&self, link: &Link, users: &[MarkedUser]) {
        for user in users.iter().filter(|user| user.sessions > 0) {
            let Some(oid) = user.engine_id.oid() else { continue };
            // The second value keeps the role in this session's cache.
            let text = format!(
                "SELECT pg_catalog.pg_has_role(CURRENT_USER, {oid}::pg_catalog.oid, 'USAGE'), pg_catalog.pg_get_userbyid({oid}::pg_catalog.oid)"
            );
            let joined = link.query("look whether the broker joined a user", &text).await;
            if joined.is_ok_and(|rows| rows.first().and_then(|row| row.get(0)) == Some("f"))
                && let Ok(Some(found)) = look(link, &format!("r.oid = {oid}::pg_catalog.oid")).await
                && found
                    .target
                    .comment
                    .starts_with(&mark::prefix(&self.config.installation))
                && self.join(link, &found.target).await.is_ok()
            {
                let _ = link.query("look whether the broker joined a user", &text).await;
            }
        }
    }

    /// The role is gone. Sessions and prepared transactions of its OID may not be, if somebody dropped it by hand; and
    /// without the role nobody but a superuser can end them.
    async fn orphans(&self, link: &Link, oid: u32) -> Result<EndOutcome, WarehouseError> {
        if look(link, &format!("r.oid = {oid}::pg_catalog.oid")).await?.is_some() {
            // Its mark is not ours: it is not touched.
            return Ok(EndOutcome::Dropped);
        }
        let mut left: Vec<String> = sessions(link, oid).await?.into_iter().map(session_name).collect();
        left.extend(prepared(link, oid, None).await?.into_iter().map(|p| p.describe()));
        Ok(if left.is_empty() {
            EndOutcome::Dropped
        } else {
            blocked(left)
        })
    }

    async fn ladder(&self, link: Taken, found: Found, heir: &Heir) -> Result<EndOutcome, WarehouseError> {
        let target = &found.target;
        failpoint::at(Point::EndFound).await;
        if let Some(left) = self.lock_out(&link, &found, heir).await? {
            return Ok(blocked(left));
        }
        let mut left = Vec::new();
        // Nearly every user owns nothing.
        if clean::count(&link, target.oid).await? > 0 {
            if !found.joined {
                self.join(&link, target).await?;
            }
            failpoint::at(Point::EndJoined).await;
            left = clean::clean(self, &link, target, heir).await?;
            failpoint::at(Point::EndCleaned).await;
            if clean::count(&link, target.oid).await? > clean::AT_ONCE {
                // DROP ROLE would write a line about each.
                return Ok(blocked(left));
            }
        }
        match self.drop_role(&link, target).await {
            Ok(()) => {
                failpoint::at(Point::EndDropped).await;
                self.orphans(&link, target.oid).await
            }
            Err(failure) if failure.code() == ANOTHER_ROLE => self.orphans(&link, target.oid).await,
            Err(failure) if failure.code() == LOCKED => {
                // Somebody who has named the role in an open transaction, as in a grant, keeps it from being dropped.
                left.extend(holders(&link, target.oid).await?);
                let transactions = prepared(&link, target.oid, heir.role()).await?;
                left.extend(transactions.iter().map(Prepared::describe));
                if left.is_empty() {
                    return Err(failure.into());
                }
                Ok(blocked(left))
            }
            Err(failure) if failure.code() == "2BP01" => {
                if left.is_empty() {
                    left = clean::dependencies(self, &link, target.oid).await?;
                }
                Ok(blocked(left))
            }
            Err(failure) => Err(failure.into()),
        }
    }

    /// The first three rungs, again and again until all hold or time is up. `Some`: locked out, but this still runs.
    async fn lock_out(&self, link: &Link, found: &Found, heir: &Heir) -> Result<Option<Vec<String>>, WarehouseError> {
        let target = &found.target;
        let deadline = Instant::now() + self.config.fence_timeout;
        let mut can_login = found.can_login;
        let mut joined = found.joined;
        let mut empty = 0;
        let mut seen: Vec<i32> = Vec::new();
        loop {
            let mut obstacle = None;
            if can_login {
                let act = Step::NoLogin {
                    role: target.name.clone(),
                };
                match link.run("lock a user out", &plan::guarded(target, [act])).await {
                    Ok(_) => {
                        can_login = false;
                        failpoint::at(Point::EndLoginsStopped).await;
                    }
                    Err(failure) if failure.code() == ANOTHER_ROLE => return Ok(None),
                    Err(failure @ Failure::Lost(_)) => return Err(failure.into()),
                    Err(failure) => obstacle = Some(failure),
                }
            }
            // Before 16 a membership of the lease in our own role stands in the way of ours in it.
            if link.era == Era::Before16 {
                revoke_memberships(link, target).await?;
            }
            let pids = all_pids(link, target.oid).await?;
            let transactions = prepared(link, target.oid, heir.role()).await?;
            let quiet = pids.is_empty() && transactions.is_empty();
            if !quiet && !joined {
                match self.join(link, target).await {
                    Ok(()) => joined = true,
                    Err(failure) => obstacle = obstacle.or(Some(failure)),
                }
            }
            if link.era == Era::From16 {
                revoke_memberships(link, target).await?;
            }
            failpoint::at(Point::EndMembershipsRevoked).await;
            let mut alive = terminate(link, &pids.own).await > 0;
            // Most of the others are not ours to end. One that is and that stays is a login asleep after its checks;
            // one that goes by itself may be a login of another lease.
            let asleep: Vec<i32> = pids.unknown.iter().copied().filter(|pid| seen.contains(pid)).collect();
            alive |= terminate_asleep(link, target, &asleep).await > 0;
            seen.clone_from(&pids.unknown);
            for transaction in &transactions {
                self.roll_back(transaction).await;
            }
            // What others have prepared can keep it from being dropped, and does nothing for it.
            let prepared_own = transactions.iter().any(|transaction| transaction.owner == target.name);
            empty = if alive || !pids.own.is_empty() || prepared_own || can_login {
                0
            } else {
                empty + 1
            };
            if empty >= 2 {
                failpoint::at(Point::EndSessionsEnded).await;
                return Ok(None);
            }
            if Instant::now() > deadline {
                let mut left: Vec<String> = pids.own.into_iter().map(session_name).collect();
                left.extend(transactions.iter().map(Prepared::describe));
                if let (true, Some(failure)) = (can_login, obstacle) {
                    return Err(failure.with_hint(left.join(", ")).into());
                }
                return Ok(Some(left));
            }
            tokio::time::sleep(BETWEEN_SCANS).await;
        }
    }

    /// Makes the broker a member of the user: the right to end its sessions and to clean up after it.
    pub(super) async fn join(&self, link: &Link, target: &Target) -> Result<(), Failure> {
        let grant = Step::Grant {
            roles: vec![target.name.clone()],
            to: BROKER.to_owned(),
            usage: Use::Both,
        };
        link.run_again("join a user's role", &plan::guarded(target, [grant]))
            .await?;
        Ok(())
    }

    async fn drop_role(&self, link: &Link, target: &Target) -> Result<(), Failure> {
        match link.run_again("drop a user", &plan::drop_role(target)).await {
            // Dropped by hand meanwhile; the caller looks for what it left.
            Err(failure) if failure.code() == "42704" => Ok(()),
            Err(failure) => Err(failure),
            Ok(_) => Ok(()),
        }
    }

    /// As its owner, in its database: nobody else but a superuser may. What fails is found again by the next scan.
    async fn roll_back(&self, transaction: &Prepared) {
        let Ok(link) = self.open(&transaction.database).await else {
            return;
        };
        let role = Step::SetRole {
            role: transaction.owner.clone(),
        };
        let roll_back = Step::RollbackPrepared {
            gid: transaction.gid.clone(),
        };
        if link.run("act as a prepared transaction's owner", &[role]).await.is_ok() {
            let _ = link.run("roll a prepared transaction back", &[roll_back]).await;
        }
    }

    /// A connection of its own to one database, for cleaning.
    pub(super) async fn open(&self, database: &str) -> Result<Link, Failure> {
        let limits = Limits {
            lock: self.config.end_lock_timeout,
            statement: self.config.end_timeout,
        };
        let connector: &Connector = &self.warehouse.connector;
        connector.open(database, limits).await
    }
}

/// What keeps a user, as it is stored, logged and shown: never nothing, and never long, whatever the user has made.
fn blocked(mut left: Vec<String>) -> EndOutcome {
    const NAMED: usize = 20;
    const CHARACTERS: usize = 300;
    let more = left.len().saturating_sub(NAMED);
    left.truncate(NAMED);
    for object in &mut left {
        if let Some((cut, _)) = object.char_indices().nth(CHARACTERS) {
            object.truncate(cut);
            object.push('…');
        }
    }
    if more > 0 {
        left.push(format!("and {more} more"));
    }
    if left.is_empty() {
        left.push("something that the broker cannot see".to_owned());
    }
    EndOutcome::Blocked(left)
}

fn session_name(pid: i32) -> String {
    format!("session with pid {pid}")
}

async fn look(link: &Link, condition: &str) -> Result<Option<Found>, WarehouseError> {
    let text = format!(
        "SELECT r.oid, r.rolname, pg_catalog.shobj_description(r.oid, 'pg_authid'), r.rolcanlogin, \
         pg_catalog.pg_has_role(CURRENT_USER, r.oid, 'USAGE') FROM pg_catalog.pg_roles r WHERE {condition}"
    );
    let rows = link.query("look for a user", &text).await?;
    Ok(rows.first().and_then(|row| {
        Some(Found {
            target: Target {
                oid: row.get(0)?.parse().ok()?,
                name: row.get(1)?.to_owned(),
                comment: row.get(2).unwrap_or_default().to_owned(),
            },
            can_login: row.get(3) == Some("t"),
            joined: row.get(4) == Some("t"),
        })
    }))
}
