//! `cargo verify`: gets what the tests need.

use std::process::ExitCode;

use kdbt_e2e::provision::{Need, provision};

fn main() -> ExitCode {
    let missing = provision(&Need::ALL);
    for (need, error) in &missing {
        eprintln!("{need}: {error:#}");
    }
    ExitCode::from(u8::from(!missing.is_empty()))
}
