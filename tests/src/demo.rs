//! `cargo demo`: the main job from login to drop, on real programs, each step checked before it is called done.

mod scenes;
mod screen;
mod shell;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;

use crate::binaries::Binaries;
use crate::broker::{BrokerOptions, demo_policies};
use crate::dbt::Dbt;
use crate::postgres::{PgOptions, PgVersion};
use crate::provision::{Need, provision};
use crate::stack::{Stack, StackOptions};
use screen::Screen;

/// Watches real dbt build real models in a real PostgreSQL, as users that live as long as the run.
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
    let started = Instant::now();
    let screen = Screen::new();
    screen.scene("What it needs");
    provide(options, &screen)?;
    Binaries::shared();
    screen.seen("broker and client are built");

    screen.scene("A warehouse, a place to log in, a broker");
    let stack = StackOptions {
        version: options.pg,
        postgres: PgOptions::default(),
        keycloak: options.keycloak,
        broker: BrokerOptions::new(demo_policies()),
    };
    let interrupted = tokio::signal::ctrl_c();
    let story = tell(options, &stack, &screen, started);
    // Dropping the story stops and removes everything that it started.
    tokio::select! {
        told = story => told,
        _ = interrupted => {
            screen.say("\nstopping");
            ensure!(!options.once, "interrupted");
            Ok(())
        }
    }
}

fn provide(options: &Options, screen: &Screen) -> Result<()> {
    let mut needs = vec![
        match options.pg {
            PgVersion::Pg15 => Need::Postgres15,
            PgVersion::Pg18 => Need::Postgres18,
        },
        Need::Dbt(Dbt::Postgres),
    ];
    if options.keycloak {
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
    screen.seen(&format!("{} on this machine", list(&names)));
    Ok(())
}

async fn tell(options: &Options, stack: &StackOptions, screen: &Screen, started: Instant) -> Result<()> {
    let stack = Stack::start(stack, |done| screen.seen(done)).await?;
    let played = scenes::play(&stack, screen).await;
    if let Some(folder) = &options.keep_logs {
        stack.keep_logs(folder)?;
        screen.say(&format!("\nThe logs are in {}.", folder.display()));
    }
    let people = played.map_err(|error| {
        let tail = stack.broker.log_tail(25);
        error.context(format!(
            "a step did not work. The broker's last lines:\n{tail}\n\nWhat went wrong"
        ))
    })?;
    screen.end(started.elapsed());
    if !options.once {
        shell::invite(&stack, &people, screen)?;
        std::future::pending::<()>().await;
    }
    Ok(())
}

/// `a`, `a and b`, `a, b and c`.
fn list(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [only] => only.clone(),
        [most @ .., last] => format!("{} and {last}", most.join(", ")),
    }
}
