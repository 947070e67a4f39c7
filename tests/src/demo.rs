//! `cargo demo`: the main job from login to drop, on real programs, each step checked before it is called done.

mod people;
mod postgres;
mod screen;
mod shell;
mod snowflake;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;

use crate::binaries::Binaries;
use crate::broker::{Broker, BrokerOptions, demo_policies};
use crate::dbt::Dbt;
use crate::identity::IdentityProvider;
use crate::postgres::{PgOptions, PgVersion};
use crate::provision::{Need, provision};
use crate::snowflake::stack::SnowflakeStack;
use crate::stack::{Stack, StackOptions};
use screen::Screen;
use shell::Invitation;

/// Watches real dbt build real models, as users that live as long as the run: in a real PostgreSQL, or in a simulated Snowflake.
#[derive(Debug, Parser)]
#[command(name = "demo", bin_name = "cargo demo --", max_term_width = 100)]
pub struct Options {
    /// End after the last step, with 0 if every step was seen to work; else the stack stays up to try things on
    #[arg(long)]
    once: bool,
    /// Log in at a real Keycloak (needs Java; fetched on first use) instead of one that this program plays
    #[arg(long)]
    keycloak: bool,
    /// The PostgreSQL to run on
    #[arg(long, value_name = "15|18", default_value = "18", value_parser = version)]
    pg: PgVersion,
    /// Tell the Snowflake side instead: a simulated account, with real dbt-snowflake on fakesnow
    #[arg(long, conflicts_with = "pg")]
    snowflake: bool,
    /// Copy all logs into this folder at the end
    #[arg(long, value_name = "DIR")]
    keep_logs: Option<PathBuf>,
}

fn version(text: &str) -> Result<PgVersion> {
    let found = PgVersion::ALL
        .into_iter()
        .find(|version| version.major().to_string() == text);
    found.with_context(|| format!("PostgreSQL {text} is not one of 15 and 18"))
}

/// Runs the demo to its end, or until Ctrl-C.
pub async fn run(options: &Options) -> Result<()> {
    let show = Show {
        options,
        screen: Screen::new(),
        started: Instant::now(),
    };
    let interrupted = tokio::signal::ctrl_c();
    // Dropping the story stops and removes everything that it started.
    tokio::select! {
        told = show.tell() => told,
        _ = interrupted => {
            show.screen.say("\nstopping");
            ensure!(!options.once, "interrupted");
            Ok(())
        }
    }
}

/// Tells the Snowflake story to a test, and hands over what it was told on.
pub async fn rehearse_snowflake() -> Result<SnowflakeStack> {
    let screen = Screen::new();
    let stack = snowflake::stage(false, &screen).await?;
    let played = snowflake::play(&stack, &screen).await;
    played.map_err(|error| with_log(&error, &stack.broker))?;
    Ok(stack)
}

/// One showing.
struct Show<'a> {
    options: &'a Options,
    screen: Screen,
    started: Instant,
}

impl Show<'_> {
    async fn tell(&self) -> Result<()> {
        if self.options.snowflake {
            self.on_snowflake().await
        } else {
            self.on_postgres().await
        }
    }

    async fn on_postgres(&self) -> Result<()> {
        let version = self.options.pg;
        let server = match version {
            PgVersion::Pg15 => Need::Postgres15,
            PgVersion::Pg18 => Need::Postgres18,
        };
        self.provide(&[server, Need::Dbt(Dbt::Postgres)])?;
        self.screen.scene("A warehouse, a place to log in, a broker");
        let options = StackOptions {
            version,
            postgres: PgOptions::default(),
            keycloak: self.options.keycloak,
            broker: BrokerOptions::new(demo_policies()),
        };
        let stack = Stack::start(&options, |done| self.screen.seen(done)).await?;
        let played = postgres::play(&stack, &self.screen).await;
        self.keep_logs(|folder| stack.keep_logs(folder))?;
        let invitation = played.map_err(|error| with_log(&error, &stack.broker))?;
        self.screen.end(self.started.elapsed());
        self.invite(&invitation, &stack.broker, &stack.identity).await
    }

    async fn on_snowflake(&self) -> Result<()> {
        self.screen.lines(snowflake::NO_ACCOUNT);
        self.provide(&[Need::Dbt(Dbt::Snowflake)])?;
        let stack = snowflake::stage(self.options.keycloak, &self.screen).await?;
        let played = snowflake::play(&stack, &self.screen).await;
        self.keep_logs(|folder| stack.keep_logs(folder))?;
        let invitation = played.map_err(|error| with_log(&error, &stack.broker))?;
        self.screen.end(self.started.elapsed());
        self.screen.lines(snowflake::NO_ACCOUNT);
        self.invite(&invitation, &stack.broker, &stack.identity).await
    }

    fn provide(&self, needs: &[Need]) -> Result<()> {
        self.screen.scene("What it needs");
        let mut needs = needs.to_vec();
        if self.options.keycloak {
            needs.push(Need::Keycloak);
        }
        let missing = provision(&needs);
        let reasons: Vec<String> = missing
            .iter()
            .map(|(need, error)| format!("{need}: {error:#}"))
            .collect();
        if !reasons.is_empty() {
            bail!("not everything could be had:\n{}", reasons.join("\n"));
        }
        let names: Vec<String> = needs.iter().map(ToString::to_string).collect();
        self.screen.seen(&format!("{} on this machine", list(&names)));
        Binaries::shared();
        self.screen.seen("broker and client are built");
        Ok(())
    }

    fn keep_logs(&self, keep: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        if let Some(folder) = &self.options.keep_logs {
            keep(folder)?;
            self.screen.say(&format!("\nThe logs are in {}.", folder.display()));
        }
        Ok(())
    }

    /// Without `--once`, says what to try and stays.
    async fn invite(&self, invitation: &Invitation, broker: &Broker, identity: &IdentityProvider) -> Result<()> {
        if !self.options.once {
            invitation.show(broker, identity, &self.screen)?;
            std::future::pending::<()>().await;
        }
        Ok(())
    }
}

fn with_log(error: &anyhow::Error, broker: &Broker) -> anyhow::Error {
    let tail = broker.log_tail(25);
    anyhow::anyhow!("a step did not work. The broker's last lines:\n{tail}\n\nWhat went wrong: {error:#}")
}

/// `a`, `a and b`, `a, b and c`.
fn list(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [only] => only.clone(),
        [most @ .., last] => format!("{} and {last}", most.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_of_postgres_makes_no_sense_on_snowflake_and_is_refused_by_name() {
        let error = Options::try_parse_from(["demo", "--snowflake", "--pg", "15"]).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("'--snowflake' cannot be used with '--pg"), "{text}");
    }

    #[test]
    fn keycloak_logs_and_an_end_go_with_snowflake() {
        let all = ["demo", "--snowflake", "--keycloak", "--once", "--keep-logs", "logs"];
        assert!(Options::try_parse_from(all).is_ok_and(|options| options.snowflake));
        assert!(Options::try_parse_from(["demo", "--pg", "15"]).is_ok());
    }
}
