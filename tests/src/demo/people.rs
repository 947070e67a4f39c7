//! What both stories do: people log in, build and take leases, and the operator reads the audit.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde_json::Value;

use super::screen::Screen;
use crate::broker::Broker;
use crate::client::Workstation;
use crate::dbt::Project;
use crate::process::Finished;

/// Somebody who builds: a machine, and a copy of the project on it.
#[derive(Debug)]
pub(super) struct Builder {
    pub(super) name: &'static str,
    pub(super) machine: Workstation,
    pub(super) project: Project,
}

impl Builder {
    /// `kdbt-client exec --target T -- dbt <arguments> build`; what it said.
    pub(super) async fn build(&self, screen: &Screen, target: &str, arguments: &[&str]) -> Result<Finished> {
        let all = [&["exec", "--target", target, "--", "dbt"], arguments, &["build"]].concat();
        screen.command(self.name, &format!("kdbt-client {}", all.join(" ")));
        let run = self.machine.run_in(&self.project, &all).await?;
        let run = run
            .expect(0)
            .with_context(|| format!("{} builds in {target}", self.name))?;
        let summary = run.stdout.lines().find(|line| line.contains("Done. PASS="));
        let summary = summary.with_context(|| format!("dbt gave no summary:\n{}", run.stdout))?;
        ensure!(summary.contains("ERROR=0"), "dbt says: {summary}");
        let (_, counts) = summary.split_once("Done. ").unwrap_or_default();
        screen.seen(&format!("dbt: {}", counts.trim()));
        Ok(run)
    }
}

/// That she is who she says, and which targets she may ask for: these are among them.
pub(super) async fn introduce(screen: &Screen, who: &str, machine: &Workstation, expected: &[&str]) -> Result<()> {
    let whoami = machine.run(&["whoami", "--json"]).await?.expect(0)?;
    ensure!(whoami.stdout.contains(who), "whoami says: {}", whoami.stdout);
    let targets = targets(machine).await?;
    let names: Vec<&str> = targets.iter().filter_map(|one| one["target"].as_str()).collect();
    ensure!(
        expected.iter().all(|name| names.contains(name)),
        "her targets are {names:?}"
    );
    screen.seen(&format!("{who} is logged in and may ask for: {}", names.join(", ")));
    Ok(())
}

/// The least that may be asked for in a target.
pub(super) async fn shortest_ttl(machine: &Workstation, target: &str) -> Result<String> {
    let targets = targets(machine).await?;
    let found = targets.iter().find(|one| one["target"] == target);
    let least = found.and_then(|found| found["ttl"]["min"].as_str());
    Ok(least
        .with_context(|| format!("{target} has no shortest TTL"))?
        .to_owned())
}

async fn targets(machine: &Workstation) -> Result<Vec<Value>> {
    let listed = machine.run(&["targets", "--json"]).await?.expect(0)?;
    serde_json::from_str(&listed.stdout).context("targets --json")
}

/// The policy refuses her the target.
pub(super) async fn refused(
    screen: &Screen,
    who: &str,
    machine: &Workstation,
    project: &Project,
    target: &str,
) -> Result<()> {
    screen.command(who, &format!("kdbt-client exec --target {target} -- dbt build"));
    let refused = machine
        .run_in(project, &["exec", "--target", target, "--", "dbt", "build"])
        .await?;
    ensure!(refused.code == 125, "building should be refused to {who}: {refused:?}");
    screen.lines(refused.stderr.lines());
    screen.seen(&format!("the target {target} is refused to her by the policy"));
    Ok(())
}

/// A lease that stays when the command ends.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) id: String,
    /// Its user, as the broker calls it.
    pub(super) user: String,
    pub(super) ends_at: Timestamp,
    /// The text for `profiles.yml`.
    pub(super) profile: String,
    /// The password, where there is one.
    pub(super) password: Option<String>,
}

impl Taken {
    /// `kdbt-client profile --target T <arguments> > profiles.yml`.
    pub(super) async fn by(screen: &Screen, who: &Builder, target: &str, arguments: &[&str]) -> Result<Self> {
        let all = [&["profile", "--target", target], arguments].concat();
        screen.command(who.name, &format!("kdbt-client {} > profiles.yml", all.join(" ")));
        let taken = who
            .machine
            .run_in(&who.project, &[&all[..], &["--json"]].concat())
            .await?;
        let lease: Value = serde_json::from_str(&taken.expect(0)?.stdout).context("profile --json")?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let taken = || {
            Some(Self {
                id: text(&lease["lease"]["id"])?,
                user: text(&lease["connection"]["user"])?,
                ends_at: text(&lease["lease"]["ends_at"])?.parse().ok()?,
                profile: text(&lease["profiles_yml"])?,
                password: text(&lease["password"]),
            })
        };
        taken().context("a text is missing in the lease")
    }

    /// Nobody does anything. How many seconds after its end the lease's user was gone; before, if that is negative.
    pub(super) async fn runs_out(&self, exists: impl AsyncFn() -> Result<bool>) -> Result<f32> {
        let user = &self.user;
        let give_up = Instant::now() + Duration::from_mins(2);
        while exists().await? {
            ensure!(Instant::now() < give_up, "{user} is still there");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let late = Timestamp::now().duration_since(self.ends_at).as_secs_f32();
        ensure!(late < 10.0, "{user} was dropped {late:.1} s after the end");
        Ok(late)
    }
}

/// `kdbt-broker audit`: it names each of these, and its chain is whole.
pub(super) async fn the_audit_tells_it_all(screen: &Screen, broker: &Broker, names: &[&str]) -> Result<()> {
    screen.scene("What the audit says");
    screen.command("operator", "kdbt-broker audit show");
    let shown = Finished::of(broker.command(&["audit", "show"])?).await?.expect(0)?;
    let lines: Vec<&str> = shown.stdout.lines().collect();
    screen.lines(&lines[lines.len().saturating_sub(12)..]);
    for name in names {
        ensure!(shown.stdout.contains(name), "the audit does not name {name}");
    }
    screen.seen(&format!("{} lines, with each person and each refusal", lines.len()));
    let verified = Finished::of(broker.command(&["audit", "verify"])?).await?;
    verified.expect(0).context("audit verify")?;
    screen.seen("its chain is whole");
    Ok(())
}
