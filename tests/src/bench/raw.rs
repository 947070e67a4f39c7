//! The very message that the driver sends for a lease, sent by pgbench: what the server alone can do.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kdbt_api::credential::ScramVerifier;

use super::load::{Crowd, Load};
use crate::broker::LOGIN;
use crate::process::Finished;
use crate::stack::Stack;

/// What the names of the roles begin with.
const PREFIX: &str = "kdbt_raw_";

/// A script for pgbench.
pub(super) struct Message {
    script: String,
}

impl Message {
    /// Read from the server's log while the broker issues one lease.
    pub(super) async fn capture(stack: &Stack, crowd: &Crowd, verifier: &ScramVerifier) -> Result<Self> {
        let postgres = &stack.postgres;
        let before = postgres.log()?.len();
        logging(stack, "all").await?;
        crowd.ask(1, 1, verifier, "1h").await?;
        let users = stack.lease_users().await?;
        logging(stack, "none").await?;
        crowd.give_back(stack).await?;
        let [user] = users.as_slice() else {
            anyhow::bail!("one lease was issued, and the users are {users:?}");
        };
        let log = postgres.log()?;
        let start = format!("statement: CREATE ROLE \"{user}\"");
        let mut lines = log[before..].lines().skip_while(|line| !line.contains(&start));
        let first = lines.next().context("the server has logged no CREATE ROLE")?;
        let first = first.split_once("statement: ").context("no statement")?.1;
        // The server sets the lines of one message in.
        let rest = lines.map_while(|line| line.strip_prefix('\t'));
        let message: Vec<&str> = std::iter::once(first).chain(rest).collect();
        // Of another installation, or the broker's sweep would end them.
        let message = message
            .join("\n")
            .replace(user, &format!("{PREFIX}:id"))
            .replace("kdbt/1 demo ", "kdbt/1 raw ")
            // One message, not one for each statement.
            .replace(";\n", " \\;\n");
        let script = format!("\\set n :n + 1\n\\set id :client_id * 1000000 + :n\n{message};\n");
        Ok(Self { script })
    }

    /// `clients` send it `count` times together; the roles are dropped afterwards, which is not measured.
    pub(super) async fn send(&self, stack: &Stack, clients: usize, count: usize) -> Result<Load> {
        let folder = tempfile::tempdir()?;
        let script = folder.path().join("lease.sql");
        fs::write(&script, &self.script)?;
        let mut pgbench = stack.postgres.program("pgbench")?;
        pgbench
            .args(["-n", "-M", "simple", "-D", "n=0", "-l", "--log-prefix=raw"])
            .args(["-c", &clients.to_string(), "-j", &clients.min(2).to_string()])
            .args(["-t", &count.div_ceil(clients).to_string(), "-f"])
            .arg(&script)
            .arg("postgres")
            .current_dir(folder.path())
            .env("PGUSER", LOGIN)
            .env("PGPASSWORD", stack.broker.password())
            .env(
                "PGOPTIONS",
                "-c search_path=pg_catalog,pg_temp -c standard_conforming_strings=on",
            );
        let said = Finished::of(pgbench).await?.expect(0).context("pgbench")?;
        ensure!(!said.stderr.contains("ERROR"), "pgbench: {}", said.stderr);
        drop_all(stack).await?;
        let rate: f64 = said
            .stdout
            .lines()
            .find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok())
            .with_context(|| format!("pgbench gave no rate:\n{}", said.stdout))?;
        let mut latencies = Vec::new();
        for file in fs::read_dir(folder.path())?.flatten() {
            if file.file_name().to_string_lossy().starts_with("raw.") {
                let log = fs::read_to_string(file.path())?;
                // client, transaction, microseconds, …
                let micros = log.lines().filter_map(|line| line.split(' ').nth(2)?.parse().ok());
                latencies.extend(micros.map(Duration::from_micros));
            }
        }
        latencies.sort_unstable();
        #[allow(clippy::cast_precision_loss)]
        let took = Duration::from_secs_f64(latencies.len() as f64 / rate);
        Ok(Load { took, latencies })
    }
}

async fn logging(stack: &Stack, what: &str) -> Result<()> {
    let postgres = &stack.postgres;
    postgres
        .execute("postgres", &format!("ALTER SYSTEM SET log_statement = '{what}'"))
        .await?;
    postgres.execute("postgres", "SELECT pg_reload_conf()").await?;
    // Sessions hear of it in their own time, and say nothing.
    tokio::time::sleep(Duration::from_millis(300)).await;
    Ok(())
}

async fn drop_all(stack: &Stack) -> Result<()> {
    let sql = format!(
        "DO $$ DECLARE name text; BEGIN FOR name IN SELECT rolname FROM pg_roles WHERE rolname ^@ '{PREFIX}' LOOP \
         EXECUTE format('DROP ROLE %I', name); END LOOP; END $$"
    );
    stack.postgres.execute("postgres", &sql).await.map(drop)
}
