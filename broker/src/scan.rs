//! The scan for what leases leave behind besides data, per server and database: what is new since the last scan goes into
//! the record of the leases that were live then (S9). Apart from the reaper, so that it never stands in an end's way.
//!
//! What it finds is for people: to remove it, or to approve it. It writes one thing only: default privileges of owner
//! roles that are approved and were dropped, which any member of their grantee can do (S7), are given again.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kdbt_api::Timestamp;
use kdbt_api::lease::LeaseId;
use kdbt_api::name::{DatabaseName, RoleName};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::audit::{Actor, AuditEvent};
use crate::broker::Broker;
use crate::diagnostics::Diagnostics;
use crate::grant::{Access, Owner, OwnerName};
use crate::lease::{Lease, Origin};
use crate::metrics::Metrics;
use crate::residue::{Approved, DefaultPrivilege, Difference, Kind, compare};
use crate::server::Server;
use crate::store::{LeaseFilter, LeaseStore, Page, Scan, StoreError};
use crate::warehouse::{Needs, WarehouseError};

/// After a scan that did not finish, unless the next one is due sooner.
const RETRY: Duration = Duration::from_mins(1);

/// So many findings of one scan are spelled out in the log and in one audit row, which says how many there are.
const SPELLED_OUT: usize = 50;

/// The scanner of one server.
pub struct Scanner {
    /// For its store and today's policy.
    pub broker: Arc<Broker>,
    /// The server.
    pub server: Arc<Server>,
    /// What happened, in numbers.
    pub metrics: Arc<Metrics>,
    /// How often.
    pub every: Duration,
    /// The file of what is approved.
    pub approved: Option<PathBuf>,
}

