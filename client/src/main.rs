//! The kdbt client: logs in, takes a lease, runs dbt with it, gives it back.
//!
//! It makes every secret itself and sends only what cannot be turned back into one.

mod broker;
mod cli;
mod commands;
mod exit;
mod http;
mod login;
mod oauth;
mod order;
mod output;
mod private;
mod run;
mod secret;
mod settings;
mod token;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use crate::cli::{Cli, Command};
use crate::exit::{Code, Failure, Outcome};
use crate::output::Output;
use crate::settings::Settings;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = Output::new(false, settings::variable("NO_COLOR").is_none());
    match private::forbid_core_dumps().and_then(|()| run(cli)) {
        Ok(code) => code.into(),
        Err(failure) => {
            output.failure(&failure);
            (failure.code as u8).into()
        }
    }
}

fn run(cli: Cli) -> Outcome<u8> {
    if let Command::Completion { shell } = cli.command {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "kdbt-client", &mut script);
        Output::new(false, false).product(&String::from_utf8_lossy(&script))?;
        return Ok(0);
    }
    let settings = Settings::load(cli.global)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(Code::Failed, format!("cannot start: {error}")))?;
    runtime.block_on(dispatch(cli.command, settings))
}

async fn dispatch(command: Command, settings: Settings) -> Outcome<u8> {
    match command {
        Command::Exec(args) => return run::exec(settings, args).await.map_err(around_the_child),
        Command::Psql(args) => return run::psql(settings, args).await.map_err(around_the_child),
        Command::Login(args) => commands::login(settings, args).await,
        Command::Logout => commands::logout(settings).await,
        Command::Whoami(args) => commands::whoami(settings, args).await,
        Command::Targets(args) => commands::targets(settings, args).await,
        Command::Profile(args) => commands::profile(settings, args).await,
        Command::Env(args) => commands::env(settings, args).await,
        Command::Leases(args) => commands::leases(settings, args).await,
        Command::Renew(args) => commands::renew(settings, args).await,
        Command::Revoke(args) => commands::revoke(settings, args).await,
        Command::Explain(args) => commands::explain(settings, args).await,
        Command::Doctor => commands::doctor(settings).await,
        // Answered before anything was looked at.
        Command::Completion { .. } => Ok(()),
    }?;
    Ok(0)
}

/// A failure of ours must not look like one of the child's, which has the codes below 125.
fn around_the_child(failure: Failure) -> Failure {
    match failure.code {
        Code::NotFound | Code::NotExecutable => failure,
        Code::Exec
        | Code::Failed
        | Code::Usage
        | Code::LoginNeeded
        | Code::Denied
        | Code::Unreachable
        | Code::Warehouse
        | Code::LeaseGone => failure.with_code(Code::Exec),
    }
}
