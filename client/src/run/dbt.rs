//! What a command line says to dbt, and what its project says: enough to lease for exactly that.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use kdbt_api::name::{ProfileName, TargetName};
use serde::Deserialize;

use crate::exit::{Code, Failure, Outcome};
use crate::settings::text_variable;

/// The largest `dbt_project.yml` that is read.
const MAX_PROJECT_BYTES: u64 = 1024 * 1024;

/// dbt's global flags that take a value and may stand before its command.
const VALUED: [&str; 14] = [
    "-t",
    "--target",
    "--profile",
    "--project-dir",
    "--profiles-dir",
    "--target-path",
    "--log-path",
    "--log-level",
    "--log-level-file",
    "--log-format",
    "--log-format-file",
    "--printer-width",
    "--vars",
    "--threads",
];

/// What a child does with the warehouse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    /// A login.
    Lease,
    /// A profile that validates; nobody logs in.
    Stub,
    /// Nothing: `dbt init` wants to write the user's own profile.
    Nothing,
}

/// A child's command line, where it is dbt's.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Call {
    target: Option<String>,
    profile: Option<String>,
    project_dir: Option<String>,
    /// Theirs wins over our folder.
    pub(crate) has_profiles_dir: bool,
    command: Option<String>,
    is_dbt: bool,
    only_informs: bool,
}

impl Call {
    /// Finds dbt in a command line (`dbt …`, `uv run dbt …`, `python -m dbt …`) and reads its flags.
    pub(crate) fn read(command: &[OsString]) -> Self {
        let words: Vec<&str> = command.iter().map(|word| word.to_str().unwrap_or_default()).collect();
        let is_dbt = |word: &&str| {
            let name = Path::new(word).file_stem().and_then(|name| name.to_str());
            name.is_some_and(|name| ["dbt", "dbt-ol", "dbtf"].contains(&name))
        };
        let Some(start) = words.iter().take(6).position(is_dbt) else {
            return Self::default();
        };
        let mut call = Self {
            is_dbt: true,
            ..Self::default()
        };
        let mut words = words.into_iter().skip(start + 1);
        while let Some(word) = words.next() {
            let (flag, joined) = match word.split_once('=') {
                Some((flag, value)) if flag.starts_with("--") => (flag, Some(value)),
                _ => (word, None),
            };
            match flag {
                "--help" | "-h" => call.only_informs = true,
                // Later it could be the value of a flag that is not known here.
                "--version" | "-V" | "-v" if call.command.is_none() => call.only_informs = true,
                _ if VALUED.contains(&flag) => {
                    let Some(value) = joined.or_else(|| words.next()) else {
                        break;
                    };
                    call.take(flag, value);
                }
                _ if flag.starts_with('-') => {}
                _ => call.command = call.command.take().or_else(|| Some(word.to_owned())),
            }
        }
        call
    }

    fn take(&mut self, flag: &str, value: &str) {
        let value = Some(value.to_owned());
        match flag {
            "-t" | "--target" => self.target = value,
            "--profile" => self.profile = value,
            "--project-dir" => self.project_dir = value,
            "--profiles-dir" => self.has_profiles_dir = true,
            _ => {}
        }
    }

    /// What it needs. A command that is not known, or not dbt, gets a lease.
    pub(crate) fn needs(&self) -> Needs {
        match self.command.as_deref() {
            _ if self.is_dbt && self.only_informs => Needs::Nothing,
            Some("init") => Needs::Nothing,
            Some("deps" | "clean" | "parse" | "ls" | "list") => Needs::Stub,
            None if self.is_dbt => Needs::Nothing,
            _ => Needs::Lease,
        }
    }

    /// The target that dbt will use, by flag or variable; `ours` must not say another.
    pub(crate) fn target(&self, ours: Option<&TargetName>) -> Outcome<Option<TargetName>> {
        let theirs = match &self.target {
            Some(target) => Some(("the command's --target", target.clone())),
            None => text_variable("DBT_TARGET")?.map(|target| ("DBT_TARGET", target)),
        };
        let Some((place, text)) = theirs else {
            return Ok(ours.cloned());
        };
        let target: TargetName = text
            .parse()
            .map_err(|error| Failure::new(Code::Usage, format!("{place}: {error}")))?;
        match ours {
            Some(ours) if *ours != target => Err(Failure::new(
                Code::Usage,
                format!("--target is `{ours}`, but {place} is `{target}`"),
            )
            .hint("name the target once")),
            _ => Ok(Some(target)),
        }
    }

