//! A Snowflake account as ground: the simulated one, or a live one that environment variables lead to. Whatever is done
//! by hand goes over the SQL API, on both in the same way.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use async_trait::async_trait;
use kdbt_api::Timestamp;
use kdbt_api::credential::{PrivateKey, PublicKey};
use kdbt_api::name::{DbUsername, InstallationName, Slug, SnowflakeUsername};
use kdbt_broker::clock::system_clock;
use kdbt_broker::grant::{Access, SnowflakeRoles};
use kdbt_broker::warehouse::snowflake::{SnowflakeConfig, SnowflakeWarehouse};
use kdbt_broker::warehouse::{Credential, DatabaseNeeds, Needs, Warehouse};
use secrecy::ExposeSecret as _;

use self::hand::Hand;
use self::live::Live;
use super::{Ground, HardOfHearing, OpenSession, Order, Standing, new_user};
use crate::snowflake::Simulator;
use crate::snowflake::fault::Fault;

mod hand;
pub mod live;

/// What every name starts with that a test makes. Whoever finds such a user has found a test's.
pub const PREFIX: &str = "KDBT_CONTRACT_";
/// A user that a dead run has left behind is this old when the next run takes it away.
const ABANDONED: Duration = Duration::from_hours(1);
/// What the account's clock is ahead of ours, where we set it: a driver that asks the wrong one is found out.
const AHEAD_MS: i64 = 15_000;

/// A driver on an account, and the broker's own key for what is done by hand.
pub struct Lake {
    config: SnowflakeConfig,
    /// What leases get, in turns from slot to slot.
    roles: Vec<SnowflakeRoles>,
    warehouse: Arc<SnowflakeWarehouse>,
    hand: Hand,
    /// What tells this test's names from another's.
    tag: String,
    /// Where the account is simulated.
    simulator: Option<Simulator>,
    /// How many there have been.
    orders: AtomicUsize,
}

impl Lake {
    /// An account of its own, made by our own bootstrap.
    pub async fn simulated() -> Self {
        let simulator = Simulator::start("MYORG-MYACCT").await.unwrap();
        simulator.set_ahead(AHEAD_MS);
        let roles = "USE ROLE SECURITYADMIN; CREATE ROLE OWNER";
        simulator.run_script(roles).unwrap();
        let (key, _) = &KEYS[0];
        let account = Live {
            account: "myorg-myacct".parse().unwrap(),
            user: "KDBT_SVC".to_owned(),
            private_key: key.secret().clone(),
            role: "KDBT_BROKER".to_owned(),
            grant_role: "KDBT_ENT_OWNER".parse().unwrap(),
            session_role: "OWNER".parse().unwrap(),
            base_url: Some(simulator.url().parse().unwrap()),
        };
        let mut lake = Self::on(account, Some(simulator.clone()));
        let mut united = lake.roles[0].clone();
        united.grants.insert("KDBT_ENT_OWNER_TOO".parse().unwrap());
        lake.roles.push(united);
        // So that every listing has several.
        lake.config.page = 5;
        lake.warehouse = driver(lake.config.clone());
        let script = lake.warehouse.bootstrap(&lake.needs());
        simulator.run_script(&script).unwrap();
        lake
    }

    /// The account that the environment leads to. Takes away what an earlier run has left there, if one died.
    pub async fn live() -> Self {
        let account = Live::from_environment().unwrap();
        let account = account.unwrap_or_else(|| panic!("no account: set {}", Live::NEEDED.join(", ")));
        let lake = Self::on(account, None);
        lake.clear_abandoned().await;
        lake
    }

    /// The variables that lead another process to this account. The broker's key is written into the folder.
    pub fn variables(&self, folder: &Path) -> Vec<(&'static str, String)> {
        let config = &self.config;
        let file = folder.join("broker.p8");
        std::fs::write(&file, config.private_key.expose_secret()).unwrap();
        let roles = &self.roles[0];
        let values = [
            config.account.to_string(),
            config.user.clone(),
            file.display().to_string(),
            config.role.clone(),
            roles.grants.first().unwrap().to_string(),
            roles.session_role.to_string(),
        ];
        let base_url = config.base_url.iter().map(|url| (Live::BASE_URL, url.to_string()));
        Live::NEEDED.into_iter().zip(values).chain(base_url).collect()
    }

