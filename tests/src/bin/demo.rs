//! `cargo demo`: the main job, for people to watch.

use std::process::ExitCode;

use clap::Parser;
use kdbt_e2e::demo::{self, Options};

#[tokio::main]
async fn main() -> ExitCode {
    match demo::run(&Options::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\n  ✗ {error:#}");
            ExitCode::FAILURE
        }
    }
}
