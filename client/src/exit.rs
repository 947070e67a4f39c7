//! How a command ends when it does not succeed: a code for programs, a line and a hint for people.

use std::fmt;

/// The exit codes, a promise to scripts. `exec` ends with its child's code instead, or with 125 to 127.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    /// Something else failed.
    Failed = 1,
    /// The command line, the environment or a file of the user's is wrong.
    Usage = 2,
    /// A login is needed and nobody is there to do it.
    LoginNeeded = 3,
    /// The policy says no.
    Denied = 4,
    /// The broker or Keycloak cannot be reached, or cannot answer now.
    Unreachable = 6,
    /// The warehouse, or the state it is in, refused.
    Warehouse = 7,
    /// The lease is gone.
    LeaseGone = 8,
    /// `exec` failed before its child ran.
    Exec = 125,
    /// The command of `exec` cannot be run.
    NotExecutable = 126,
    /// The command of `exec` was not found.
    NotFound = 127,
}

/// Why a command failed. Holds no secret.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The exit code.
    pub(crate) code: Code,
    /// What was wrong, and where.
    message: String,
    /// What to do next, shown on its own line.
    pub(crate) hint: Option<String>,
}

impl Failure {
    /// A failure with its line; lower case, no full stop.
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            hint: None,
        }
    }

    /// With what to do next.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same failure under another exit code.
    pub(crate) fn with_code(self, code: Code) -> Self {
        Self { code, ..self }
    }

    /// A file or folder of ours that cannot be used.
    pub(crate) fn file(what: &str, path: &std::path::Path, error: &std::io::Error) -> Self {
        Self::new(Code::Failed, format!("cannot {what} `{}`: {error}", path.display()))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// What commands return.
pub(crate) type Outcome<T> = Result<T, Failure>;
