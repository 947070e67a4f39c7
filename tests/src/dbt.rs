//! Real dbt: the programs of a private Python environment, run on a copy of a project.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::provision::{self, run};

/// A dbt with the adapter of one engine, in a Python environment of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dbt {
    /// dbt 1.11 for `PostgreSQL`.
    Postgres,
    /// dbt 1.11 for Snowflake. With it comes fakesnow, which answers dbt's queries in an account's stead.
    Snowflake,
    /// dbt 1.9 for Snowflake, the oldest one that kdbt is tested with.
    OldSnowflake,
}

impl Dbt {
    /// A program of the environment, such as `dbt` and `python`, if it has been fetched.
    pub fn program(self, name: &str) -> Option<PathBuf> {
        provision::program_of(&self.place(), name)
    }

    /// Our PATH with this dbt's programs, these folders and our client before it.
    pub fn path(self, folders: impl IntoIterator<Item = PathBuf>) -> Result<String> {
        let dbt = self
            .program("dbt")
            .with_context(|| format!("{self} is not on this machine; `cargo verify` fetches it"))?;
        let client = crate::binaries::client_bin().parent();
        let ours = std::env::var_os("PATH").unwrap_or_default();
        let all = dbt
            .parent()
            .map(Path::to_owned)
            .into_iter()
            .chain(folders)
            .chain(client.map(Path::to_owned))
            .chain(std::env::split_paths(&ours));
        std::env::join_paths(all)?.into_string().ok().context("PATH is no text")
    }

    /// Can a test that needs it run? Where not, it says so and passes, except in CI (`CI=true`), where it fails.
    pub fn is_there(self) -> bool {
        let there = self.program("dbt").is_some();
        if !there {
            assert_ne!(
                std::env::var("CI").as_deref(),
                Ok("true"),
                "there is no {self}, and in CI there must be one"
            );
            eprintln!("NOT RUN: this test needs {self}; `cargo verify` fetches it");
        }
        there
    }

    fn place(self) -> PathBuf {
        provision::cache().join(match self {
            Self::Postgres => "dbt-1.11",
            Self::Snowflake => "dbt-snowflake-1.11",
            Self::OldSnowflake => "dbt-snowflake-1.9",
        })
    }

    /// A newer dbt wants its vendor's own package index. fakesnow does not load with version 5 of Snowflake's connector.
    fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Postgres => &["dbt-core==1.11.*", "dbt-postgres==1.11.*"],
            Self::Snowflake => &[
                "dbt-core==1.11.*",
                "dbt-snowflake==1.11.*",
                "fakesnow[server]==0.12.1",
                "snowflake-connector-python<5",
            ],
            Self::OldSnowflake => &[
                "dbt-core==1.9.*",
                "dbt-snowflake==1.9.*",
                "snowflake-connector-python<5",
            ],
        }
    }

    pub(crate) fn fetch(self) -> Result<()> {
        provision::fetch_environment(&self.place(), self.packages())
    }
}

impl fmt::Display for Dbt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Postgres => "dbt",
            Self::Snowflake => "dbt for Snowflake",
            Self::OldSnowflake => "dbt 1.9 for Snowflake",
        })
    }
}

/// How a run of dbt ended.
#[derive(Debug)]
pub struct Finished {
    /// dbt's exit code: 0 fine, 1 a node failed, 2 could not run; -1 when a signal ended it.
    pub code: i32,
    /// Standard output and standard error.
    pub output: String,
}

/// A copy of a dbt project, for a test to run and to change.
#[derive(Debug)]
pub struct Project {
    folder: TempDir,
    dbt: Dbt,
}

impl Project {
    /// Copies the project in `source`, to be run with this dbt.
    pub fn copy_of(source: &Path, dbt: Dbt) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("kdbt-dbt-").tempdir()?;
        run(Command::new("cp").arg("-r").arg(source.join(".")).arg(folder.path()))?;
        Ok(Self { folder, dbt })
    }

    /// Where the copy lies.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A command that runs `program` with dbt on its PATH, in the project, cleared of settings of the person who runs the tests.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        let dbt = self
            .dbt
            .program("dbt")
            .with_context(|| format!("{} is not on this machine; `cargo verify` fetches it", self.dbt))?;
        let bin = dbt.parent().context("dbt lies in no folder")?.to_owned();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut command = Command::new(program);
        command.current_dir(self.path()).env(
            "PATH",
            std::env::join_paths([bin].into_iter().chain(std::env::split_paths(&path)))?,
        );
        let theirs = |name: &str| name.starts_with("DBT_") || name.starts_with("PG") || name.starts_with("KDBT_");
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(theirs)) {
            command.env_remove(name);
        }
        command
            .env("DBT_SEND_ANONYMOUS_USAGE_STATS", "false")
            .env("NO_COLOR", "1")
            .env("DBT_USE_COLORS", "false");
        Ok(command)
    }

    /// Runs `dbt <arguments>` with the profiles in `profiles_dir` and more variables.
    pub fn dbt(&self, arguments: &[&str], profiles_dir: &Path, variables: &[(&str, &str)]) -> Result<Finished> {
        let mut command = self.command("dbt")?;
        command
            .args(arguments)
            .env("DBT_PROFILES_DIR", profiles_dir)
            .envs(variables.iter().copied());
        let output = command.output().context("run dbt")?;
        let text = [output.stdout, output.stderr].concat();
        Ok(Finished {
            code: output.status.code().unwrap_or(-1),
            output: String::from_utf8_lossy(&text).into_owned(),
        })
    }
}
