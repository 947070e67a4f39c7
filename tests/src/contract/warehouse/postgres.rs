//! A real PostgreSQL as ground, with a broker that is no superuser and holds only what our own bootstrap gives it. What
//! a lease holder or a DBA may do is planted by hand, as that person.

use std::collections::BTreeSet;
use std::io::Write;
use std::ops::Deref;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kdbt_api::credential::{Iterations, Password};
use kdbt_api::name::{RoleName, Slug};
use kdbt_broker::grant::{Access, Owner, OwnerName, Personal};
use kdbt_broker::lease::{EngineId, UserRef};
use kdbt_broker::warehouse::postgres::{Era, PostgresConfig, PostgresWarehouse, Tls, bootstrap};
use kdbt_broker::warehouse::{Credential, DatabaseNeeds, EndOutcome, Needs, NewUser, Warehouse};
use rand::SeedableRng;
use secrecy::ExposeSecret;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{new_user, user_ref};
use crate::postgres::{PgOptions, PgServer, PgVersion, Postgres, unique};

mod deaf;
mod ground;

/// A server that is shared, or this test's own.
enum Server {
    Shared(&'static Postgres),
    Own(Box<PgServer>),
}

/// A driver under test and the ground it stands on: two databases, an owner role, a group with one table to read.
pub struct World {
    server: Server,
    /// The driver.
    pub warehouse: Arc<PostgresWarehouse>,
    /// How the driver was configured, for a second one.
    pub config: PostgresConfig,
    /// What the policy needs here.
    pub needs: Needs,
    /// The suffix of all names of this test.
    pub tag: String,
    /// The target's database.
    pub database: String,
    /// Another one that leases may connect to.
    pub second: String,
    /// The DBA's owner role.
    pub owner: RoleName,
    /// The DBA's group role; it may read `marts.fruit`.
    pub group: RoleName,
    stop: CancellationToken,
}

impl Deref for World {
    type Target = Postgres;

