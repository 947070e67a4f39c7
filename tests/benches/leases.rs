//! `cargo bench -p kdbt-e2e`: what a lease costs, beside what the server alone takes for it. See `kdbt_e2e::bench`.

use clap::Parser;
use kdbt_e2e::bench::{Options, run};

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(run(&options))
}