    /// The account, where it is simulated.
    pub fn simulator(&self) -> Option<&Simulator> {
        self.simulator.as_ref()
    }

    fn on(account: Live, simulator: Option<Simulator>) -> Self {
        let tag = format!("{:06x}", rand::random::<u32>() & 0x00ff_ffff);
        let hand = Hand::new(&account);
        let mut config = SnowflakeConfig::new(
            "lake".parse().unwrap(),
            format!("contract-{tag}").parse().unwrap(),
            account.account,
            account.user,
            account.role,
            account.private_key,
        );
        config.base_url = account.base_url;
        Self {
            warehouse: driver(config.clone()),
            config,
            roles: vec![SnowflakeRoles {
                grants: BTreeSet::from([account.grant_role]),
                session_role: account.session_role,
            }],
            hand,
            tag,
            simulator,
            orders: AtomicUsize::new(0),
        }
    }

    fn order_of(&self, person: &str, slot: u16, roles: SnowflakeRoles) -> Order {
        let slug: Slug = format!("contract_{}_{person}", self.tag).parse().unwrap();
        let key = self.orders.fetch_add(1, Ordering::Relaxed) % (KEYS.len() - 1);
        let (secret, public) = &KEYS[1 + key];
        let acts_as = roles.session_role.to_string();
        let granted = roles.grants.iter().map(ToString::to_string).collect();
        Order {
            user: new_user(
                &slug,
                slot,
                Credential::PublicKey(public.clone()),
                Access::Snowflake(roles),
                "ANALYTICS".parse().unwrap(),
                "MARTS".parse().unwrap(),
            ),
            secret: secret.secret().expose_secret().to_owned(),
            acts_as,
            roles: granted,
        }
    }

    /// Every user whose name starts so: its name, and its row.
    async fn listed(&self, prefix: &str) -> Vec<(String, BTreeMap<String, String>)> {
        let sql = format!("SHOW USERS STARTS WITH '{prefix}' LIMIT 10000");
        let rows = self.hand.manage(&sql).await.into_iter();
        rows.map(|row| (row["name"].clone(), row)).collect()
    }

    async fn clear_abandoned(&self) {
        let now = self.clock().await;
        for (name, row) in self.listed(PREFIX).await {
            let made = row
                .get("created_on")
                .and_then(|text| text.split('.').next()?.parse().ok());
            if made.is_some_and(|made| now.since(Timestamp::from_unix(made)) > ABANDONED) {
                self.hand.manage(&format!("DROP USER IF EXISTS \"{name}\"")).await;
            }
        }
    }
}

fn driver(config: SnowflakeConfig) -> Arc<SnowflakeWarehouse> {
    Arc::new(SnowflakeWarehouse::new(config, system_clock()).unwrap())
}

/// The simulated broker's key, and those that leases get in turns: a key takes its time, and two users in a row must
/// have two.
static KEYS: LazyLock<[(PrivateKey, PublicKey); 4]> =
    LazyLock::new(|| std::array::from_fn(|_| PrivateKey::generate().unwrap()));

