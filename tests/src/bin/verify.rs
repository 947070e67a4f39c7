//! `cargo verify`; see [`kdbt_e2e::verify`].

use std::process::ExitCode;

use clap::Parser;
use kdbt_e2e::verify::Arguments;

fn main() -> ExitCode {
    match Arguments::parse().run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("verify: {error:#}");
            ExitCode::FAILURE
        }
    }
}