    fn deref(&self) -> &Postgres {
        match &self.server {
            Server::Shared(server) => server,
            Server::Own(server) => server,
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl World {
    /// On the server that all tests of a run share.
    pub async fn shared(version: PgVersion) -> Self {
        Self::on(Server::Shared(Postgres::shared(version))).await
    }

    /// On a server with these settings.
    pub async fn own(version: PgVersion, options: &PgOptions) -> Self {
        Self::on(Server::Own(Box::new(PgServer::start(version, options).unwrap()))).await
    }

    async fn on(server: Server) -> Self {
        let tag = format!("t{}", unique());
        let postgres: &Postgres = match &server {
            Server::Shared(server) => server,
            Server::Own(server) => server,
        };
        let (database, second) = (format!("dwh_{tag}"), format!("raw_{tag}"));
        postgres.create_database(&database).await.unwrap();
        postgres.create_database(&second).await.unwrap();
        let owner: RoleName = format!("dbt_{tag}").parse().unwrap();
        let group: RoleName = format!("grp_{tag}").parse().unwrap();
        let of = |database: &str| DatabaseNeeds {
            database: database.parse().unwrap(),
            owners: vec![owner.clone()],
            groups: vec![group.clone()],
            zones: Vec::new(),
            own_schemas: true,
            create_schemas: true,
            connections: 20,
            targets: 1,
            roles: Vec::new(),
            warehouses: Vec::new(),
        };
        let needs = Needs {
            databases: vec![of(&database), of(&second)],
        };
        let login = format!("kdbt__login_{tag}");
        let mut config = PostgresConfig::new(
            "dwh".parse().unwrap(),
            format!("acme-{tag}").parse().unwrap(),
            "127.0.0.1".to_owned(),
            login.clone(),
            "broker-password".into(),
        );
        config.port = postgres.port();
        config.tls = Tls::Plain;
        config.accept_createrole = true;
        config.fence_timeout = Duration::from_secs(4);
        let script = bootstrap::script(
            &needs,
            Era::of(postgres.version().major() * 10_000),
            &config.installation,
            &login,
        );
        run_bootstrap(postgres, &script);
        postgres
            .execute(
                &database,
                &format!(
                    "CREATE SCHEMA marts AUTHORIZATION {owner}; CREATE TABLE marts.fruit AS SELECT 1 AS id; ALTER TABLE marts.fruit OWNER TO {owner}; \
                     GRANT USAGE ON SCHEMA marts TO {group}; GRANT SELECT ON marts.fruit TO {group}"
                ),
            )
            .await
            .unwrap();
        let stop = CancellationToken::new();
        let warehouse = PostgresWarehouse::new(config.clone(), &TaskTracker::new(), stop.clone());
        Self {
            server,
            warehouse: Arc::new(warehouse),
            config,
            needs,
            tag,
            database,
            second,
            owner,
            group,
            stop,
        }
    }

    /// A second broker, such as another installation's.
    pub fn other_warehouse(&self, installation: &str) -> PostgresWarehouse {
        self.warehouse_of(|config| config.installation = installation.parse().unwrap())
    }

    /// A broker of the same installation with other settings.
    pub fn warehouse_of(&self, change: impl FnOnce(&mut PostgresConfig)) -> PostgresWarehouse {
        let mut config = self.config.clone();
        change(&mut config);
        PostgresWarehouse::new(config, &TaskTracker::new(), self.stop.child_token())
    }

    /// The user of one slot of the person `name`, and its password.
    pub fn user(&self, name: &str, slot: u16, access: Access, iterations: Iterations) -> (NewUser, String) {
        let mut rng = rand::rngs::StdRng::seed_from_u64(rand::random());
        let password = Password::generate(&mut rng);
        let user = new_user(
            &self.slug(name),
            slot,
            Credential::Verifier(password.verifier(iterations, &mut rng)),
            access,
            self.database.parse().unwrap(),
            "marts".parse().unwrap(),
        );
        (user, password.secret().expose_secret().to_owned())
    }

    fn slug(&self, name: &str) -> Slug {
        format!("{name}_{}", self.tag).parse().unwrap()
    }

    /// Acts as the DBA's owner role.
    pub fn act_as(&self) -> Access {
        Access::ActAs(Owner::Role(self.owner.clone()))
    }

    /// Reads what the group reads.
    pub fn read(&self) -> Access {
        Access::Read(BTreeSet::from([self.group.clone()]))
    }

    /// Acts as the person's own role.
    pub fn personal(&self, name: &str) -> Access {
        let slug = self.slug(name);
        Access::ActAs(Owner::Personal(Personal {
            schemas: vec![format!("dbt_{slug}").parse().unwrap()],
            slug,
            create_schemas: false,
            groups: BTreeSet::from([self.group.clone()]),
        }))
    }

    /// Issues it, and says how to refer to it.
    pub async fn issue(&self, user: &NewUser) -> UserRef {
        let engine_id = self.warehouse.create_user(user.clone()).await.unwrap();
        user_ref(user, Some(engine_id))
    }

    /// Issues a user of that access, in slot 0.
    pub async fn lease(&self, name: &str, access: Access) -> Lease<'_> {
        let (user, password) = self.user(name, 0, access, Iterations::One);
        Lease {
            world: self,
            at: self.issue(&user).await,
            user,
            password,
        }
    }

    /// Ends one user.
    pub async fn end(&self, user: &UserRef) -> EndOutcome {
        let mut outcomes = self.warehouse.end_users(std::slice::from_ref(user)).await;
        outcomes.pop().unwrap().unwrap()
    }

    /// The one value of a superuser's query.
    pub async fn value(&self, database: &str, sql: &str) -> String {
        let rows = self.execute(database, sql).await.unwrap();
        rows.first()
            .and_then(|row| row.first().cloned().flatten())
            .unwrap_or_default()
    }

    /// How many rows a superuser's query has.
    pub async fn count(&self, database: &str, sql: &str) -> usize {
        self.execute(database, sql).await.unwrap().len()
    }

    /// Whether a role of that OID, a session or a prepared transaction of it is left.
    pub async fn left_of(&self, user: &UserRef) -> usize {
        let Some(EngineId::Oid(oid)) = user.engine_id else {
            return 0;
        };
        let sql = format!(
            "SELECT 1 FROM pg_roles WHERE oid = {oid} UNION ALL SELECT 2 FROM pg_stat_activity WHERE usesysid = {oid} \
             UNION ALL SELECT 3 FROM pg_prepared_xact() WHERE ownerid = {oid}"
        );
        self.count("postgres", &sql).await
    }
}

/// A user that was issued.
pub struct Lease<'a> {
    world: &'a World,
    /// What was asked for.
    pub user: NewUser,
    /// How to refer to it.
    pub at: UserRef,
    /// Its password.
    pub password: String,
}

impl Lease<'_> {
    /// Its name.
    pub fn name(&self) -> &str {
        self.user.username.as_str()
    }

    /// A login of its own.
    pub async fn login(&self, database: &str) -> Result<Client, tokio_postgres::Error> {
        self.world.connect_as(database, self.name(), &self.password).await
    }
}

/// With psql, as the DBA does; one at a time, since all tests of a server share the broker's role.
fn run_bootstrap(server: &Postgres, script: &str) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    // Twice, since it must be fit to be run again.
    for _ in 0..2 {
        let mut psql = server
            .program("psql")
            .unwrap()
            .args([
                "-X",
                "-v",
                "ON_ERROR_STOP=1",
                "-v",
                "login_password=broker-password",
                "-f",
                "-",
                "postgres",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        psql.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        let output = psql.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}\n{script}");
    }
}

/// The name of a person's own role.
pub fn own_role(access: &Access) -> String {
    access.owner().map(|owner: OwnerName| owner.to_string()).unwrap()
}