fn in_account(user: &DbUsername) -> String {
    format!("\"{}\"", SnowflakeUsername::from(user))
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

#[async_trait]
impl Ground for Lake {
    fn warehouse(&self) -> Arc<dyn Warehouse> {
        self.warehouse.clone()
    }

    fn installation(&self) -> &InstallationName {
        &self.config.installation
    }

    fn broker_of(&self, installation: &InstallationName) -> Arc<dyn Warehouse> {
        let mut config = self.config.clone();
        config.installation = installation.clone();
        driver(config)
    }

    async fn hard_of_hearing(&self) -> Option<HardOfHearing> {
        let simulator = self.simulator.clone()?;
        simulator.fault("CREATE USER", Fault::LostAfter, 1);
        Some(HardOfHearing {
            warehouse: driver(self.config.clone()),
            missed: Box::new(move || simulator.transcript().iter().any(|said| said.retry)),
        })
    }

    fn needs(&self) -> Needs {
        let lake = DatabaseNeeds {
            database: "ANALYTICS".parse().unwrap(),
            owners: Vec::new(),
            groups: Vec::new(),
            zones: Vec::new(),
            own_schemas: false,
            create_schemas: false,
            connections: 0,
            targets: 1,
            roles: self.roles.clone(),
            warehouses: Vec::new(),
        };
        Needs { databases: vec![lake] }
    }

    fn order(&self, person: &str, slot: u16) -> Order {
        let roles = &self.roles[usize::from(slot) % self.roles.len()];
        self.order_of(person, slot, roles.clone())
    }

    fn order_without_a_role(&self, person: &str) -> Order {
        let missing = SnowflakeRoles {
            grants: BTreeSet::from([format!("MISSING_{}", self.tag.to_uppercase()).parse().unwrap()]),
            session_role: self.roles[0].session_role.clone(),
        };
        self.order_of(person, 0, missing)
    }

    async fn log_in(&self, user: &DbUsername, secret: &str) -> Option<Box<dyn OpenSession>> {
        let session = self.hand.of(SnowflakeUsername::from(user).as_str(), secret);
        session
            .goes_on()
            .await
            .then(|| Box::new(session) as Box<dyn OpenSession>)
    }

    async fn users(&self) -> BTreeMap<DbUsername, Standing> {
        let prefix = format!("{PREFIX}{}_", self.tag.to_uppercase());
        let listed = self.listed(&prefix).await.into_iter();
        listed
            .map(|(name, row)| {
                let shown = ["created_on", "owner", "disabled", "default_role", "expires_at_time"];
                let rest = shown.map(|column| row.get(column).cloned().unwrap_or_default());
                let mark = row.get("comment").cloned().unwrap_or_default();
                let rest = rest.join(" ");
                (name.to_lowercase().parse().unwrap(), Standing { mark, rest })
            })
            .collect()
    }

    async fn roles_of(&self, user: &DbUsername) -> BTreeSet<String> {
        let sql = format!("SHOW GRANTS TO USER {}", in_account(user));
        let rows = self.hand.manage(&sql).await.into_iter();
        rows.map(|mut row| row.remove("role").or_else(|| row.remove("name")).unwrap())
            .collect()
    }

    async fn clock(&self) -> Timestamp {
        self.hand.clock().await
    }

    /// Without a key or a role, and with an end that the account itself sees to.
    async fn make_by_hand(&self, user: &DbUsername, mark: &str) {
        let (name, mark) = (in_account(user), literal(mark));
        let sql = format!("CREATE USER {name} TYPE = SERVICE DAYS_TO_EXPIRY = 1 COMMENT = {mark}");
        self.hand.manage(&sql).await;
    }

    async fn write_mark(&self, user: &DbUsername, mark: &str) {
        let sql = format!("ALTER USER {} SET COMMENT = {}", in_account(user), literal(mark));
        self.hand.manage(&sql).await;
    }

    async fn rename_by_hand(&self, user: &DbUsername, to: &DbUsername) {
        let sql = format!("ALTER USER {} RENAME TO {}", in_account(user), in_account(to));
        self.hand.manage(&sql).await;
    }

    async fn drop_by_hand(&self, user: &DbUsername) {
        self.hand.manage(&format!("DROP USER {}", in_account(user))).await;
    }

    /// Nothing that is known keeps an account from dropping a user whom the broker owns: the simulated one just says no.
    async fn obstruct(&self, user: &DbUsername) -> Option<String> {
        let body = r#"{"code":"003001","sqlState":"42501","message":"no"}"#;
        let refusal = Fault::Status(422, Some(body.to_owned()));
        let drop = format!("DROP USER IF EXISTS {}", in_account(user));
        self.simulator.as_ref()?.fault(&drop, refusal, 1);
        Some("003001".to_owned())
    }

    /// It has said no once, and says it no more.
    async fn unblock(&self, _: &DbUsername) {}

    async fn clear(&self) {
        for user in self.users().await.into_keys() {
            let sql = format!("DROP USER IF EXISTS {}", in_account(&user));
            self.hand.manage(&sql).await;
        }
    }
}
