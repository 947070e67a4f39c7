//! Everything that reads what strangers write, fed with what strangers could write: a moment a target in every run,
//! a minute with `cargo verify -- --long fuzz`, an hour with `cargo verify fuzz`.

#[path = "fuzz/files.rs"]
mod files;
#[path = "fuzz/profile.rs"]
mod profile;
#[path = "fuzz/texts.rs"]
mod texts;
#[path = "fuzz/tokens.rs"]
mod tokens;

/// What broke a promise, where something does not hold.
fn hold(holds: bool, promise: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(promise.to_owned()) }
}

fn bytes(texts: impl IntoIterator<Item = impl Into<Vec<u8>>>) -> Vec<Vec<u8>> {
    texts.into_iter().map(Into::into).collect()
}
