//! fakesnow: answers dbt's queries with `DuckDB`. It knows no users, roles or keys: the gate in front of it does.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::dbt::Dbt;
use crate::watchdog::{Watchdog, Watched};

/// A running server. Dropping it ends it.
#[derive(Debug)]
pub struct Fakesnow {
    _process: Watchdog,
    port: u16,
}

impl Fakesnow {
    /// Starts one, and waits until it listens.
    pub async fn start() -> Result<Self> {
        let uvicorn = Dbt::Snowflake
            .program("uvicorn")
            .context("dbt for Snowflake is not on this machine; `cargo verify` fetches it")?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let folder: PathBuf = tempfile::Builder::new().prefix("kdbt-fakesnow-").tempdir()?.keep();
        let mut command = Command::new(uvicorn);
        command
            .args([
                "fakesnow.server:app",
                "--host",
                "127.0.0.1",
                "--port",
                &port.to_string(),
            ])
            .current_dir(&folder);
        let log = folder.join("fakesnow.log");
        let watched = Watched {
            stop_signal: "TERM",
            log: &log,
            folder: &folder,
        };
        let process = Watchdog::start(&command, &watched)?;
        let deadline = Instant::now() + Duration::from_mins(1);
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            let log = std::fs::read_to_string(&log).unwrap_or_default();
            ensure!(Instant::now() < deadline, "fakesnow does not listen:\n{log}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(Self {
            _process: process,
            port,
        })
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}