/// Why a scan did not finish.
#[derive(Debug, thiserror::Error)]
enum ScanError {
    #[error("there is no policy that says which roles to look for")]
    NoPolicy,
    #[error("the file of what is approved cannot be used:\n{0}")]
    Approved(Diagnostics),
    #[error("database `{0}` could not be looked at")]
    Warehouse(DatabaseName, #[source] WarehouseError),
    #[error("the store failed")]
    Store(#[from] StoreError),
}

impl Scanner {
    /// Scans at once and then whenever its time has come, until told to stop. A scan that is under way is left: it has
    /// written nothing by half.
    pub async fn run(self, stop: CancellationToken) {
        let rounds = async {
            loop {
                tokio::time::sleep(self.pass().await).await;
            }
        };
        stop.run_until_cancelled(rounds).await;
    }

    /// One scan; returns how long until the next.
    async fn pass(&self) -> Duration {
        match self.scan().await {
            Ok(findings) => {
                self.metrics.scanned(&self.server.name, findings);
                self.every
            }
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::error!(server = %self.server.name, error, "the scan for residue did not finish");
                RETRY.min(self.every)
            }
        }
    }

    /// Every database, even if one fails; how many differences there are in all.
    async fn scan(&self) -> Result<usize, ScanError> {
        let policy = self.broker.policies.load_full().ok_or(ScanError::NoPolicy)?;
        let needs = policy.needs(&self.server.name);
        let approved = self.approved().await?;
        let (mut findings, mut failed) = (0, None);
        for database in &needs.databases {
            match self.database(&database.database, &needs, &approved).await {
                Ok(differences) => findings += differences,
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(findings), Err)
    }

    /// Read again each time, so that an approval needs no restart.
    async fn approved(&self) -> Result<Approved, ScanError> {
        let Some(path) = self.approved.clone() else {
            return Ok(Approved::default());
        };
        let loaded = tokio::task::spawn_blocking(move || Approved::load(&path)).await;
        match loaded {
            Ok(loaded) => loaded.map_err(ScanError::Approved),
            Err(error) => Err(StoreError::Unavailable(error.to_string()).into()),
        }
    }

    async fn database(&self, database: &DatabaseName, needs: &Needs, approved: &Approved) -> Result<usize, ScanError> {
        let (store, server) = (self.broker.store.as_ref(), &self.server);
        let last = store.last_scan(&server.name, database).await?;
        let at = server.now();
        let residue = server.warehouse.residue(database, needs).await;
        let residue = residue.map_err(|error| ScanError::Warehouse(database.clone(), error))?;
        let differences = compare(&approved.of(&server.name, database), &residue);
        let known = last.as_ref().map(|last| &last.differences);
        let new: Vec<&Difference> = differences
            .iter()
            .filter(|difference| known.is_none_or(|known| !known.contains(difference)))
            .collect();
        let since = last.as_ref().map(|last| last.at);
        let audit = if new.is_empty() {
            Vec::new()
        } else {
            // What the first scan finds may be older than the broker: it is nobody's.
            let leases = match since {
                Some(since) => live_since(store, server, since).await?,
                None => Vec::new(),
            };
            self.report(database, since, &new, &leases)
        };
        let findings = differences.len();
        let scan = Scan {
            server: server.name.clone(),
            database: database.clone(),
            at,
            differences,
        };
        let gone = restorable(&scan.differences, needs);
        store.note_scan(scan, audit).await?;
        if !gone.is_empty() {
            let restored = server.warehouse.restore(database, &gone).await;
            restored.map_err(|error| ScanError::Warehouse(database.clone(), error))?;
            tracing::warn!(server = %server.name, %database, count = gone.len(), "lost default privileges were given again");
        }
        Ok(findings)
    }

    /// A log line for each finding; an audit row for each lease, or one if there is none.
    fn report(
        &self,
        database: &DatabaseName,
        since: Option<Timestamp>,
        new: &[&Difference],
        leases: &[Lease],
    ) -> Vec<AuditEvent> {
        let suspected: Vec<(&Difference, BTreeSet<LeaseId>)> = new
            .iter()
            .map(|difference| (*difference, suspects(difference, leases)))
            .collect();
        for (difference, suspects) in suspected.iter().take(SPELLED_OUT) {
            let leases: Vec<String> = suspects.iter().map(ToString::to_string).collect();
            tracing::warn!(server = %self.server.name, %database, %difference, ?leases, "residue was found");
        }
        if let Some(more) = new.len().checked_sub(SPELLED_OUT).filter(|more| *more > 0) {
            tracing::warn!(server = %self.server.name, %database, more, "more residue was found: the doctor lists it");
        }
        let of = |lease: Option<LeaseId>| -> Vec<&Difference> {
            let found = suspected.iter().filter(|(_, suspects)| match lease {
                Some(lease) => suspects.contains(&lease),
                None => suspects.is_empty(),
            });
            found.map(|(difference, _)| *difference).collect()
        };
        let of_leases = leases.iter().map(|lease| (Some(lease), of(Some(lease.id))));
        let of_nobody = std::iter::once((None, of(None)));
        let rows = of_leases.chain(of_nobody).filter(|(_, found)| !found.is_empty());
        rows.map(|(lease, found)| self.row(database, since, lease, &found))
            .collect()
    }

    fn row(
        &self,
        database: &DatabaseName,
        since: Option<Timestamp>,
        lease: Option<&Lease>,
        found: &[&Difference],
    ) -> AuditEvent {
        let spelled_out: Vec<String> = found.iter().take(SPELLED_OUT).map(ToString::to_string).collect();
        let details = [
            ("database", json!(database)),
            ("since", json!(since)),
            ("findings", json!(found.len())),
            ("found", json!(spelled_out)),
        ];
        AuditEvent {
            at: self.broker.clock.now(),
            action: "residue-found".into(),
            actor: Actor::Broker,
            lease: lease.map(|lease| lease.id),
            username: lease.map(|lease| lease.username.clone()),
            server: Some(self.server.name.clone()),
            target: lease.and_then(|lease| lease.target.clone()),
            details: details
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value))
                .collect(),
        }
    }
}

/// Those that an owner role of the policy gave to a role of the policy: the broker has the rights of the former.
fn restorable(differences: &BTreeSet<Difference>, needs: &Needs) -> Vec<DefaultPrivilege> {
    let lost = differences.iter().filter_map(|difference| match difference {
        Difference::Lost(residue) if residue.kind == Kind::DefaultPrivilege => residue.name.parse().ok(),
        Difference::Lost(_) | Difference::Unapproved(_) => None,
    });
    let owns = |role: &RoleName| needs.databases.iter().any(|database| database.owners.contains(role));
    let reads = |role: &RoleName| needs.databases.iter().any(|database| database.groups.contains(role));
    lost.filter(|lost: &DefaultPrivilege| owns(&lost.owner) && (reads(&lost.grantee) || owns(&lost.grantee)))
        .collect()
}

/// The leases that held the role; if none did, or if it is a loss, all: what is lost may have been dropped by any that
/// inherited from the role.
fn suspects(difference: &Difference, leases: &[Lease]) -> BTreeSet<LeaseId> {
    let owner = &difference.residue().owner;
    let holders: BTreeSet<_> = leases
        .iter()
        .filter(|lease| holds(lease, owner))
        .map(|lease| lease.id)
        .collect();
    match difference {
        Difference::Unapproved(_) if !holders.is_empty() => holders,
        Difference::Unapproved(_) | Difference::Lost(_) => leases.iter().map(|lease| lease.id).collect(),
    }
}

