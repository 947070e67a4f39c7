//! The story on PostgreSQL. Whatever a scene says with a tick, it has asked the warehouse, dbt or the broker before.

use anyhow::{Context, Result, ensure};

use super::people::{self, Builder, Taken};
use super::screen::Screen;
use super::shell::Invitation;
use crate::client::Workstation;
use crate::stack::{DATABASE, Stack};

/// Plays all of it.
pub(super) async fn play(stack: &Stack, screen: &Screen) -> Result<Invitation> {
    let story = Story { stack, screen };
    let ada = story.ada_logs_in().await?;
    story.ada_builds_twice(&ada).await?;
    story.ben_goes_on().await?;
    story.who_owns_what().await?;
    story.ada_builds_in_her_own_schema(&ada).await?;
    let grace = story.grace_reads().await?;
    story.the_pipeline_builds().await?;
    story.nobody_is_left().await?;
    story.a_lease_runs_out(&ada).await?;
    let named = ["ada", "ben", "grace", "team", "dev"];
    people::the_audit_tells_it_all(screen, &stack.broker, &named).await?;
    Ok(Invitation {
        ada,
        grace,
        target: "dev",
        people: vec!["kdbt-client psql --target team".to_owned()],
        operator: vec![format!("psql '{}'", stack.postgres.superuser_url(DATABASE))],
    })
}

struct Story<'a> {
    stack: &'a Stack,
    screen: &'a Screen,
}

