//! A broker with a real store, a clock that is moved by hand, and a server that is strict where the contract is.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use kdbt_api::Timestamp;
use kdbt_api::credential::Iterations;
use kdbt_api::lease::{ClientConfig, LeaseId, OrderRequest, SslMode};
use kdbt_api::name::InstallationName;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::broker::{Broker, HouseRules};
use crate::clock::{Clock as _, ManualClock};
use crate::config::Admin;
use crate::end;
use crate::identity::{Authenticator, Claims, Identity, Kind, Provides};
use crate::lease::{EngineId, UserRef};
use crate::mark::{self, Mark};
use crate::policy::PolicySet;
use crate::server::{PublicAddress, Server};
use crate::service::{IssueOrder, Issued, Service as _, UseCaseError};
use crate::store::Limits;
use crate::store::sqlite::{SqliteOptions, SqliteStore};
use crate::sweep;
use crate::warehouse::{
    CreateError, EndOutcome, Finding, MarkedUser, Needs, NewUser, Sweep, Warehouse, WarehouseError,
};

pub(super) const POLICY: &str = "\
kdbt: 1
targets: { dev: { server: dwh, engine: postgres, database: d, tier: dev } }
grants: { raw: { postgres: { member_of: [grp_raw] } }, other: { postgres: { member_of: [grp_other] } } }
rules:
  - { id: read, why: x, when: { realm_roles: [dev] }, targets: [dev], grants: [raw], ttl: { default: 1h, max: 4h }, profile: { schema: main } }
";

const SNOWFLAKE_POLICY: &str = "\
kdbt: 1
targets: { dev: { server: sf, engine: snowflake, database: d, tier: dev, warehouses: [w] } }
grants: { raw: { snowflake: { grant_role: KDBT_ENT_RAW, session_role: RAW_READER } } }
rules:
  - { id: read, why: x, when: { realm_roles: [dev] }, targets: [dev], grants: [raw], ttl: { default: 1h, max: 4h }, profile: { schema: main } }
";

/// What goes wrong in a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    LostBefore,
    LostAfter,
    Refused,
    Blocked,
}

#[derive(Debug, Clone)]
pub(super) struct Role {
    pub(super) name: String,
    pub(super) comment: Option<String>,
    pub(super) valid_until: Option<Timestamp>,
    pub(super) can_login: bool,
    pub(super) sessions: u32,
    pub(super) powerless: bool,
}

impl Role {
    pub(super) fn lease(&self) -> Option<LeaseId> {
        let mark: Mark = self.comment.as_ref()?.parse().ok()?;
        Some(mark.lease)
    }
}

/// Something that is done in the middle of the next call of that kind.
type Meanwhile = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

#[derive(Default)]
pub(super) struct Catalog {
    pub(super) roles: BTreeMap<u32, Role>,
    last_oid: u32,
    /// For the next calls, in order.
    pub(super) faults: VecDeque<Fault>,
    pub(super) before_create: Option<Meanwhile>,
    pub(super) after_look: Option<Meanwhile>,
    pub(super) before_extend: VecDeque<Meanwhile>,
}

pub(super) struct Simulated {
    pub(super) installation: InstallationName,
    pub(super) clock: Arc<ManualClock>,
    pub(super) catalog: Mutex<Catalog>,
}

fn lost() -> WarehouseError {
    WarehouseError::Unreachable("lost".into())
}

impl Simulated {
    /// Waits as a real server would, so that a caller may die before and after each call.
    async fn fault(&self) -> Option<Fault> {
        tokio::task::yield_now().await;
        self.catalog.lock().unwrap().faults.pop_front()
    }

    pub(super) fn add(&self, role: Role) -> u32 {
        let mut catalog = self.catalog.lock().unwrap();
        catalog.last_oid += 1;
        let oid = catalog.last_oid;
        catalog.roles.insert(oid, role);
        oid
    }

    fn find(&self, user: &UserRef) -> Option<u32> {
        let catalog = self.catalog.lock().unwrap();
        let found = catalog.roles.iter().find(|(oid, role)| {
            let meant = match user.engine_id.and_then(EngineId::oid) {
                Some(id) => **oid == id,
                None => role.name == user.username.as_str(),
            };
            meant && role.lease() == Some(user.lease)
        });
        found.map(|(oid, _)| *oid)
    }

