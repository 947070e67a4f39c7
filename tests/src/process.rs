//! A program run to its end, with a time limit, and what it said.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// Longer than nearly any program of a test or the demo takes on a slow machine.
const PATIENCE: Duration = Duration::from_mins(3);

/// How a program ended and what it said.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code; -1 when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Finished {
    /// Runs it to its end without standard input.
    pub async fn of(command: Command) -> Result<Self> {
        Self::within(command, PATIENCE).await
    }

    /// The same, for one that may take longer.
    pub async fn within(command: Command, patience: Duration) -> Result<Self> {
        let program = command.get_program().display().to_string();
        let mut command = tokio::process::Command::from(command);
        command.stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(patience, command.output())
            .await
            .with_context(|| format!("`{program}` did not end within {} s", patience.as_secs()))?
            .with_context(|| format!("run `{program}`"))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Self {
            code: output.status.code().unwrap_or(-1),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        })
    }

    /// The same, if it ended with this code; else an error with all that it said.
    pub fn expect(self, code: i32) -> Result<Self> {
        ensure!(
            self.code == code,
            "exit code {} instead of {code}:\n{}{}",
            self.code,
            self.stdout,
            self.stderr
        );
        Ok(self)
    }
}