impl Story<'_> {
    async fn builder(&self, name: &'static str) -> Result<Builder> {
        let machine = self.stack.log_in(name).await?;
        Ok(Builder {
            name,
            machine,
            project: Stack::project()?,
        })
    }

    async fn build(&self, who: &Builder, target: &str) -> Result<()> {
        who.build(self.screen, target, &[]).await.map(drop)
    }

    /// Who wrote how many rows of the incremental model, most rows first.
    async fn written_by(&self, schema: &str) -> Result<Vec<(String, u32)>> {
        let sql = format!("SELECT built_by, count(*) FROM {schema}.orders GROUP BY 1 ORDER BY 2 DESC");
        let rows = self.stack.rows(&sql).await?;
        let pair = |row: Vec<String>| match row.as_slice() {
            [name, count] => Ok((name.clone(), count.parse()?)),
            _ => anyhow::bail!("two columns were asked for, not {row:?}"),
        };
        rows.into_iter().map(pair).collect()
    }

    async fn ada_logs_in(&self) -> Result<Builder> {
        self.screen.scene("Ada logs in");
        self.screen.command("ada", "kdbt-client login");
        let ada = self.builder("ada").await?;
        people::introduce(self.screen, "ada", &ada.machine, &["team", "dev"]).await?;
        Ok(ada)
    }

    async fn ada_builds_twice(&self, ada: &Builder) -> Result<()> {
        self.screen
            .scene("Ada builds the team's models, as a user that exists only meanwhile");
        self.build(ada, "team").await?;
        let login = self.all_rows_by_one("kdbt_ada_").await?;
        self.screen.seen(&format!("200 orders, each written by {login}"));
        self.gone(&login).await?;
        let before = self.relation("analytics_marts.orders").await?;

        self.build(ada, "team").await?;
        ensure!(
            self.relation("analytics_marts.orders").await? == before,
            "the incremental model was made anew"
        );
        let again = self.all_rows_by_one("kdbt_ada_").await?;
        ensure!(
            again == login,
            "the second lease was {again}, which empties dbt's parse cache"
        );
        self.screen
            .seen("the second run was incremental: same table, a day's rows replaced, same user name");
        Ok(())
    }

    async fn all_rows_by_one(&self, prefix: &str) -> Result<String> {
        match self.written_by("analytics_marts").await?.as_slice() {
            [(login, 200)] if login.starts_with(prefix) => Ok(login.clone()),
            other => anyhow::bail!("200 rows by one {prefix}… were expected, not {other:?}"),
        }
    }

    async fn relation(&self, name: &str) -> Result<String> {
        let rows = self.stack.rows(&format!("SELECT '{name}'::regclass::oid")).await?;
        rows.into_iter().flatten().next().context("no such relation")
    }

    /// That no such role is there any more.
    async fn gone(&self, login: &str) -> Result<()> {
        let rows = self
            .stack
            .rows(&format!("SELECT 1 FROM pg_roles WHERE rolname = '{login}'"))
            .await?;
        ensure!(rows.is_empty(), "{login} outlived its run");
        self.screen.seen(&format!("the role {login} is gone again"));
        Ok(())
    }

    async fn ben_goes_on(&self) -> Result<()> {
        self.screen.scene("Ben, of the same team, goes on where Ada stopped");
        self.screen.command("ben", "kdbt-client login");
        let ben = self.builder("ben").await?;
        self.build(&ben, "team").await?;
        let rows = self.written_by("analytics_marts").await?;
        match rows.as_slice() {
            [(first, 175), (second, 25)] if first.starts_with("kdbt_ada_") && second.starts_with("kdbt_ben_") => {
                self.screen
                    .seen(&format!("of 200 orders {first} wrote 175 and {second} the last 25"));
                self.gone(second).await
            }
            other => anyhow::bail!("175 rows of Ada's and 25 of Ben's were expected, not {other:?}"),
        }
    }

    async fn who_owns_what(&self) -> Result<()> {
        self.screen.scene("Who owns what they built");
        let owners = self.owners("analytics%").await?;
        self.screen.lines(
            owners
                .iter()
                .map(|[name, kind, owner]| format!("{name:42} {kind:6} {owner}")),
        );
        ensure!(owners.len() >= 8, "only {} relations were built", owners.len());
        ensure!(
            owners.iter().all(|[_, _, owner]| owner == "dbt_analytics"),
            "not everything belongs to dbt_analytics"
        );
        self.screen
            .seen("all of it belongs to the durable role dbt_analytics, nothing to a login");
        Ok(())
    }

    /// Name, kind and owner of what is in the schemas like this.
    async fn owners(&self, schemas: &str) -> Result<Vec<[String; 3]>> {
        let sql = format!(
            "SELECT n.nspname || '.' || c.relname, CASE c.relkind WHEN 'v' THEN 'view' ELSE 'table' END, \
             pg_get_userbyid(c.relowner) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE n.nspname LIKE '{schemas}' AND c.relkind IN ('r', 'v', 'm', 'p') ORDER BY 1"
        );
        let triple = |row: Vec<String>| {
            <[String; 3]>::try_from(row)
                .ok()
                .context("three columns were asked for")
        };
        self.stack.rows(&sql).await?.into_iter().map(triple).collect()
    }

    async fn ada_builds_in_her_own_schema(&self, ada: &Builder) -> Result<()> {
        self.screen.scene("Ada tries something in her own schema");
        self.build(ada, "dev").await?;
        let owners = self.owners("dbt_ada%").await?;
        let schemas: std::collections::BTreeSet<&str> = owners
            .iter()
            .filter_map(|[name, _, _]| name.split_once('.').map(|(schema, _)| schema))
            .collect();
        ensure!(
            schemas.len() >= 2 && owners.iter().all(|[_, _, owner]| owner == "kdbt__own_ada"),
            "in her schemas {schemas:?} are {owners:?}"
        );
        let schemas: Vec<&str> = schemas.into_iter().collect();
        self.screen.seen(&format!(
            "{} relations in {}, all of kdbt__own_ada",
            owners.len(),
            schemas.join(" and ")
        ));
        let rows = self.written_by("analytics_marts").await?;
        ensure!(rows.len() == 2, "the team's table has changed: {rows:?}");
        self.screen.seen("the team's models are untouched");
        Ok(())
    }

    async fn grace_reads(&self) -> Result<Workstation> {
        self.screen.scene("Grace, an analyst, reads the marts and nothing else");
        let grace = self.stack.log_in("grace").await?;
        let query = |sql: &'static str| ["psql", "--target", "marts", "--", "-XAtc", sql];
        self.screen.command(
            "grace",
            "kdbt-client psql --target marts -- -c 'SELECT sum(amount) FROM analytics_marts.orders'",
        );
        let sum = grace
            .run(&query("SELECT sum(amount) FROM analytics_marts.orders"))
            .await?
            .expect(0)?;
        let sum: f64 = sum.stdout.trim().parse().context("the sum is no number")?;
        ensure!(sum > 0.0, "the orders are worth nothing");
        self.screen.seen(&format!("she reads: the orders are worth {sum:.2}"));
        let raw = grace.run(&query("SELECT * FROM raw.orders")).await?;
        ensure!(
            raw.code != 0 && raw.stderr.contains("permission denied"),
            "she should not read raw data: {raw:?}"
        );
        self.screen.seen("raw data is refused to her by the warehouse");
        people::refused(self.screen, "grace", &grace, &Stack::project()?, "team").await?;
        Ok(grace)
    }

    async fn the_pipeline_builds(&self) -> Result<()> {
        self.screen
            .scene("The pipeline builds, with a service account instead of a person");
        let pipeline = Builder {
            name: "ci",
            machine: self.stack.pipeline()?,
            project: Stack::project()?,
        };
        self.build(&pipeline, "team").await?;
        let rows = self.written_by("analytics_marts").await?;
        let by_others = |login: &str| !login.starts_with("kdbt_ada_") && !login.starts_with("kdbt_ben_");
        let (login, _) = rows
            .iter()
            .find(|(login, count)| by_others(login) && *count == 25)
            .with_context(|| format!("the last 25 rows should be the pipeline's: {rows:?}"))?;
        self.screen.seen(&format!("the last 25 orders are written by {login}"));
        self.gone(login).await
    }

    async fn nobody_is_left(&self) -> Result<()> {
        self.screen.scene("What is left");
        let users = self.stack.lease_users().await?;
        ensure!(users.is_empty(), "lease users that are left: {users:?}");
        self.screen.seen("no lease user on the server");
        Ok(())
    }

    async fn a_lease_runs_out(&self, ada: &Builder) -> Result<()> {
        self.screen.scene("A lease runs out while somebody works with it");
        let ttl = people::shortest_ttl(&ada.machine, "dev").await?;
        let lease = Taken::by(self.screen, ada, "dev", &["--ttl", &ttl]).await?;
        let user = &lease.user;
        let password = lease.password.as_deref().context("the lease has no password")?;
        let session = self.stack.postgres.connect_as(DATABASE, user, password).await?;
        session.simple_query("SELECT 1").await?;
        self.screen
            .seen(&format!("{user} has an open session; its lease ends in {ttl}"));
        let exists = format!("SELECT 1 FROM pg_roles WHERE rolname = '{user}'");
        let late = lease
            .runs_out(async || Ok(!self.stack.rows(&exists).await?.is_empty()))
            .await?;
        ensure!(late >= 0.0, "{user} was dropped {:.1} s before the end", -late);
        self.screen
            .seen(&format!("the reaper dropped {user}, {late:.1} s after the lease's end"));
        let cut = session.simple_query("SELECT 1").await;
        ensure!(cut.is_err(), "the session outlived its user");
        self.screen.seen("its session was cut");
        let again = self.stack.postgres.connect_as(DATABASE, user, password).await;
        ensure!(again.is_err(), "the password still opens the warehouse");
        self.screen.seen("its password opens nothing any more");
        let schemas = self.owners("dbt_ada%").await?;
        ensure!(!schemas.is_empty(), "what she built is gone");
        self.screen.seen("what Ada built is still there, and still hers");
        Ok(())
    }
}
