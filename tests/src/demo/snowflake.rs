//! The story on Snowflake, on a simulated account. Whatever a scene says with a tick, it has asked the account, dbt or the
//! broker before.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use super::people::{self, Builder, Taken};
use super::screen::Screen;
use super::shell::Invitation;
use crate::client::Workstation;
use crate::dbt::Dbt;
use crate::process::Finished;
use crate::snowflake::stack::{BROKER_ROLE, SnowflakeOptions, SnowflakeStack, demo_policies};

/// Said before the story and after it.
pub(super) const NO_ACCOUNT: [&str; 6] = [
    "This is no Snowflake. Simulated are the account (users, roles, grants, tokens, SQL API) and the login of dbt's",
    "sessions; dbt's SQL runs on DuckDB, by fakesnow. Real are broker, client, dbt-snowflake and Snowflake's connector.",
    "So it does not show that Snowflake takes each statement, how fast it is, what a session is told when its user is",
    "disabled, nor any right on data: no role is checked after the login here. What is assumed stands in",
    "docs/snowflake.md under \"What nobody could check\", with ten minutes of work for who has an account.",
    "",
];

/// The warehouse waits so long before each statement that a revocation comes in the middle of a build.
const SLOW: Duration = Duration::from_secs(1);
/// What dbt shows of a session whose user was disabled: in a statement, between two, before a new login.
const CUT: [&str; 3] = [
    "SQL execution canceled",
    "Session no longer exists",
    "JWT token is invalid",
];
/// What dbt shows of a login with a key that opens nothing.
const REFUSED: &str = "JWT token is invalid";

/// Starts all of it, as a DBA and an operator do.
pub(super) async fn stage(keycloak: bool, screen: &Screen) -> Result<SnowflakeStack> {
    screen.scene("A simulated account, a place to log in");
    let options = SnowflakeOptions {
        policies: demo_policies().to_owned(),
        keycloak,
        log: "info".to_owned(),
        gate: true,
    };
    let mut stack = SnowflakeStack::prepare(&options, |done| screen.seen(done)).await?;

    screen.scene("A DBA makes the account ready for the broker");
    screen.command("dba", "kdbt-broker doctor lake --bootstrap > bootstrap.sql");
    let script = stack.bootstrap_sql().await?;
    screen.lines(script.lines().map(short));
    stack.run_as_dba(&script).context("kdbt's bootstrap SQL")?;
    screen.seen("it ran in a worksheet, without an error");
    screen.command("dba", "kdbt-broker doctor lake --probe");
    let doctor = Finished::of(stack.broker.command(&["doctor", "lake", "--probe"])?).await?;
    let said = doctor.expect(0).context("kdbt-broker doctor")?.stdout;
    let bad = |line: &str| ["error", "warning"].iter().any(|bad| line.starts_with(bad));
    ensure!(!said.lines().any(bad), "the doctor is not content:\n{said}");
    ensure!(stack.lease_users().is_empty(), "the canary was left behind");
    screen.seen("nothing is missing; a canary user was made and dropped");
    stack.broker.start().await?;
    screen.seen(&format!("the broker serves {}", stack.broker.url()));
    Ok(stack)
}

/// Plays all of it.
pub(super) async fn play(stack: &SnowflakeStack, screen: &Screen) -> Result<Invitation> {
    let story = Story { stack, screen };
    let ada = story.ada_logs_in().await?;
    story.ada_builds_twice(&ada).await?;
    let grace = story.grace_is_refused().await?;
    let lease = story.ada_takes_a_profile(&ada).await?;
    story.it_is_revoked_while_dbt_builds(&ada, &lease).await?;
    story.a_lease_runs_out(&ada).await?;
    story.what_is_left()?;
    people::the_audit_tells_it_all(screen, &stack.broker, &["ada", "grace", "lake"]).await?;
    Ok(Invitation {
        ada,
        grace,
        target: "lake",
        people: Vec::new(),
        operator: Vec::new(),
    })
}

/// A line without the most of a key.
fn short(line: &str) -> String {
    match line.split_once("RSA_PUBLIC_KEY = '") {
        Some((start, key)) => format!("{start}RSA_PUBLIC_KEY = '{}…';", key.get(..16).unwrap_or_default()),
        None => line.to_owned(),
    }
}

struct Story<'a> {
    stack: &'a SnowflakeStack,
    screen: &'a Screen,
}

