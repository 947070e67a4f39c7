//! A stack with durable data, a bystander whose session stays open, and people beside who keep taking and giving back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kdbt_e2e::broker::{BrokerOptions, test_policies};
use kdbt_e2e::postgres::{PgOptions, PgVersion};
use kdbt_e2e::stack::{DATABASE, Stack, StackOptions};
use serde_json::{Value, json};
use tokio_postgres::{Client, SimpleQueryMessage};

pub(super) struct Scene {
    pub(super) stack: Stack,
    http: reqwest::Client,
    /// Its user is named by attacks, and must not suffer.
    pub(super) bystander: Lease,
    session: Client,
    superuser: Client,
    before: Vec<String>,
}

/// Who asks, with a fresh token.
pub(super) struct Person<'a> {
    scene: &'a Scene,
    token: String,
}

#[derive(Debug, Clone)]
pub(super) struct Lease {
    pub(super) id: String,
    pub(super) user: String,
    pub(super) password: String,
    token: String,
}

/// What the people beside have seen.
#[derive(Debug, Default)]
pub(super) struct Beside {
    /// How long each lease took to come.
    pub(super) issues: Vec<Duration>,
    /// How long each took to end.
    pub(super) ends: Vec<Duration>,
}

/// The data that must stay as they are, and all that is durable about roles and databases.
const DURABLE: &str = "
    SELECT md5(string_agg(l::text, ',' ORDER BY id)) FROM durable.ledger l
    UNION ALL SELECT md5(string_agg(o::text, ',' ORDER BY order_id)) FROM raw.orders o
    UNION ALL SELECT concat_ws(' ', relname, relowner::regrole, relacl, relrowsecurity, relhastriggers, relhasrules)
        FROM pg_class WHERE relnamespace IN ('durable'::regnamespace, 'raw'::regnamespace)
    UNION ALL SELECT concat_ws(' ', nspname, nspowner::regrole, nspacl) FROM pg_namespace WHERE nspname IN ('durable', 'raw', 'public')
    UNION ALL SELECT concat_ws(' ', datname, datdba::regrole, datacl) FROM pg_database
    UNION ALL SELECT concat_ws(' ', rolname, rolsuper, rolinherit, rolcreaterole, rolcreatedb, rolcanlogin, rolreplication, rolbypassrls, rolconnlimit, rolvaliduntil,
            shobj_description(oid, 'pg_authid'), (SELECT string_agg(roleid::regrole::text, ',' ORDER BY roleid) FROM pg_auth_members WHERE member = r.oid
            AND NOT coalesce(shobj_description(roleid, 'pg_authid'), '') LIKE 'kdbt/1 %'))
        FROM pg_roles r WHERE NOT coalesce(shobj_description(oid, 'pg_authid'), '') LIKE 'kdbt/1 %'
    UNION ALL SELECT concat_ws(' ', setdatabase, setrole, setconfig) FROM pg_db_role_setting
        WHERE setrole = 0 OR setrole IN ('kdbt__login_1'::regrole, 'kdbt__broker'::regrole)
    ORDER BY 1";

impl Scene {
    /// On a server with these settings.
    pub(super) async fn on(version: PgVersion, postgres: PgOptions) -> Result<Self> {
        let mut broker = BrokerOptions::new(test_policies());
        broker.more = "limits: { leases_per_person: 1000, leases_per_rule: 1000, leases_per_target: 1000 }\n".into();
        let options = StackOptions {
            version,
            postgres,
            keycloak: false,
            broker,
        };
        let stack = Stack::start(&options, |_| {}).await?;
        // More than the demo allows its owner role, so that there is more to attack with.
        let durable = "CREATE SCHEMA durable AUTHORIZATION dbt_analytics; \
             CREATE TABLE durable.ledger AS SELECT id, md5(id::text) AS entry FROM generate_series(1, 500) AS id; \
             ALTER TABLE durable.ledger OWNER TO dbt_analytics; GRANT CREATE ON DATABASE analytics TO dbt_analytics";
        stack.postgres.execute(DATABASE, durable).await?;
        let http = reqwest::Client::builder()
            .pool_max_idle_per_host(0)
            .timeout(Duration::from_secs(40))
            .build()?;
        let token = stack.identity.played().token_for("ada");
        let bystander = Lease::order(&http, &stack, token, "team", "1h").await?;
        let session = stack
            .postgres
            .connect_as(DATABASE, &bystander.user, &bystander.password)
            .await?;
        let superuser = stack.postgres.connect(DATABASE).await?;
        let mut scene = Self {
            stack,
            http,
            bystander,
            session,
            superuser,
            before: Vec::new(),
        };
        scene.before = scene.rows(DURABLE).await?;
        Ok(scene)
    }

