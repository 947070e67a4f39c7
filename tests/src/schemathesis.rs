//! Schemathesis: a fuzzer that reads an `OpenAPI` document and holds a server to it.

use std::path::PathBuf;

use anyhow::Result;

use crate::provision;

/// Both are pinned: the same seed makes the same requests only with the same generator.
const PACKAGES: [&str; 2] = ["schemathesis==4.32.5", "hypothesis==6.170.17"];

/// Its program, if it has been fetched.
pub fn program() -> Option<PathBuf> {
    provision::program_of(&place(), "schemathesis")
}

/// Can a test that needs it run? Where not, it says so and passes, except in CI (`CI=true`), where it fails.
pub fn is_there() -> bool {
    let there = program().is_some();
    if !there {
        assert_ne!(
            std::env::var("CI").as_deref(),
            Ok("true"),
            "there is no Schemathesis, and in CI there must be one"
        );
        eprintln!("NOT RUN: this test needs Schemathesis; `cargo verify` fetches it");
    }
    there
}

fn place() -> PathBuf {
    provision::cache().join("schemathesis-4.32.5")
}

pub(crate) fn fetch() -> Result<()> {
    provision::fetch_environment(&place(), &PACKAGES)
}
