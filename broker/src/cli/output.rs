//! The one way to the terminal: stdout for what was asked for, stderr for people. A closed pipe is no error.

use std::io::Write as _;

/// Writes a text to stdout as it is.
pub fn text(text: &str) {
    let _closed_pipe = std::io::stdout().write_all(text.as_bytes());
}

/// Writes a line to stdout.
pub fn line(text: &str) {
    let _closed_pipe = writeln!(std::io::stdout(), "{text}");
}

/// Writes a line to stderr.
pub fn note(text: &str) {
    let _closed_pipe = writeln!(std::io::stderr(), "{text}");
}

/// Writes an error to stderr.
pub fn error(text: &str) {
    let lead = if text.starts_with("error") { "" } else { "error: " };
    note(&format!("{lead}{text}"));
}
