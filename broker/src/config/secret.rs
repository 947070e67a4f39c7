//! References to secrets: `{ file: … }` and `{ env: … }`. The value goes straight into a [`SecretString`].

use std::path::Path;

use kdbt_api::credential::{PrivateKey, PrivateKeyError};
use secrecy::SecretString;
use zeroize::Zeroizing;

use crate::diagnostics::{Diagnostic, Diagnostics, Span};
use crate::yaml::{Node, Value};

/// The secret that a node refers to: one line. A file's last line end is not part of it.
pub(super) fn secret(node: &Node, folder: &Path, found: &mut Diagnostics) -> Option<SecretString> {
    let text = referred(node, folder, found)?;
    if text.is_empty() || text.contains(['\n', '\0']) {
        let error = Diagnostic::error("the secret that this refers to is empty or has several lines");
        found.push(error.at(&node.span));
        return None;
    }
    Some(SecretString::from(text.as_str()))
}

/// The private key that a node refers to: unencrypted PKCS#8 with an RSA key, as PEM or as base64 of its DER on one line.
pub(super) fn private_key(node: &Node, folder: &Path, found: &mut Diagnostics) -> Option<PrivateKey> {
    let key = referred(node, folder, found)?.parse();
    key.map_err(|error: PrivateKeyError| found.push(Diagnostic::error(error.to_string()).at(&node.span)))
        .ok()
}

/// A secret for one command alone: from a file, or else from a variable. The error says what to do.
pub fn secret_of(file: Option<&Path>, variable: &str) -> Result<SecretString, String> {
    let text = match file {
        Some(file) => std::fs::read_to_string(file)
            .map(Zeroizing::new)
            .map_err(|error| format!("cannot read the secret in {}: {error}", file.display()))?,
        None => variable_of(variable)
            .ok_or_else(|| format!("there is no secret: set `{variable}`, or name a file that holds it"))?,
    };
    match text.trim_end_matches(['\n', '\r']) {
        "" => Err("the secret is empty".to_owned()),
        secret if secret.contains(['\n', '\0']) => Err("the secret has several lines".to_owned()),
        secret => Ok(SecretString::from(secret)),
    }
}

fn referred(node: &Node, folder: &Path, found: &mut Diagnostics) -> Option<Zeroizing<String>> {
    const HELP: &str = "write `{ file: /path/to/it }` or `{ env: NAME }`";
    if !matches!(node.value, Value::Map(_)) {
        let error = Diagnostic::error("a secret must not stand in the configuration").at(&node.span);
        found.push(error.help(HELP));
        return None;
    }
    let mut fields = node.fields("a secret", found)?;
    let file = fields.optional::<String>("file", found);
    let variable = fields.optional::<String>("env", found);
    fields.finish(found);
    match (file, variable) {
        (Some(file), None) => from_file(&folder.join(file), &node.span, found),
        (None, Some(name)) => from_variable(&name, &node.span, found),
        (Some(_), Some(_)) | (None, None) => {
            let error = Diagnostic::error("a secret is one reference: to a file or to a variable");
            found.push(error.at(&node.span).help(HELP));
            None
        }
    }
}

fn from_file(path: &Path, place: &Span, found: &mut Diagnostics) -> Option<Zeroizing<String>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => Zeroizing::new(text),
        Err(error) => {
            let message = format!("cannot read the secret in {}: {error}", path.display());
            found.push(Diagnostic::error(message).at(place));
            return None;
        }
    };
    if readable_by_all(path) {
        let warning = Diagnostic::warning(format!("everybody on this machine can read {}", path.display()));
        found.push(warning.at(place).help(format!("chmod 600 {}", path.display())));
    }
    let line = text.strip_suffix('\n').unwrap_or(&text);
    Some(Zeroizing::new(line.strip_suffix('\r').unwrap_or(line).to_owned()))
}

#[cfg(unix)]
fn readable_by_all(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o004 != 0)
}

#[cfg(not(unix))]
fn readable_by_all(_: &Path) -> bool {
    false
}

#[expect(
    clippy::disallowed_methods,
    reason = "the configuration is where the environment is read"
)]
fn variable_of(name: &str) -> Option<Zeroizing<String>> {
    std::env::var(name).ok().map(Zeroizing::new)
}

fn from_variable(name: &str, place: &Span, found: &mut Diagnostics) -> Option<Zeroizing<String>> {
    let value = variable_of(name);
    if value.is_none() {
        let error = Diagnostic::error(format!("the variable `{name}` is not set, or is no text"));
        found.push(error.at(place));
    }
    value
}