    fn look(&self) -> Vec<MarkedUser> {
        let prefix = mark::prefix(&self.installation);
        let catalog = self.catalog.lock().unwrap();
        let users = catalog.roles.iter().filter_map(|(oid, role)| {
            let comment = role.comment.as_ref().filter(|comment| comment.starts_with(&prefix))?;
            Some(MarkedUser {
                username: role.name.parse().ok(),
                rolname: role.name.clone(),
                engine_id: EngineId::Oid(*oid),
                mark: comment
                    .parse()
                    .map_err(|error: crate::mark::MarkError| error.to_string()),
                native_end: role.valid_until,
                can_login: role.can_login,
                sessions: role.sessions,
                powerless: role.powerless,
            })
        });
        users.collect()
    }

    async fn end(&self, oid: Option<u32>) -> Result<EndOutcome, WarehouseError> {
        let fault = self.fault().await;
        let mut catalog = self.catalog.lock().unwrap();
        match fault {
            Some(Fault::LostBefore | Fault::Refused) => return Err(lost()),
            Some(Fault::Blocked) => {
                if let Some(role) = oid.and_then(|oid| catalog.roles.get_mut(&oid)) {
                    (role.can_login, role.sessions) = (false, 0);
                    return Ok(EndOutcome::Blocked(vec!["table t".into()]));
                }
            }
            Some(Fault::LostAfter) | None => {}
        }
        if let Some(oid) = oid {
            catalog.roles.remove(&oid);
        }
        if fault == Some(Fault::LostAfter) {
            return Err(lost());
        }
        Ok(EndOutcome::Dropped)
    }
}

#[async_trait]
impl Warehouse for Simulated {
    async fn create_user(&self, user: NewUser) -> Result<EngineId, CreateError> {
        let meanwhile = self.catalog.lock().unwrap().before_create.take();
        if let Some(meanwhile) = meanwhile {
            meanwhile.await;
        }
        let fault = self.fault().await;
        match fault {
            Some(Fault::LostBefore) => return Err(CreateError::Unknown(lost())),
            Some(Fault::Refused | Fault::Blocked) => return Err(CreateError::Refused(lost())),
            Some(Fault::LostAfter) | None => {}
        }
        let taken = |role: &Role| role.name == user.username.as_str();
        if self.catalog.lock().unwrap().roles.values().any(taken) {
            return Err(CreateError::NameTaken);
        }
        let mark = Mark {
            installation: self.installation.clone(),
            lease: user.lease,
            max_ends_at: user.max_ends_at,
            subject: user.subject.clone(),
            owner: user.access.owner(),
            ends_at: None,
        };
        let oid = self.add(Role {
            name: user.username.to_string(),
            comment: Some(mark.to_string()),
            valid_until: Some(user.ends_at),
            can_login: true,
            sessions: 1,
            powerless: false,
        });
        tokio::task::yield_now().await;
        match fault {
            Some(Fault::LostAfter) => Err(CreateError::Unknown(lost())),
            _ => Ok(EngineId::Oid(oid)),
        }
    }

    async fn extend_user(&self, user: &UserRef, ends_at: Timestamp) -> Result<(), WarehouseError> {
        let meanwhile = self.catalog.lock().unwrap().before_extend.pop_front();
        if let Some(meanwhile) = meanwhile {
            meanwhile.await;
        }
        let fault = self.fault().await;
        if matches!(fault, Some(Fault::LostBefore | Fault::Refused | Fault::Blocked)) {
            return Err(lost());
        }
        let oid = self.find(user).ok_or(WarehouseError::Gone)?;
        if let Some(role) = self.catalog.lock().unwrap().roles.get_mut(&oid) {
            role.valid_until = Some(ends_at);
        }
        tokio::task::yield_now().await;
        if fault.is_some() { Err(lost()) } else { Ok(()) }
    }

    async fn end_sessions(&self, user: &UserRef) -> Result<Option<u32>, WarehouseError> {
        let oid = self.find(user).ok_or(WarehouseError::Gone)?;
        let mut catalog = self.catalog.lock().unwrap();
        let role = catalog.roles.get_mut(&oid);
        Ok(Some(role.map_or(0, |role| std::mem::take(&mut role.sessions))))
    }

