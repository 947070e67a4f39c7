//! What broker and client share: names, times, credentials, the wire types and the dbt profile.
//!
//! Pure on purpose: no I/O, no clock, no environment is in reach of this crate.

pub mod credential;
pub mod hex;
pub mod lease;
pub mod name;
#[cfg(feature = "openapi")]
mod openapi;
pub mod problem;
pub mod profile;
pub mod terminal;
pub mod time;

pub use time::{Timestamp, Ttl};
