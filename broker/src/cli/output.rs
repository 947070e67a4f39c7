//! The one way to the terminal: stdout for what was asked for, stderr for people. A closed pipe is no error.
//!
//! Holders of leases name things that end up here, so nothing that steers a terminal passes (S22).

use std::io::Write as _;

use kdbt_api::terminal::{visible, visible_line};

/// Writes a text of our own making to stdout as it is.
pub fn script(text: &str) {
    let _closed_pipe = std::io::stdout().write_all(text.as_bytes());
}

/// Writes a text of several lines to stdout.
pub fn text(text: &str) {
    script(&visible(text));
}

/// Writes a line to stdout; one of JSON reads back as what it was.
pub fn line(text: &str) {
    let _closed_pipe = writeln!(std::io::stdout(), "{}", visible_line(text));
}

/// Writes lines to stderr.
pub fn note(text: &str) {
    let _closed_pipe = writeln!(std::io::stderr(), "{}", visible(text));
}

/// Writes an error to stderr.
pub fn error(text: &str) {
    let lead = if text.starts_with("error") { "" } else { "error: " };
    note(&format!("{lead}{text}"));
}
