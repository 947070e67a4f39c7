//! What the client adds to the broker's own time: a process, a verifier, a file, a connection.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::load::Crowd;
use super::report::{Report, millis, percentile};
use crate::client::Workstation;
use crate::stack::Stack;

const RUNS: usize = 20;
const TARGET_MILLIS: f64 = 20.0;

pub(super) async fn measure(stack: &Stack, report: &mut Report) -> Result<()> {
    let machine = Workstation::new(&stack.broker.url())?;
    let file = machine.home().join("token");
    let major = stack.postgres.version().major();
    report.line(format!(
        "\nPostgreSQL {major}   kdbt-client beyond the broker's answers"
    ));
    for (name, arguments) in [
        ("exec", ["exec", "--target", "team", "--", "true"].as_slice()),
        ("profile", ["profile", "--target", "team", "--json"].as_slice()),
    ] {
        let (mut walls, mut overheads) = (Vec::new(), Vec::new());
        for run in 0..=RUNS {
            fs::write(&file, stack.identity.played().token_for("ada"))?;
            let mut command = machine.command(arguments);
            command.env("KDBT_TOKEN_FILE", &file).stdin(Stdio::null());
            let before = broker_time(stack).await?;
            let started = Instant::now();
            let output = tokio::task::spawn_blocking(move || command.output()).await??;
            let wall = started.elapsed();
            ensure!(
                output.status.success(),
                "kdbt-client {name}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            let answers = broker_time(stack).await?.saturating_sub(before);
            // The first run finds nothing in the machine's caches.
            if run > 0 {
                walls.push(wall);
                overheads.push(wall.saturating_sub(answers));
            }
        }
        walls.sort_unstable();
        overheads.sort_unstable();
        let overhead = millis(percentile(&overheads, 0.5));
        report.line(format!(
            "  {name:8} p50 {overhead:.1} ms, p95 {:.1} ms, of {:.1} ms in all",
            millis(percentile(&overheads, 0.95)),
            millis(percentile(&walls, 0.5))
        ));
        report.judge(
            overhead < TARGET_MILLIS,
            &format!("PostgreSQL {major}: `{name}` adds {overhead:.1} ms (under {TARGET_MILLIS})"),
        );
        Crowd::of(stack, vec![stack.identity.played().token_for("ada")])?
            .give_back(stack)
            .await?;
    }
    Ok(())
}

/// All the time that the broker has spent on requests.
async fn broker_time(stack: &Stack) -> Result<Duration> {
    let metrics = reqwest::get(format!("{}/metrics", stack.broker.management_url())).await?;
    let text = metrics.error_for_status()?.text().await?;
    let sums = text
        .lines()
        .filter(|line| line.starts_with("kdbt_http_request_duration_seconds_sum") && line.contains("/v1/"));
    let seconds = sums
        .map(|line| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()))
        .sum::<Option<f64>>();
    Ok(Duration::from_secs_f64(seconds.context("a duration is no number")?))
}
