//! What people read first.

use crate::fake::{Fake, stdout};

#[test]
fn the_help_of_the_client_and_of_exec_reads_as_reviewed() {
    let fake = Fake::start();
    let help = |args: &[&str]| stdout(&fake.client(args).output().unwrap());
    insta::assert_snapshot!("help", help(&["--help"]));
    insta::assert_snapshot!("help_exec", help(&["exec", "--help"]));
    insta::assert_snapshot!("help_login", help(&["login", "--help"]));
}

#[test]
fn an_unknown_flag_is_a_usage_error() {
    let fake = Fake::start();
    assert_eq!(
        fake.client(&["leases", "--nonsense"]).output().unwrap().status.code(),
        Some(2)
    );
}
