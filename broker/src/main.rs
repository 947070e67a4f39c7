//! The broker's process: what must be so before anything else runs, and the exit code.

use std::process::ExitCode;

use clap::Parser as _;
use kdbt_broker::cli::{self, Cli, output};

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(error) = cli::forbid_core_dumps() {
        output::error(&format!("core dumps cannot be turned off: {error}"));
        return ExitCode::FAILURE;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output::error(&format!("the runtime does not start: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(cli.run());
    // After a second signal nobody waits for what still runs.
    runtime.shutdown_background();
    code
}