    /// The profile that dbt will look for: its flag, its variable, ours, the project's, else `kdbt`.
    pub(crate) fn profile(&self, ours: &crate::cli::Project) -> Outcome<ProfileName> {
        let parse = |place: &str, text: &str| {
            text.parse::<ProfileName>()
                .map_err(|error| Failure::new(Code::Usage, format!("{place}: {error}")).hint("name it with --profile"))
        };
        if let Some(profile) = &self.profile {
            return parse("the command's --profile", profile);
        }
        if let Some(profile) = text_variable("DBT_PROFILE")? {
            return parse("DBT_PROFILE", &profile);
        }
        if let Some(profile) = &ours.profile {
            return Ok(profile.clone());
        }
        let folder = match (&self.project_dir, &ours.project_dir) {
            (Some(theirs), _) => Some(PathBuf::from(theirs)),
            (None, Some(ours)) => Some(ours.clone()),
            (None, None) => text_variable("DBT_PROJECT_DIR")?.map(PathBuf::from),
        };
        match find_project(folder.as_deref())? {
            Some((path, Some(profile))) => parse(&format!("`profile` in {}", path.display()), &profile),
            _ => parse("the default", "kdbt"),
        }
    }
}

/// What is read of a project; the rest is dbt's business.
#[derive(Debug, Deserialize)]
struct Project {
    profile: Option<String>,
}

/// `dbt_project.yml` in this folder, else in the working folder or the nearest one above it.
fn find_project(folder: Option<&Path>) -> Outcome<Option<(PathBuf, Option<String>)>> {
    let path = if let Some(folder) = folder {
        Some(folder.join("dbt_project.yml"))
    } else {
        let here = std::env::current_dir()
            .map_err(|error| Failure::new(Code::Failed, format!("there is no working folder: {error}")))?;
        let mut candidates = here.ancestors().map(|folder| folder.join("dbt_project.yml"));
        candidates.find(|path| path.is_file())
    };
    let Some(path) = path.filter(|path| path.is_file()) else {
        return Ok(None);
    };
    let unreadable = |error: &std::io::Error| Failure::file("read", &path, error).with_code(Code::Usage);
    let size = std::fs::metadata(&path).map_err(|error| unreadable(&error))?.len();
    if size > MAX_PROJECT_BYTES {
        return Err(Failure::new(
            Code::Usage,
            format!("`{}` is larger than 1 MiB", path.display()),
        ));
    }
    let text = std::fs::read_to_string(&path).map_err(|error| unreadable(&error))?;
    let project: Project = serde_saphyr::from_str(&text).map_err(|error| {
        Failure::new(Code::Usage, format!("`{}`: {error}", path.display())).hint("name the profile with --profile")
    })?;
    Ok(Some((path, project.profile)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(line: &str) -> Call {
        let words: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        Call::read(&words)
    }

    #[test]
    fn the_flags_of_dbt_are_found_wherever_it_stands() {
        for line in [
            "dbt build -t prod --profile jaffle --project-dir x",
            "dbt --target=prod --profile=jaffle --project-dir=x build",
            "uv run dbt --project-dir x build --profile jaffle --target prod",
            "/venv/bin/dbt -t prod --project-dir x --profile jaffle run --select tag:deps",
        ] {
            let call = call(line);
            assert_eq!(call.target.as_deref(), Some("prod"), "{line}");
            assert_eq!(call.profile.as_deref(), Some("jaffle"), "{line}");
            assert_eq!(call.project_dir.as_deref(), Some("x"), "{line}");
            assert_eq!(call.needs(), Needs::Lease, "{line}");
        }
    }

    #[test]
    fn only_what_logs_in_needs_a_lease() {
        for (line, needs) in [
            ("dbt deps", Needs::Stub),
            ("dbt --project-dir run parse", Needs::Stub),
            ("dbt ls --select x", Needs::Stub),
            ("dbt --version", Needs::Nothing),
            ("dbt build --help", Needs::Nothing),
            ("dbt", Needs::Nothing),
            ("dbt init", Needs::Nothing),
            ("dbt debug", Needs::Lease),
            ("dbt run-operation x --args -v", Needs::Lease),
            ("dbt run --select deps", Needs::Lease),
            ("psql --version", Needs::Lease),
            ("sh -c true", Needs::Lease),
        ] {
            assert_eq!(call(line).needs(), needs, "{line}");
        }
    }

    #[test]
    fn a_target_named_twice_must_be_the_same() {
        let ours: TargetName = "dev".parse().unwrap();
        assert_eq!(call("dbt run -t dev").target(Some(&ours)).unwrap(), Some(ours.clone()));
        assert!(call("dbt run -t prod").target(Some(&ours)).is_err());
        assert!(call("dbt run -t {{x}}").target(None).is_err());
    }
}
