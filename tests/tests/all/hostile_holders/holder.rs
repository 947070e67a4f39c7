//! One holder of a lease: it does what its attack says, its lease ends, and what is left is looked at.

use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use kdbt_e2e::stack::DATABASE;
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use super::attack::{Act, Attack, Ends, Remains};
use super::scene::{Lease, Scene, eventually};

/// For one act.
const ACT: Duration = Duration::from_secs(10);
/// From the order to end a lease, or its end by time, to the last trace.
const END: Duration = Duration::from_secs(20);

pub(super) struct Holder<'a> {
    pub(super) scene: &'a Scene,
    pub(super) lease: Lease,
    pub(super) number: usize,
    pub(super) oid: u32,
    sessions: Mutex<Vec<Client>>,
    running: Mutex<Vec<JoinHandle<()>>>,
}

impl<'a> Holder<'a> {
    /// Takes a lease of its own on the target.
    pub(super) async fn new(scene: &'a Scene, number: usize, target: &str, ttl: &str) -> Result<Self> {
        let lease = scene.person(&format!("mal{number}"), target).take(target, ttl).await?;
        let oid = scene.oid(&lease.user).await?;
        Ok(Self {
            scene,
            lease,
            number,
            oid,
            sessions: Mutex::default(),
            running: Mutex::default(),
        })
    }

    /// The whole of an attack.
    pub(super) async fn attacks(scene: &'a Scene, number: usize, attack: &Attack) -> Result<()> {
        let ttl = if attack.ends == Ends::Expires { "4s" } else { "10m" };
        let holder = Self::new(scene, number, attack.target, ttl).await?;
        let first = holder.connect(DATABASE).await?;
        for act in attack.acts {
            tokio::time::timeout(ACT, holder.act(&first, act))
                .await
                .context("an act takes too long")??;
        }
        holder.keep(first);
        if attack.ends == Ends::Revoked {
            holder.lease.revoke(scene).await?;
        }
        holder.is_ended(attack.remains).await
    }

    async fn act(&self, session: &Client, act: &Act) -> Result<()> {
        let (sql, refused_with) = match act {
            Act::Does(sql) => (sql, None),
            Act::Refused(sql) => (sql, Some("42501")),
            Act::Fails(code, sql) => (sql, Some(*code)),
            Act::Tries(sql) => {
                let _ = session.batch_execute(&self.text(sql)).await;
                return Ok(());
            }
            Act::TriesIn(database, sql) => {
                if let Ok(there) = self.connect(database).await {
                    let _ = there.batch_execute(&self.text(sql)).await;
                    self.keep(there);
                }
                return Ok(());
            }
            Act::LeftRunning(sql) => return self.leave_running(sql).await,
            Act::Plays(play) => return play(self).await,
        };
        let done = session.batch_execute(&self.text(sql)).await;
        let code = done
            .as_ref()
            .err()
            .and_then(|error| error.code())
            .map(tokio_postgres::error::SqlState::code);
        ensure!(
            code == refused_with && (done.is_ok() == refused_with.is_none()),
            "`{sql}` came to {done:?} instead of {refused_with:?}"
        );
        Ok(())
    }

    fn text(&self, sql: &str) -> String {
        sql.replace("{me}", &self.lease.user)
            .replace("{other}", &self.scene.bystander.user)
            .replace("{n}", &self.number.to_string())
    }

    /// Runs it in a session of its own, and comes back when the server is at it.
    pub(super) async fn leave_running(&self, sql: &str) -> Result<()> {
        let client = self.connect(DATABASE).await?;
        let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
        let sql = self.text(sql);
        let run = tokio::spawn(async move {
            let _ = client.batch_execute(&sql).await;
        });
        self.running.lock().unwrap().push(run);
        let busy = format!("SELECT 1 FROM pg_stat_activity WHERE pid = {pid} AND state = 'active'");
        eventually(ACT, async || Ok(!self.scene.rows(&busy).await?.is_empty())).await
    }

    pub(super) async fn connect(&self, database: &str) -> Result<Client> {
        let postgres = &self.scene.stack.postgres;
        Ok(postgres
            .connect_as(database, &self.lease.user, &self.lease.password)
            .await?)
    }

    /// A session that is open when the lease ends.
    pub(super) fn keep(&self, session: Client) {
        self.sessions.lock().unwrap().push(session);
    }

