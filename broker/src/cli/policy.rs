//! `policy check`, `test` and `explain`: what DBAs and their CI run. Files only; nothing is dialled.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use kdbt_api::name::{RuleId, TargetName};
use kdbt_api::{Timestamp, Ttl};

use crate::config::Config;
use crate::diagnostics::{Diagnostic, Diagnostics};
use crate::policy::{IssuerFacts, Order, PolicySet};
use crate::yaml;

/// Fine.
const OK: u8 = 0;
/// Something was found: a mistake, a failed test, a denial.
const FOUND: u8 = 1;
/// It could not be looked for: wrong arguments or configuration.
const USAGE: u8 = 2;

/// Checks policies without touching any server.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Report every mistake and doubt, with its line.
    Check(Check),
    /// Run the tests that stand in the policy.
    Test(Test),
    /// Say what an order would get, and why.
    Explain(Explain),
}

/// Where the policy is.
#[derive(Debug, Args)]
pub struct Files {
    /// The folder with the policy's `*.yaml` files.
    dir: PathBuf,
    /// The broker's configuration: which issuers there are and what they provide. Secrets in it are not needed.
    #[arg(long)]
    config: Option<PathBuf>,
}

/// `policy check`.
#[derive(Debug, Args)]
pub struct Check {
    #[command(flatten)]
    files: Files,
    /// How findings are written.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// How findings are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// With the line that is meant.
    Text,
    /// An array of objects.
    Json,
}

/// `policy test`.
#[derive(Debug, Args)]
pub struct Test {
    #[command(flatten)]
    files: Files,
}

/// `policy explain`.
#[derive(Debug, Args)]
pub struct Explain {
    #[command(flatten)]
    files: Files,
    /// A JSON file with the claims of a token.
    #[arg(long)]
    claims: PathBuf,
    /// The target to ask for.
    #[arg(long)]
    target: TargetName,
    /// Exactly these rules; may be given several times.
    #[arg(long = "rule")]
    rules: Vec<RuleId>,
    /// For how long.
    #[arg(long)]
    ttl: Option<Ttl>,
    /// Why.
    #[arg(long)]
    reason: Option<String>,
}