    async fn end_users(&self, users: &[UserRef]) -> Vec<Result<EndOutcome, WarehouseError>> {
        let mut outcomes = Vec::new();
        for user in users {
            outcomes.push(self.end(self.find(user)).await);
        }
        outcomes
    }

    async fn marked_users(&self) -> Result<Sweep, WarehouseError> {
        if self.fault().await.is_some() {
            return Err(lost());
        }
        let server_time = self.clock.now();
        let users = self.look();
        let meanwhile = self.catalog.lock().unwrap().after_look.take();
        if let Some(meanwhile) = meanwhile {
            meanwhile.await;
        }
        Ok(Sweep {
            users,
            server_time,
            round_trip: Duration::ZERO,
            login_within: Duration::from_mins(1),
        })
    }

    async fn end_marked(&self, user: &MarkedUser) -> Result<EndOutcome, WarehouseError> {
        self.end(user.engine_id.oid()).await
    }

    async fn check(&self, _: &Needs) -> Vec<Finding> {
        Vec::new()
    }
}

pub(super) struct World {
    pub(super) clock: Arc<ManualClock>,
    pub(super) warehouse: Arc<Simulated>,
    pub(super) broker: Option<Arc<Broker>>,
    folder: tempfile::TempDir,
}

pub(super) fn policy(text: &str) -> Arc<PolicySet> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("p.yaml"), text).unwrap();
    let loaded = PolicySet::load(folder.path(), &[]).unwrap_or_else(|found| panic!("{found}"));
    Arc::new(loaded.set)
}

pub(super) fn person(name: &str, roles: &[&str]) -> Identity {
    let values = json!({ "realm_access": { "roles": roles }, "preferred_username": name });
    Identity {
        issuer: "https://sso".into(),
        subject: name.parse().unwrap(),
        display_name: name.to_owned(),
        azp: "kdbt-cli".to_owned(),
        session: Some("session".to_owned()),
        kind: Kind::Person,
        token_id: None,
        issued_at: Timestamp::from_unix(0),
        expires_at: Timestamp::from_unix(300),
        claims: Claims {
            issuer: "https://sso".into(),
            values: values.as_object().unwrap().clone(),
            provides: Provides {
                realm_roles: true,
                ..Provides::default()
            }
            .into(),
        },
    }
}

pub(super) fn order() -> IssueOrder {
    IssueOrder {
        request: OrderRequest {
            target: "dev".parse().unwrap(),
            ttl: None,
            rules: Vec::new(),
            reason: None,
            verifier: None,
            public_key: None,
            profile: None,
            owner_proof: None,
        },
        idempotency_key: None,
    }
}

impl World {
    pub(super) fn new() -> Self {
        let clock = ManualClock::at(Timestamp::from_unix(1_800_000_000));
        let installation: InstallationName = "acme".parse().unwrap();
        let warehouse = Arc::new(Simulated {
            installation,
            clock: clock.clone(),
            catalog: Mutex::default(),
        });
        let mut world = Self {
            clock,
            warehouse,
            broker: None,
            folder: tempfile::tempdir().unwrap(),
        };
        world.restart();
        world
    }

    /// Another broker with the same clock and server and a store of its own.
    pub(super) fn beside(other: &Self) -> Self {
        let mut world = Self {
            clock: other.clock.clone(),
            warehouse: other.warehouse.clone(),
            broker: None,
            folder: tempfile::tempdir().unwrap(),
        };
        world.restart();
        world
    }

    pub(super) fn path(&self) -> PathBuf {
        self.folder.path().join("kdbt.db")
    }

