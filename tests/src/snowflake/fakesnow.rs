//! fakesnow: answers dbt's queries with `DuckDB`. It knows no users, keys or roles: the gate in front of it does.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::dbt::Dbt;
use crate::watchdog::{Watchdog, Watched};

/// Longer than Python takes to load it on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);

/// A running server with empty databases in memory. Dropping it stops it.
#[derive(Debug)]
pub struct Fakesnow {
    process: Watchdog,
    port: u16,
    folder: TempDir,
}

impl Fakesnow {
    /// Starts one on a loopback port.
    pub async fn start() -> Result<Self> {
        let program = Dbt::Snowflake
            .program("fakesnow")
            .context("fakesnow is not on this machine; `cargo verify` fetches it")?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let folder = tempfile::Builder::new().prefix("kdbt-fakesnow-").tempdir()?;
        let mut command = Command::new(program);
        command.args(["--server", "--port", &port.to_string()]);
        let process = Watchdog::start(
            &command,
            &Watched {
                stop_signal: "KILL",
                log: &folder.path().join("log"),
                folder: folder.path(),
            },
        )?;
        let mut server = Self { process, port, folder };
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if let Some(status) = server.process.ended()? {
                bail!("fakesnow ended ({status}):\n{}", server.log());
            }
            ensure!(Instant::now() < deadline, "fakesnow does not listen:\n{}", server.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(server)
    }

    /// Where it answers.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// What it has said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}
