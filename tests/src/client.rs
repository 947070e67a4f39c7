//! The real `kdbt-client`, as one person on one machine uses it: a home of its own, and a browser that is played.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use url::Url;

use crate::binaries;
use crate::dbt::Project;
use crate::identity::IdentityProvider;
use crate::process::Finished;

/// One user's machine: where the client keeps what it keeps.
#[derive(Debug)]
pub struct Workstation {
    home: TempDir,
    program: PathBuf,
    /// What every command sees besides the home.
    environment: Vec<(String, String)>,
}

impl Workstation {
    /// A fresh one that talks to this broker.
    pub fn new(broker_url: &str) -> Result<Self> {
        Ok(Self {
            home: tempfile::Builder::new().prefix("kdbt-home-").tempdir()?,
            program: binaries::client_bin().clone(),
            environment: vec![("KDBT_BROKER".to_owned(), broker_url.to_owned())],
        })
    }

    /// One where a pipeline runs: it has the service account's secret in a file, and no person.
    pub fn of_pipeline(broker_url: &str, client_id: &str, secret: &str) -> Result<Self> {
        let machine = Self::new(broker_url)?;
        let file = machine.home().join("client-secret");
        fs::write(&file, secret)?;
        Ok(machine
            .with("CI", "true")
            .with("KDBT_CLIENT_ID", client_id)
            .with("KDBT_CLIENT_SECRET_FILE", &file.display().to_string()))
    }

    /// With one more variable.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The user's home.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// The variables that make a shell this user's.
    pub fn environment(&self) -> Vec<(String, String)> {
        let below = |name: &str| self.home().join(name).display().to_string();
        let mut all = vec![
            ("HOME".to_owned(), self.home().display().to_string()),
            ("XDG_CONFIG_HOME".to_owned(), below("config")),
            ("XDG_STATE_HOME".to_owned(), below("state")),
            ("XDG_CACHE_HOME".to_owned(), below("cache")),
        ];
        all.extend(self.environment.iter().cloned());
        all
    }

    /// `kdbt-client <arguments>`, outside of any project.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        let theirs = |name: &str| {
            ["KDBT_", "DBT_", "PG", "XDG_"]
                .iter()
                .any(|start| name.starts_with(start))
                || name == "CI"
        };
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(theirs)) {
            command.env_remove(name);
        }
        command.current_dir(self.home());
        self.equip(command, arguments)
    }

    /// `kdbt-client <arguments>` in a dbt project, with dbt on its path.
    pub fn command_in(&self, project: &Project, arguments: &[&str]) -> Result<Command> {
        Ok(self.equip(project.command(&self.program)?, arguments))
    }

    fn equip(&self, mut command: Command, arguments: &[&str]) -> Command {
        command
            .args(arguments)
            .env_remove("CI")
            .env_remove("XDG_RUNTIME_DIR")
            .envs(self.environment());
        command
    }

    /// Runs `kdbt-client <arguments>` outside of any project.
    pub async fn run(&self, arguments: &[&str]) -> Result<Finished> {
        Finished::of(self.command(arguments)).await
    }

    /// Runs `kdbt-client <arguments>` in a dbt project.
    pub async fn run_in(&self, project: &Project, arguments: &[&str]) -> Result<Finished> {
        Finished::of(self.command_in(project, arguments)?).await
    }

    /// `kdbt-client login`, with a browser that this person uses.
    pub async fn login(&self, identity: &IdentityProvider, username: &str) -> Result<()> {
        let mut command = tokio::process::Command::from(self.command(&["login", "--no-open"]));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut client = command.spawn().context("run kdbt-client")?;
        let mut said = BufReader::new(client.stderr.take().context("no standard error")?).lines();
        let mut heard = String::new();
        let session = async {
            let address = loop {
                let Some(line) = said.next_line().await? else {
                    let mut rest = String::new();
                    if let Some(mut stdout) = client.stdout.take() {
                        stdout.read_to_string(&mut rest).await?;
                    }
                    bail!("kdbt-client named no address to log in at:\n{heard}{rest}");
                };
                if let Ok(url) = Url::parse(line.trim())
                    && url.query().is_some()
                {
                    break url;
                }
                heard.push_str(&line);
                heard.push('\n');
            };
            identity.sign_in(username, &address).await?;
            while let Some(line) = said.next_line().await? {
                heard.push_str(&line);
                heard.push('\n');
            }
            let status = client.wait().await?;
            if !status.success() {
                bail!("the login of {username} failed:\n{heard}");
            }
            Ok(())
        };
        tokio::time::timeout(Duration::from_mins(1), session)
            .await
            .context("the login took more than a minute")?
    }
}
