//! What the contract needs of PostgreSQL.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use kdbt_api::Timestamp;
use kdbt_api::credential::Iterations;
use kdbt_api::name::{DbUsername, InstallationName};
use kdbt_broker::grant::{Access, Owner};
use kdbt_broker::warehouse::postgres::PostgresWarehouse;
use kdbt_broker::warehouse::{Needs, Warehouse};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tokio_util::task::TaskTracker;

use super::{World, deaf};
use crate::contract::warehouse::{Ground, HardOfHearing, OpenSession, Order, Standing};

impl World {
    fn order_of(&self, person: &str, slot: u16, access: Access, granted: &str, acts_as: Option<&str>) -> Order {
        let (user, secret) = self.user(person, slot, access, Iterations::One);
        let mut roles = BTreeSet::from([granted.to_owned()]);
        // Before 16 a login that acts as another role inherits nothing.
        if acts_as.is_none() || self.version().major() >= 16 {
            roles.insert(format!("kdbt__connect_{}", self.database));
        }
        Order {
            acts_as: acts_as.unwrap_or(user.username.as_str()).to_owned(),
            user,
            secret,
            roles,
        }
    }

    /// The table whose grant is in the way of a user's end.
    fn obstacle(user: &DbUsername) -> String {
        format!("public.foreign_fruit_{}", user.slot())
    }
}

/// Leases in even slots act as the owner role, those in odd slots read.
#[async_trait]
impl Ground for World {
    fn warehouse(&self) -> Arc<dyn Warehouse> {
        self.warehouse.clone()
    }

    fn installation(&self) -> &InstallationName {
        &self.config.installation
    }

    fn broker_of(&self, installation: &InstallationName) -> Arc<dyn Warehouse> {
        Arc::new(self.other_warehouse(installation.as_str()))
    }

    async fn hard_of_hearing(&self) -> Option<HardOfHearing> {
        let mut config = self.config.clone();
        let (port, lost) = deaf::wire_to(config.port, self.stop.child_token()).await;
        config.port = port;
        Some(HardOfHearing {
            warehouse: Arc::new(PostgresWarehouse::new(
                config,
                &TaskTracker::new(),
                self.stop.child_token(),
            )),
            missed: Box::new(move || lost.load(Ordering::SeqCst)),
        })
    }

    fn needs(&self) -> Needs {
        self.needs.clone()
    }

    fn order(&self, person: &str, slot: u16) -> Order {
        if slot.is_multiple_of(2) {
            let owner = self.owner.as_str();
            self.order_of(person, slot, self.act_as(), owner, Some(owner))
        } else {
            self.order_of(person, slot, self.read(), self.group.as_str(), None)
        }
    }

    fn order_without_a_role(&self, person: &str) -> Order {
        let missing = format!("missing_{}", self.tag);
        let access = Access::ActAs(Owner::Role(missing.parse().unwrap()));
        self.order_of(person, 0, access, &missing, Some(&missing))
    }

    async fn log_in(&self, user: &DbUsername, secret: &str) -> Option<Box<dyn OpenSession>> {
        match self.connect_as(&self.database, user.as_str(), secret).await {
            Ok(client) => Some(Box::new(client)),
            // invalid_password, invalid_authorization_specification
            Err(error) if matches!(error.code().map(SqlState::code), Some("28P01" | "28000")) => None,
            Err(error) => panic!("neither in nor refused: {error}"),
        }
    }

    async fn users(&self) -> BTreeMap<DbUsername, Standing> {
        let sql = format!(
            "SELECT rolname, coalesce(shobj_description(oid, 'pg_authid'), ''), \
             concat_ws(' ', oid, rolcanlogin, rolconnlimit, rolvaliduntil) \
             FROM pg_roles WHERE rolname ~ '^kdbt_[a-z]+_{}_[0-9]+$'",
            self.tag
        );
        let rows = self.execute("postgres", &sql).await.unwrap().into_iter();
        rows.map(|row| {
            let [name, mark, rest] = <[_; 3]>::try_from(row).unwrap().map(Option::unwrap);
            (name.parse().unwrap(), Standing { mark, rest })
        })
        .collect()
    }

    async fn roles_of(&self, user: &DbUsername) -> BTreeSet<String> {
        let sql = format!("SELECT roleid::regrole::text FROM pg_auth_members WHERE member = '{user}'::regrole");
        let rows = self.execute("postgres", &sql).await.unwrap();
        rows.into_iter().flatten().flatten().collect()
    }

    async fn clock(&self) -> Timestamp {
        let sql = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint";
        Timestamp::from_unix_millis(self.value("postgres", sql).await.parse().unwrap())
    }

    async fn make_by_hand(&self, user: &DbUsername, mark: &str) {
        let sql = format!("CREATE ROLE {user} LOGIN CONNECTION LIMIT 3");
        self.execute("postgres", &sql).await.unwrap();
        self.write_mark(user, mark).await;
    }

    async fn write_mark(&self, user: &DbUsername, mark: &str) {
        let sql = format!("COMMENT ON ROLE {user} IS '{}'", mark.replace('\'', "''"));
        self.execute("postgres", &sql).await.unwrap();
    }

    async fn rename_by_hand(&self, user: &DbUsername, to: &DbUsername) {
        let sql = format!("ALTER ROLE {user} RENAME TO {to}");
        self.execute("postgres", &sql).await.unwrap();
    }

    async fn drop_by_hand(&self, user: &DbUsername) {
        let sql = format!("DROP ROLE {user}");
        self.execute("postgres", &sql).await.unwrap();
    }

    async fn obstruct(&self, user: &DbUsername) -> Option<String> {
        let table = Self::obstacle(user);
        let sql = format!("CREATE TABLE {table} (i int); GRANT SELECT ON {table} TO {user}");
        self.execute(&self.database, &sql).await.unwrap();
        Some(table.replace("public.", ""))
    }

    async fn unblock(&self, user: &DbUsername) {
        let sql = format!("REVOKE SELECT ON {} FROM {user}", Self::obstacle(user));
        self.execute(&self.database, &sql).await.unwrap();
    }

    /// The server goes, and all names on it are this test's own.
    async fn clear(&self) {}
}

#[async_trait]
impl OpenSession for Client {
    async fn who(&self) -> (String, String) {
        let row = self.query_one("SELECT session_user::text, current_user::text", &[]);
        let row = row.await.unwrap();
        (row.get(0), row.get(1))
    }

    async fn goes_on(&self) -> bool {
        self.batch_execute("SELECT 1").await.is_ok()
    }
}
