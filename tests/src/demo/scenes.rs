//! The story, scene by scene. Whatever a scene says with a tick, it has asked the warehouse, dbt or the broker before.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::screen::Screen;
use crate::client::Workstation;
use crate::dbt::Project;
use crate::process::Finished;
use crate::stack::{DATABASE, Stack};

/// Somebody who builds: a machine, and a copy of the project on it.
#[derive(Debug)]
pub(super) struct Builder {
    pub(super) machine: Workstation,
    pub(super) project: Project,
}

/// Who is logged in when the story is told.
#[derive(Debug)]
pub(super) struct People {
    pub(super) ada: Builder,
    pub(super) grace: Workstation,
}

/// Plays all of it.
pub(super) async fn play(stack: &Stack, screen: &Screen) -> Result<People> {
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
    story.the_audit_tells_it_all().await?;
    Ok(People { ada, grace })
}

struct Story<'a> {
    stack: &'a Stack,
    screen: &'a Screen,
}

impl Story<'_> {
    async fn builder(&self, name: &str) -> Result<Builder> {
        let machine = self.stack.log_in(name).await?;
        Ok(Builder {
            machine,
            project: Stack::project()?,
        })
    }

    /// `kdbt-client exec --target T -- dbt build`; what it said.
    async fn build(&self, who: &str, machine: &Workstation, project: &Project, target: &str) -> Result<Finished> {
        self.screen
            .command(who, &format!("kdbt-client exec --target {target} -- dbt build"));
        let run = machine
            .run_in(project, &["exec", "--target", target, "--", "dbt", "build"])
            .await?;
        let run = run.expect(0).with_context(|| format!("{who} builds in {target}"))?;
        let summary = run.stdout.lines().find(|line| line.contains("Done. PASS="));
        let summary = summary.with_context(|| format!("dbt gave no summary:\n{}", run.stdout))?;
        ensure!(summary.contains("ERROR=0"), "dbt says: {summary}");
        let from = summary.find("PASS=").unwrap_or_default();
        self.screen.seen(&format!("dbt: {}", summary[from..].trim()));
        Ok(run)
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
        let who = ada.machine.run(&["whoami", "--json"]).await?.expect(0)?;
        ensure!(who.stdout.contains("ada"), "whoami says: {}", who.stdout);
        let listed = ada.machine.run(&["targets", "--json"]).await?.expect(0)?;
        let list: Value = serde_json::from_str(&listed.stdout).context("targets --json")?;
        let targets = list.as_array().context("no list of targets")?;
        let names: Vec<&str> = targets.iter().filter_map(|one| one["target"].as_str()).collect();
        ensure!(
            names.contains(&"team") && names.contains(&"dev"),
            "her targets are {names:?}"
        );
        self.screen
            .seen(&format!("she is logged in and may ask for: {}", names.join(", ")));
        Ok(ada)
    }

    async fn ada_builds_twice(&self, ada: &Builder) -> Result<()> {
        self.screen
            .scene("Ada builds the team's models, as a user that exists only meanwhile");
        self.build("ada", &ada.machine, &ada.project, "team").await?;
        let login = self.all_rows_by_one("kdbt_ada_").await?;
        self.screen.seen(&format!("200 orders, each written by {login}"));
        self.gone(&login).await?;
        let before = self.relation("analytics_marts.orders").await?;

        self.build("ada", &ada.machine, &ada.project, "team").await?;
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
        self.build("ben", &ben.machine, &ben.project, "team").await?;
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
        self.build("ada", &ada.machine, &ada.project, "dev").await?;
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
        self.screen
            .command("grace", "kdbt-client exec --target team -- dbt build");
        let project = Stack::project()?;
        let refused = grace
            .run_in(&project, &["exec", "--target", "team", "--", "dbt", "build"])
            .await?;
        ensure!(refused.code == 125, "building should be refused to her: {refused:?}");
        self.screen.lines(refused.stderr.lines());
        self.screen.seen("the team's target is refused to her by the policy");
        Ok(grace)
    }

    async fn the_pipeline_builds(&self) -> Result<()> {
        self.screen
            .scene("The pipeline builds, with a service account instead of a person");
        let pipeline = self.stack.pipeline()?;
        let project = Stack::project()?;
        self.build("ci", &pipeline, &project, "team").await?;
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
        let ttl = self.shortest_ttl(ada).await?;
        self.screen.command(
            "ada",
            &format!("kdbt-client profile --target dev --ttl {ttl} > profiles.yml"),
        );
        let taken = ada
            .machine
            .run(&["profile", "--target", "dev", "--ttl", &ttl, "--json"])
            .await?
            .expect(0)?;
        let lease: Value = serde_json::from_str(&taken.stdout).context("profile --json")?;
        let text = |value: &Value| {
            value
                .as_str()
                .map(str::to_owned)
                .context("a text is missing in the lease")
        };
        let user = text(&lease["connection"]["user"])?;
        let password = text(&lease["password"])?;
        let ends_at: jiff::Timestamp = text(&lease["lease"]["ends_at"])?.parse()?;

        let session = self.stack.postgres.connect_as(DATABASE, &user, &password).await?;
        session.simple_query("SELECT 1").await?;
        self.screen
            .seen(&format!("{user} has an open session; its lease ends in {ttl}"));
        let give_up = Instant::now() + Duration::from_mins(2);
        let exists = format!("SELECT 1 FROM pg_roles WHERE rolname = '{user}'");
        while !self.stack.rows(&exists).await?.is_empty() {
            ensure!(Instant::now() < give_up, "{user} is still there");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let late = jiff::Timestamp::now().duration_since(ends_at).as_secs_f32();
        ensure!(
            (0.0..10.0).contains(&late),
            "{user} was dropped {late:.1} s after the end"
        );
        self.screen
            .seen(&format!("the reaper dropped {user}, {late:.1} s after the lease's end"));
        let cut = session.simple_query("SELECT 1").await;
        ensure!(cut.is_err(), "the session outlived its user");
        self.screen.seen("its session was cut");
        let again = self.stack.postgres.connect_as(DATABASE, &user, &password).await;
        ensure!(again.is_err(), "the password still opens the warehouse");
        self.screen.seen("its password opens nothing any more");
        let schemas = self.owners("dbt_ada%").await?;
        ensure!(!schemas.is_empty(), "what she built is gone");
        self.screen.seen("what Ada built is still there, and still hers");
        Ok(())
    }

    /// The least that may be asked for in the target `dev`.
    async fn shortest_ttl(&self, ada: &Builder) -> Result<String> {
        let listed = ada.machine.run(&["targets", "--json"]).await?.expect(0)?;
        let list: Value = serde_json::from_str(&listed.stdout)?;
        let targets = list.as_array().context("no list of targets")?;
        let dev = targets
            .iter()
            .find(|one| one["target"] == "dev")
            .context("no target dev")?;
        let least = dev["ttl"]["min"].as_str().context("dev has no shortest TTL")?;
        Ok(least.to_owned())
    }

    async fn the_audit_tells_it_all(&self) -> Result<()> {
        self.screen.scene("What the audit says");
        self.screen.command("operator", "kdbt-broker audit show");
        let shown = Finished::of(self.stack.broker_command(&["audit", "show"])?)
            .await?
            .expect(0)?;
        let lines: Vec<&str> = shown.stdout.lines().collect();
        self.screen.lines(&lines[lines.len().saturating_sub(12)..]);
        for word in ["ada", "ben", "grace", "team", "dev"] {
            ensure!(shown.stdout.contains(word), "the audit does not name {word}");
        }
        self.screen
            .seen(&format!("{} lines, with each person and each refusal", lines.len()));
        let verified = Finished::of(self.stack.broker_command(&["audit", "verify"])?).await?;
        verified.expect(0).context("audit verify")?;
        self.screen.seen("its chain is whole");
        Ok(())
    }
}