    /// Somebody of this name who may take leases on the target.
    pub(super) fn person(&self, name: &str, target: &str) -> Person<'_> {
        let like = if target == "marts" { "grace" } else { "ada" };
        let forge = self.stack.identity.played().forge(like);
        let token = forge
            .claim("sub", format!("sub-{name}"))
            .claim("preferred_username", name);
        Person {
            scene: self,
            token: token.token(),
        }
    }

    /// The first column of a query by the superuser.
    pub(super) async fn rows(&self, sql: &str) -> Result<Vec<String>> {
        let messages = self.superuser.simple_query(sql).await.with_context(|| sql.to_owned())?;
        let first = |message| match message {
            SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
            _ => None,
        };
        Ok(messages.into_iter().filter_map(first).collect())
    }

    pub(super) async fn oid(&self, user: &str) -> Result<u32> {
        let oid = self.rows(&format!("SELECT '{user}'::regrole::oid")).await?;
        Ok(oid.first().context("no such role")?.parse()?)
    }

    pub(super) async fn metrics(&self) -> Result<String> {
        let url = format!("{}/metrics", self.stack.broker.management_url());
        Ok(reqwest::get(url).await?.text().await?)
    }

    /// Takes a lease, works with it and gives it back, over and over, until told to stop.
    pub(super) async fn beside(&self, stop: &AtomicBool) -> Result<Beside> {
        let mut beside = Beside::default();
        while !stop.load(Ordering::Relaxed) || beside.issues.len() < 6 {
            let start = Instant::now();
            let lease = self
                .person("ben", "team")
                .take("team", "10m")
                .await
                .context("somebody beside")?;
            beside.issues.push(start.elapsed());
            let session = self.stack.postgres.connect_as(DATABASE, &lease.user, &lease.password);
            let session = session.await.context("somebody beside logs in")?;
            let counted = session.query_one("SELECT count(*) FROM durable.ledger", &[]).await?;
            ensure!(counted.get::<_, i64>(0) == 500);
            let start = Instant::now();
            lease.revoke(self).await?;
            eventually(Duration::from_secs(20), async || {
                Ok(lease.view(self).await?["state"] == "ended")
            })
            .await
            .context("a lease of somebody beside does not end")?;
            beside.ends.push(start.elapsed());
        }
        Ok(beside)
    }

    /// Durable data and roles are what they were, and the bystander has noticed nothing.
    pub(super) async fn is_unharmed(&self) -> Result<()> {
        let now = self.rows(DURABLE).await?;
        let changed: Vec<_> = now
            .iter()
            .filter(|row| !self.before.contains(row))
            .chain(self.before.iter().filter(|row| !now.contains(row)))
            .collect();
        ensure!(changed.is_empty(), "changed: {changed:#?}");
        let who = self
            .session
            .query_one("SELECT current_user::text, session_user::text", &[])
            .await?;
        ensure!(who.get::<_, &str>(0) == "dbt_analytics" && who.get::<_, &str>(1) == self.bystander.user);
        for role in [
            "dbt_analytics",
            "kdbt__broker",
            "kdbt__login_1",
            "postgres",
            self.bystander.user.as_str(),
        ] {
            let login = self.stack.postgres.connect_as(DATABASE, role, "mine").await;
            ensure!(login.is_err(), "{role} has the holder's password");
        }
        Ok(())
    }
}

impl Person<'_> {
    pub(super) async fn take(&self, target: &str, ttl: &str) -> Result<Lease> {
        Lease::order(&self.scene.http, &self.scene.stack, self.token.clone(), target, ttl).await
    }
}

impl Lease {
    async fn order(http: &reqwest::Client, stack: &Stack, token: String, target: &str, ttl: &str) -> Result<Self> {
        let order = http.post(format!("{}/v1/leases", stack.broker.url()));
        let order = order.bearer_auth(&token).json(&json!({ "target": target, "ttl": ttl }));
        let answer = order.send().await?;
        let (status, text) = (answer.status(), answer.text().await?);
        if status != 201 {
            bail!("no lease: {status}: {text}");
        }
        let answer: Value = serde_json::from_str(&text)?;
        let text = |value: &Value| value.as_str().map(str::to_owned).context("a text is missing");
        Ok(Self {
            id: text(&answer["lease"]["id"])?,
            user: text(&answer["lease"]["user"])?,
            password: text(&answer["secret"]["password"])?,
            token,
        })
    }

    pub(super) async fn revoke(&self, scene: &Scene) -> Result<()> {
        let delete = scene
            .http
            .delete(format!("{}/v1/leases/{}", scene.stack.broker.url(), self.id));
        let answer = delete.bearer_auth(&self.token).send().await?;
        ensure!(matches!(answer.status().as_u16(), 200 | 202), "{answer:?}");
        Ok(())
    }

    /// Asks for a later end, and is told yes or no.
    pub(super) async fn renew(&self, scene: &Scene, ttl: &str) -> Result<()> {
        let renew = scene
            .http
            .post(format!("{}/v1/leases/{}/renew", scene.stack.broker.url(), self.id));
        renew
            .bearer_auth(&self.token)
            .json(&json!({ "ttl": ttl }))
            .send()
            .await?;
        Ok(())
    }

    pub(super) async fn view(&self, scene: &Scene) -> Result<Value> {
        let get = scene
            .http
            .get(format!("{}/v1/leases/{}", scene.stack.broker.url(), self.id));
        Ok(get
            .bearer_auth(&self.token)
            .send()
            .await?
            .error_for_status()?
            .json()
            .await?)
    }
}

/// Asks until it is so.
pub(super) async fn eventually(limit: Duration, mut so: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !so().await? {
        ensure!(start.elapsed() < limit, "not within {limit:?}");
        tokio::time::sleep(Duration::from_millis(80)).await;
    }
    Ok(())
}

/// The value that this share of all stays under.
pub(super) fn percentile(times: &[Duration], percent: usize) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    times
        .get(times.len() * percent / 100)
        .or(times.last())
        .copied()
        .unwrap_or_default()
}