/// Whether the lease acted as the role or inherited from it. Of an adopted one only the owner is known.
fn holds(lease: &Lease, role: &str) -> bool {
    let owns = |owner: Option<OwnerName>| owner.is_some_and(|owner| owner.to_string() == role);
    let inherits = |groups: &BTreeSet<RoleName>| groups.iter().any(|group| group.as_str() == role);
    match &lease.origin {
        Origin::Adopted { owner, .. } => owns(owner.clone()),
        Origin::Issued(issue) => match &issue.grant.access {
            access @ Access::ActAs(Owner::Personal(personal)) => owns(access.owner()) || inherits(&personal.groups),
            access @ Access::ActAs(Owner::Role(_)) => owns(access.owner()),
            Access::Read(groups) => inherits(groups),
            Access::Snowflake(_) => false,
        },
    }
}

/// All leases of the server that had not ended by then.
async fn live_since(store: &dyn LeaseStore, server: &Server, since: Timestamp) -> Result<Vec<Lease>, StoreError> {
    let filter = LeaseFilter {
        server: Some(server.name.clone()),
        live_since: Some(since),
        ..LeaseFilter::default()
    };
    let mut leases = Vec::new();
    let mut page = Page {
        after: None,
        limit: 500,
    };
    loop {
        let found = store.leases(&filter, page).await?;
        leases.extend(found.leases);
        match found.next {
            Some(after) => page.after = Some(after),
            None => return Ok(leases),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::{LeaseState, SubjectHash};
    use crate::residue::Residue;
    use crate::warehouse::DatabaseNeeds;

    fn lease(owner: Option<&str>) -> Lease {
        let at = Timestamp::from_unix(1_788_300_000);
        Lease {
            id: LeaseId::new(uuid::Uuid::now_v7()),
            server: "dwh".parse().unwrap(),
            target: None,
            username: "kdbt_ada_0".parse().unwrap(),
            engine_id: None,
            origin: Origin::Adopted {
                subject: SubjectHash::of("https://sso", "ada"),
                owner: owner.map(|owner| owner.parse().unwrap()),
            },
            issued_at: at,
            ends_at: at,
            max_ends_at: at,
            state: LeaseState::Active,
            end_reason: None,
            last_error: None,
        }
    }

    fn residue(name: &str, owner: &str) -> Residue {
        Residue {
            kind: Kind::DefaultPrivilege,
            name: name.into(),
            owner: owner.into(),
            fingerprint: String::new(),
        }
    }

    #[test]
    fn whoever_held_the_role_is_named_or_else_everybody_who_was_there() {
        let leases = [lease(Some("dbt_finance")), lease(Some("kdbt__own_ben")), lease(None)];
        let [finance, ben, _reader] = leases.each_ref().map(|lease| lease.id);
        let all: BTreeSet<LeaseId> = leases.iter().map(|lease| lease.id).collect();
        let unapproved = |owner| suspects(&Difference::Unapproved(residue("d", owner)), &leases);
        assert_eq!(unapproved("dbt_finance"), [finance].into());
        assert_eq!(unapproved("kdbt__own_ben"), [ben].into());
        assert_eq!(unapproved("a_role_above"), all);
        assert_eq!(suspects(&Difference::Lost(residue("d", "dbt_finance")), &leases), all);
    }

    #[test]
    fn only_what_owner_roles_gave_to_roles_of_the_policy_is_given_again() {
        let needs = Needs {
            databases: vec![DatabaseNeeds {
                database: "analytics".parse().unwrap(),
                owners: vec!["dbt_finance".parse().unwrap()],
                groups: vec!["grp_ro".parse().unwrap()],
                zones: Vec::new(),
                own_schemas: false,
                create_schemas: false,
                connections: 1,
                targets: 1,
                roles: Vec::new(),
                warehouses: Vec::new(),
            }],
        };
        let given = |owner: &str, grantee: &str| {
            let name = format!("ALTER DEFAULT PRIVILEGES FOR ROLE {owner} GRANT SELECT ON TABLES TO {grantee}");
            residue(&name, owner)
        };
        let ours = given("dbt_finance", "grp_ro");
        let all = [&ours, &given("postgres", "grp_ro"), &given("dbt_finance", "stranger")].map(Clone::clone);
        let lost = all.iter().cloned().map(Difference::Lost).collect();
        assert_eq!(restorable(&lost, &needs), [ours.name.parse().unwrap()]);
        let there = all.into_iter().map(Difference::Unapproved).collect();
        assert_eq!(restorable(&there, &needs), []);
    }
}