    /// A task that goes on until its session is cut.
    pub(super) fn keep_running(&self, task: JoinHandle<()>) {
        self.running.lock().unwrap().push(task);
    }

    /// Waits until it has lost all rights, though a backend of it goes on, and what is waited for is named.
    pub(super) async fn waits_for_its_backend(&self, object: &str) -> Result<()> {
        let memberships = format!("SELECT 1 FROM pg_auth_members WHERE member = {}", self.oid);
        eventually(END, async || Ok(self.scene.rows(&memberships).await?.is_empty())).await?;
        let named = eventually(END, async || {
            let view = self.lease.view(self.scene).await?;
            Ok(view["blocked_by"].to_string().contains(object))
        });
        named.await.context("the backend is not named")
    }

    /// Waits for the end, and looks for everything that may not outlive it.
    pub(super) async fn is_ended(&self, remains: Remains<'_>) -> Result<()> {
        let mut seen = Value::Null;
        let wanted = match remains {
            Remains::Nothing => "ended",
            Remains::Quarantine(_) => "quarantined",
        };
        let ended = eventually(END, async || {
            seen = self.lease.view(self.scene).await?;
            Ok(seen["state"] == wanted)
        });
        ended.await.with_context(|| format!("not {wanted}, but {seen}"))?;
        if let Remains::Quarantine(object) = remains {
            self.is_reported(&seen, object).await?;
        }
        let oid = self.oid;
        let mut traces = vec![
            format!("SELECT 'session ' || pid FROM pg_stat_activity WHERE usesysid = {oid}"),
            format!("SELECT 'prepared ' || gid FROM pg_prepared_xact() WHERE ownerid = {oid}"),
            format!("SELECT 'member of ' || roleid::regrole FROM pg_auth_members WHERE member = {oid}"),
            format!("SELECT 'has login' FROM pg_roles WHERE oid = {oid} AND rolcanlogin"),
        ];
        if matches!(remains, Remains::Nothing) {
            traces.extend([
                format!("SELECT 'role ' || rolname FROM pg_roles WHERE oid = {oid}"),
                format!("SELECT 'depends ' || classid::regclass || ' ' || objid || ' in ' || dbid FROM pg_shdepend WHERE refclassid = 'pg_authid'::regclass AND refobjid = {oid}"),
                format!("SELECT 'granted by it' FROM pg_auth_members WHERE grantor = {oid}"),
                format!("SELECT 'setting' FROM pg_db_role_setting WHERE setrole = {oid}"),
            ]);
        }
        let left = self.scene.rows(&traces.join(" UNION ALL ")).await?;
        ensure!(left.is_empty(), "left: {left:?}");
        let sessions = std::mem::take(&mut *self.sessions.lock().unwrap());
        for session in sessions {
            ensure!(
                session.batch_execute("SELECT 1").await.is_err(),
                "a session still answers"
            );
        }
        let running = std::mem::take(&mut *self.running.lock().unwrap());
        for task in running {
            if tokio::time::timeout(ACT, task).await.is_err() {
                bail!("a session still runs");
            }
        }
        for password in [self.lease.password.as_str(), "mine"] {
            let login = self
                .scene
                .stack
                .postgres
                .connect_as(DATABASE, &self.lease.user, password)
                .await;
            ensure!(login.is_err(), "a login after the end");
        }
        Ok(())
    }

    /// What stands in the way is named to the holder, to the operator and in numbers; and steers no terminal.
    async fn is_reported(&self, view: &Value, object: &str) -> Result<()> {
        ensure!(view["blocked_by"].to_string().contains(object), "not named in {view}");
        let length = view["blocked_by"].to_string().len();
        ensure!(length < 10_000, "{length} bytes that the holder named");
        let log = self.scene.stack.broker.log()?;
        let named = log
            .lines()
            .any(|line| line.contains("user is quarantined") && line.contains(&self.lease.id));
        ensure!(named, "the log does not name {}", self.lease.id);
        ensure!(
            !log.contains(['\u{1b}', '\u{202e}']),
            "the log holds what the holder named"
        );
        let counted = eventually(Duration::from_secs(10), async || {
            let metrics = self.scene.metrics().await?;
            let line = r#"kdbt_leases{server="dwh",state="quarantined"} "#;
            let count = metrics.lines().find_map(|text| text.strip_prefix(line));
            Ok(count.is_some_and(|count| count != "0"))
        });
        counted.await.context("no number says so")?;
        Ok(())
    }
}
