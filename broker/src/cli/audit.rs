//! `kdbt-broker audit`: reads a store's audit log, and proves that nobody has cut or edited it.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use kdbt_api::lease::LeaseId;

use super::{ConfigFile, output};
use crate::app;
use crate::audit::chain::Head;
use crate::audit::verify::Expected;
use crate::config::Config;
use crate::store::sqlite::{self, AuditFilter};

/// What can be done with the audit log.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Print the log, one JSON object a line.
    Show(Show),
    /// Check the chain: edits, gaps, cut tails, swapped stores. Exit code 1 if anything is found.
    Verify(Verify),
}

#[derive(Debug, Args)]
pub(crate) struct Show {
    #[command(flatten)]
    config: ConfigFile,
    /// Only what belongs to this lease.
    #[arg(long)]
    lease: Option<LeaseId>,
}

#[derive(Debug, Args)]
pub(crate) struct Verify {
    #[command(flatten)]
    config: ConfigFile,
    /// A head as the broker has logged it. Finds a tail that was cut off since.
    #[arg(long, value_name = "ROW:HASH", value_parser = head)]
    head: Option<Head>,
}

impl Command {
    pub(crate) fn run(self) -> ExitCode {
        let done = match self {
            Self::Show(show) => show.config.load().map(|config| show_rows(&config, show.lease)),
            Self::Verify(verify) => verify.config.load().map(|config| check(&config, verify.head)),
        };
        match done {
            Ok(Ok(code)) | Err(code) => code,
            Ok(Err(error)) => {
                output::error(&format!("{error:#}"));
                ExitCode::FAILURE
            }
        }
    }
}

fn head(text: &str) -> Result<Head, String> {
    let (row, hash) = text
        .split_once(':')
        .ok_or("a head is `<row>:<hash>`, as the broker logs it")?;
    let row = row.parse().map_err(|_| format!("`{row}` is no row number"))?;
    Ok(Head {
        row,
        hash: hash.to_owned(),
    })
}

fn show_rows(config: &Config, lease: Option<LeaseId>) -> anyhow::Result<ExitCode> {
    let filter = AuditFilter {
        lease,
        ..AuditFilter::default()
    };
    for row in sqlite::audit_rows(&config.store, filter)? {
        let (_, event) = row?;
        output::line(&serde_json::to_string(&event)?);
    }
    Ok(ExitCode::SUCCESS)
}

fn check(config: &Config, head: Option<Head>) -> anyhow::Result<ExitCode> {
    let key = app::audit_key(config)?;
    let expected = Expected {
        installation: Some(config.installation.clone()),
        head,
    };
    let report = sqlite::verify_store(&config.store, key.as_ref(), &expected)?;
    for finding in &report.findings {
        output::line(&finding.to_string());
    }
    let head = report
        .head
        .as_ref()
        .map_or_else(String::new, |head| format!(", head {}:{}", head.row, head.hash));
    let verdict = if report.is_sound() { "sound" } else { "NOT sound" };
    output::line(&format!(
        "{} rows in {} chains{head}: {verdict}",
        report.rows, report.chains
    ));
    Ok(if report.is_sound() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
