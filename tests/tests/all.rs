//! All end-to-end tests.

#[path = "all/issuer.rs"]
mod issuer;