/// Runs a command. Findings go to `out`, what keeps it from running to `err`. The number is the exit code.
pub fn run(command: &PolicyCommand, now: Timestamp, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<u8> {
    let outcome = match command {
        PolicyCommand::Check(check) => check.run(out),
        PolicyCommand::Test(test) => test.run(out),
        PolicyCommand::Explain(explain) => explain.run(now, out),
    };
    match outcome {
        Ok(code) => Ok(code),
        Err(Stop::Found(found)) => {
            writeln!(err, "{found}")?;
            Ok(FOUND)
        }
        Err(Stop::Usage(found)) => {
            writeln!(err, "{found}")?;
            Ok(USAGE)
        }
        Err(Stop::Output(error)) => Err(error),
    }
}

enum Stop {
    Found(Diagnostics),
    Usage(Diagnostics),
    Output(io::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

impl Files {
    fn issuers(&self) -> Result<Vec<IssuerFacts>, Stop> {
        let Some(path) = &self.config else {
            return Ok(Vec::new());
        };
        Config::issuer_facts_of(path).map_err(Stop::Usage)
    }
}

impl Check {
    fn run(&self, out: &mut dyn Write) -> Result<u8, Stop> {
        let issuers = self.files.issuers()?;
        let engines = match &self.files.config {
            Some(path) => Some(Config::engines_of(path).map_err(Stop::Usage)?),
            None => None,
        };
        let checked = PolicySet::load(&self.files.dir, &issuers).and_then(|loaded| match &engines {
            Some(engines) => loaded.set.check_servers(engines).map(|()| loaded),
            None => Ok(loaded),
        });
        let (code, found) = match checked {
            Ok(loaded) => (OK, loaded.warnings),
            Err(found) => (FOUND, found.into_vec()),
        };
        match self.format {
            Format::Json => {
                let all: serde_json::Value = found.iter().map(Diagnostic::to_json).collect();
                writeln!(out, "{all:#}")?;
            }
            Format::Text => {
                for found in &found {
                    writeln!(out, "{found}\n")?;
                }
                let errors = found
                    .iter()
                    .filter(|found| found.level == crate::diagnostics::Level::Error)
                    .count();
                writeln!(out, "{errors} errors, {} warnings", found.len() - errors)?;
            }
        }
        Ok(code)
    }
}

impl Test {
    fn run(&self, out: &mut dyn Write) -> Result<u8, Stop> {
        let loaded = PolicySet::read(&self.files.dir, &self.files.issuers()?).map_err(Stop::Found)?;
        let report = loaded.set.run_tests();
        writeln!(out, "{report}")?;
        Ok(if report.failed() == 0 { OK } else { FOUND })
    }
}

impl Explain {
    fn run(&self, now: Timestamp, out: &mut dyn Write) -> Result<u8, Stop> {
        let loaded = PolicySet::read(&self.files.dir, &self.files.issuers()?).map_err(Stop::Found)?;
        let values = claims(&self.claims).map_err(|found| Stop::Usage(found.into()))?;
        let claims = loaded.set.claims_of(&values).ok_or_else(|| {
            let error = Diagnostic::error("the `iss` of these claims is no configured issuer");
            Stop::Usage(error.into())
        })?;
        let order = Order {
            target: self.target.clone(),
            rules: self.rules.clone(),
            ttl: self.ttl,
            reason: self.reason.clone(),
            at: now,
        };
        let explanation = loaded.set.explain(&claims, &order);
        writeln!(out, "{explanation}")?;
        Ok(if explanation.outcome.is_ok() { OK } else { FOUND })
    }
}

fn claims(path: &Path) -> Result<serde_json::Map<String, serde_json::Value>, Diagnostic> {
    let bytes = yaml::read_file(path)?;
    serde_json::from_slice(&bytes).map_err(|error| {
        let found = Diagnostic::error(format!("{} holds no claims: {error}", path.display()));
        found.help("it is the payload of a token: a JSON object")
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(subcommand)]
        command: PolicyCommand,
    }

    fn run(args: &[&str]) -> (u8, String) {
        let cli = Cli::try_parse_from(std::iter::once(&"policy").chain(args)).unwrap_or_else(|error| panic!("{error}"));
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = super::run(&cli.command, Timestamp::from_unix(0), &mut out, &mut err).unwrap();
        out.extend(err);
        (code, String::from_utf8(out).unwrap())
    }

    fn demo(file: &str) -> String {
        format!("{}/../{file}", env!("CARGO_MANIFEST_DIR"))
    }

    #[test]
    fn the_demo_policy_passes_its_checks_and_tests_with_the_example_configuration() {
        let (policies, config) = (demo("policies"), demo("docs/broker.example.yaml"));
        let (code, text) = run(&["check", &policies, "--config", &config]);
        assert_eq!((code, text.as_str()), (0, "0 errors, 0 warnings\n"));
        let (code, text) = run(&["test", &policies, "--config", &config]);
        assert!(code == 0 && text.ends_with("9 passed, 0 failed\n"), "{text}");
    }

    #[test]
    fn a_server_of_another_engine_than_the_configuration_has_is_found_by_check() {
        let folder = tempfile::tempdir().unwrap();
        let policy =
            "kdbt: 1\ntargets:\n  dev: { server: dwh, engine: snowflake, database: x, tier: dev, warehouses: [w] }\n";
        std::fs::write(folder.path().join("a.yaml"), policy).unwrap();
        let (dir, config) = (folder.path().to_str().unwrap(), demo("docs/broker.example.yaml"));
        let (code, text) = run(&["check", dir, "--config", &config]);
        assert!(
            code == 1 && text.contains("`dwh` is of postgres in the configuration"),
            "{text}"
        );
        assert_eq!(run(&["check", dir]).0, 0);
    }

    #[test]
    fn a_mistake_ends_with_1_and_a_missing_configuration_with_2() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.yaml"), "kdbt: 1\nrule: []\n").unwrap();
        let dir = folder.path().to_str().unwrap();
        let (code, text) = run(&["check", dir]);
        assert!(code == 1 && text.contains("did you mean `rules`?"), "{text}");
        let (code, text) = run(&["check", dir, "--format", "json"]);
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (code, &json[0]["code"], &json[0]["line"]),
            (1, &"K001".into(), &2.into())
        );
        assert_eq!(run(&["test", dir]).0, 1);
        assert_eq!(run(&["check", dir, "--config", "/none.yaml"]).0, 2);
    }

    #[test]
    fn explain_tells_the_true_reason_to_who_may_read_the_policy() {
        let folder = tempfile::tempdir().unwrap();
        let claims = folder.path().join("leo.json");
        std::fs::write(
            &claims,
            r#"{"realm_access":{"roles":["engineer"]},"groups":["/offboarding"]}"#,
        )
        .unwrap();
        let claims = claims.to_str().unwrap();
        let (code, text) = run(&["explain", &demo("policies"), "--claims", claims, "--target", "dev"]);
        assert!(
            code == 1 && text.contains("denied (deny-rule): by the rule `no-leavers`"),
            "{text}"
        );
        let (code, text) = run(&["explain", &demo("policies"), "--claims", claims, "--target", "nowhere"]);
        assert!(code == 1 && text.contains("no target is called `nowhere`"), "{text}");
        assert_eq!(
            run(&["explain", &demo("policies"), "--claims", "/none", "--target", "dev"]).0,
            2
        );
    }
}