impl Story<'_> {
    async fn ada_logs_in(&self) -> Result<Builder> {
        self.screen.scene("Ada logs in");
        self.screen.command("ada", "kdbt-client login");
        let ada = Builder {
            name: "ada",
            machine: self.stack.log_in("ada").await?,
            project: SnowflakeStack::project(Dbt::Snowflake)?,
        };
        people::introduce(self.screen, "ada", &ada.machine, &["lake"]).await?;
        Ok(ada)
    }

    async fn ada_builds_twice(&self, ada: &Builder) -> Result<()> {
        self.screen.scene("Ada builds, as a user that exists only meanwhile");
        let first = ada.build(self.screen, "lake", &["--debug"]).await?.stdout;
        let logins = self.stack.gate()?.logins();
        ensure!(
            !logins.is_empty() && logins.iter().all(|user| user == "KDBT_ADA_0"),
            "dbt logged in as {logins:?}"
        );
        self.screen.seen(&format!(
            "dbt opened {} sessions with the key of KDBT_ADA_0; its own test saw that user and the role OWNER",
            logins.len()
        ));
        self.nobody("KDBT_ADA_0 is gone again")?;

        let second = ada.build(self.screen, "lake", &["--debug"]).await?.stdout;
        ensure!(
            second.contains("where id > (select max(id) from ANALYTICS.DBT_ADA.ledger)"),
            "the second build was not incremental:\n{second}"
        );
        let voided = "Unable to do partial parsing";
        ensure!(
            first.contains(voided) && !second.contains(voided),
            "the second lease emptied dbt's parse cache:\n{second}"
        );
        self.screen
            .seen("the second build was incremental, with dbt's parse cache of the first");
        self.nobody("and KDBT_ADA_0 is gone again")
    }

    fn nobody(&self, what: &str) -> Result<()> {
        let users = self.stack.lease_users();
        ensure!(users.is_empty(), "users that are left: {users:?}");
        self.screen.seen(what);
        Ok(())
    }

    async fn grace_is_refused(&self) -> Result<Workstation> {
        self.screen.scene("Grace, an analyst, may not build here");
        let grace = self.stack.log_in("grace").await?;
        let project = SnowflakeStack::project(Dbt::Snowflake)?;
        people::refused(self.screen, "grace", &grace, &project, "lake").await?;
        self.nobody("no user was made for her")?;
        Ok(grace)
    }

    async fn ada_takes_a_profile(&self, ada: &Builder) -> Result<Taken> {
        self.screen.scene("Ada takes a profile that stays, and renews it");
        let lease = Taken::by(self.screen, ada, "lake", &["--ttl", "30m"]).await?;
        self.screen
            .command("dba", &format!("SHOW USERS STARTS WITH 'KDBT_'   -- as {BROKER_ROLE}"));
        let user = self.show_users(&lease)?;
        for column in ["name", "type", "default_role", "days_to_expiry", "comment"] {
            let value = user.get(column).map(String::as_str).unwrap_or_default();
            self.screen.lines([format!("{column:16} {value}")]);
        }
        let comment = &user["comment"];
        ensure!(
            comment.starts_with("kdbt/1 ") && comment.contains(&lease.id) && user["type"] == "SERVICE",
            "the user has no mark of its lease: {user:?}"
        );
        ensure!(!comment.contains("ada"), "the mark names the person: {comment}");
        self.screen
            .seen("the mark names installation, lease and end, and no person; the user has a key and no password");

        self.screen
            .command("ada", &format!("kdbt-client renew {} --ttl 90m", lease.id));
        let renewed = ada.machine.run(&["renew", &lease.id, "--ttl", "90m"]).await?;
        renewed.expect(0).context("renew")?;
        let now = &self.show_users(&lease)?["comment"];
        ensure!(now != comment, "the end in the mark did not move: {now}");
        self.screen.lines([format!("{:16} {now}", "comment")]);
        self.screen.seen("the same user and key, and a later end in the mark");
        Ok(lease)
    }

    /// The lease's user as the broker's role sees it: each column with its value.
    fn show_users(&self, lease: &Taken) -> Result<BTreeMap<String, String>> {
        let shown = self.stack.simulator.ask(BROKER_ROLE, "SHOW USERS STARTS WITH 'KDBT_'");
        let shown = shown.map_err(|refusal| anyhow!("{}", refusal.message))?;
        let rows = shown.rows.into_iter().map(|row| {
            let values = row.into_iter().map(Option::unwrap_or_default);
            shown.columns.iter().cloned().zip(values).collect::<BTreeMap<_, _>>()
        });
        let name = lease.user.to_uppercase();
        let mut found = rows.filter(|row| row.get("name") == Some(&name));
        found.next().with_context(|| format!("there is no user {name}"))
    }

    async fn it_is_revoked_while_dbt_builds(&self, ada: &Builder, lease: &Taken) -> Result<()> {
        self.screen
            .scene("The lease is revoked while dbt builds with that profile");
        let gate = self.stack.gate()?;
        let before = gate.logins().len();
        gate.slow(SLOW);
        self.screen.command(
            "ada",
            "dbt build --profiles-dir .   # on a warehouse that takes its time",
        );
        let build = self.dbt(ada, lease, "build");
        let revoke = async {
            let give_up = Instant::now() + Duration::from_mins(1);
            while gate.logins().len() == before {
                ensure!(Instant::now() < give_up, "dbt did not log in");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            self.screen.seen("dbt is logged in and builds");
            self.screen.command("ada", &format!("kdbt-client revoke {}", lease.id));
            let revoked = ada.machine.run(&["revoke", &lease.id]).await?;
            revoked.expect(0).context("revoke")?;
            self.nobody("the user is gone")
        };
        let (build, revoked) = tokio::join!(build, revoke);
        gate.slow(Duration::ZERO);
        revoked?;
        let (code, said) = build?;
        let cut = CUT.iter().find(|cut| said.contains(*cut));
        let cut = cut.filter(|_| code != 0);
        let cut = cut.with_context(|| format!("the build was not cut (exit code {code}):\n{said}"))?;
        self.screen.seen(&format!("the build was cut: \"{cut}\""));
        self.refused(ada, lease).await
    }

    /// The profile of an ended lease opens nothing.
    async fn refused(&self, ada: &Builder, lease: &Taken) -> Result<()> {
        self.screen
            .command("ada", "dbt debug --profiles-dir .   # with the same key");
        let (code, said) = self.dbt(ada, lease, "debug").await?;
        ensure!(
            code != 0 && said.contains(REFUSED),
            "the key still opens the account (exit code {code}):\n{said}"
        );
        self.screen.seen(&format!("refused: \"{REFUSED}\""));
        Ok(())
    }

    /// dbt with a lease's profile, without our client: its exit code and all that it said.
    async fn dbt(&self, ada: &Builder, lease: &Taken, task: &str) -> Result<(i32, String)> {
        let folder = tempfile::tempdir()?;
        fs::write(folder.path().join("profiles.yml"), &lease.profile)?;
        let mut command = ada.project.command("dbt")?;
        command.arg(task).env("DBT_PROFILES_DIR", folder.path());
        let finished = Finished::of(command).await?;
        Ok((finished.code, finished.stdout + &finished.stderr))
    }

    async fn a_lease_runs_out(&self, ada: &Builder) -> Result<()> {
        self.screen.scene("A lease runs out, and nobody does anything");
        let ttl = people::shortest_ttl(&ada.machine, "lake").await?;
        let lease = Taken::by(self.screen, ada, "lake", &["--ttl", &ttl]).await?;
        let user = lease.user.to_uppercase();
        ensure!(self.stack.lease_users() == [user.clone()], "{user} does not exist");
        self.screen.seen(&format!("{user} exists; its lease ends in {ttl}"));
        let late = lease
            .runs_out(async || Ok(self.stack.lease_users().contains(&user)))
            .await?;
        // The broker reckons the account's clock from a round trip.
        ensure!(late > -1.0, "{user} was dropped {:.1} s before the end", -late);
        self.screen.seen(&format!(
            "the reaper dropped {user}, {:.1} s after the lease's end",
            late.max(0.0)
        ));
        self.refused(ada, &lease).await
    }

    fn what_is_left(&self) -> Result<()> {
        self.screen.scene("What is left");
        // Of the leases' users only: the doctor's canary has no role, and nobody can log in as it.
        let mut said = self.stack.simulator.transcript();
        said.retain(|said| said.outcome == Some(Ok(())) && said.text.contains("\"KDBT_ADA_"));
        let (mut made, mut dropped, mut disabled) = (0, 0, false);
        for said in &said {
            let does = |start: &str| said.text.starts_with(start);
            if does("CREATE USER") {
                (made, disabled) = (made + 1, false);
            } else if does("ALTER USER") {
                disabled |= said.text.contains("SET DISABLED = TRUE");
            } else if does("DROP USER") {
                ensure!(disabled, "dropped without being disabled: {}", said.text);
                dropped += 1;
            }
        }
        ensure!(
            made == 4 && dropped >= made,
            "{made} users were made and {dropped} dropped"
        );
        self.screen
            .seen(&format!("{made} users were made; each was disabled, and then dropped"));
        self.nobody("no lease user in the account")
    }
}