    /// The same server as the address of a Snowflake account, with a policy for it.
    pub(super) fn on_snowflake() -> Self {
        let mut world = Self::new();
        let broker = world.broker();
        let name: kdbt_api::name::ServerName = "sf".parse().unwrap();
        let public = PublicAddress::Snowflake {
            account: "myorg-myacct".into(),
            address: None,
        };
        let every = Duration::from_secs(10);
        let server = Server::new(
            name.clone(),
            world.warehouse.clone(),
            public,
            every,
            world.clock.clone(),
        );
        world.broker = Some(Arc::new(Broker {
            store: broker.store.clone(),
            servers: BTreeMap::from([(name, Arc::new(server))]),
            policies: ArcSwapOption::new(Some(policy(SNOWFLAKE_POLICY))),
            policy_gate: tokio::sync::RwLock::default(),
            bookings: tokio::sync::RwLock::default(),
            authenticator: broker.authenticator.clone(),
            clock: broker.clock.clone(),
            rules: broker.rules.clone(),
            renewing: Mutex::default(),
            denials: Mutex::new((world.clock.now(), 0)),
        }));
        world
    }

    /// Another process on the same store: nothing but store and catalog is left of the one before.
    pub(super) fn restart(&mut self) {
        let policies = self.broker.take().map(|broker| broker.policies.load_full());
        let options = SqliteOptions::new(self.warehouse.installation.clone());
        let store = Arc::new(SqliteStore::open(&self.path(), options, self.clock.clone()).unwrap());
        let public = PublicAddress::Postgres {
            host: "h".into(),
            port: 1,
            sslmode: SslMode::Disable,
            ca_pem: None,
        };
        let name: kdbt_api::name::ServerName = "dwh".parse().unwrap();
        let every = Duration::from_secs(10);
        let server = Server::new(name.clone(), self.warehouse.clone(), public, every, self.clock.clone());
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        self.broker = Some(Arc::new(Broker {
            store,
            servers: BTreeMap::from([(name, Arc::new(server))]),
            policies: ArcSwapOption::new(policies.flatten().or_else(|| Some(policy(POLICY)))),
            policy_gate: tokio::sync::RwLock::default(),
            bookings: tokio::sync::RwLock::default(),
            authenticator: Authenticator::new(Vec::new(), self.clock.clone(), &tasks, &stop).unwrap(),
            clock: self.clock.clone(),
            rules: HouseRules {
                admins: vec![Admin::RealmRole("admin".into())],
                limits: Limits {
                    per_person: 8,
                    per_rule: 100,
                    per_target: 100,
                },
                broker_made_secrets: true,
                iterations: Iterations::One,
                client_config: ClientConfig {
                    installation: "acme".into(),
                    version: "0".into(),
                    issuers: Vec::new(),
                    scram_iterations: 1,
                },
            },
            renewing: Mutex::default(),
            denials: Mutex::new((self.clock.now(), 0)),
        }));
    }

    pub(super) fn lose_store(&mut self) {
        let policies = self.broker().policies.load_full();
        self.broker = None;
        for file in std::fs::read_dir(self.folder.path()).unwrap() {
            std::fs::remove_file(file.unwrap().path()).unwrap();
        }
        self.restart();
        self.broker().policies.store(policies);
    }

    /// Changes the row of a lease behind the store's back.
    pub(super) fn damage(&self, lease: LeaseId, change: &str) {
        let db = rusqlite::Connection::open(self.path()).unwrap();
        let changed = db.execute(
            &format!("UPDATE leases SET {change} WHERE id = ?1"),
            [lease.to_string()],
        );
        assert_eq!(changed.unwrap(), 1);
    }

    pub(super) fn broker(&self) -> Arc<Broker> {
        self.broker.clone().unwrap()
    }

    pub(super) fn server(&self) -> Arc<Server> {
        self.broker().servers.values().next().unwrap().clone()
    }

    pub(super) async fn sweep(&self) -> Option<sweep::SweepReport> {
        let broker = self.broker();
        sweep::sweep(broker.store.as_ref(), &self.server(), self.clock.as_ref())
            .await
            .ok()
    }

    pub(super) async fn pass(&self) -> end::PassReport {
        let report = end::end_due(self.broker().store.as_ref(), &self.server())
            .await
            .unwrap();
        self.server().pass_done();
        report
    }

    pub(super) async fn issue(&self, who: &Identity) -> Result<Issued, UseCaseError> {
        self.broker().issue(who, order()).await
    }

    pub(super) async fn state(&self, id: LeaseId) -> crate::lease::Lease {
        self.broker().store.lease(id).await.unwrap()
    }

    pub(super) fn roles(&self) -> Vec<Role> {
        self.warehouse.catalog.lock().unwrap().roles.values().cloned().collect()
    }
}
