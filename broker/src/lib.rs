//! The kdbt broker as a library: `main.rs` and the tests are its only users.
//!
//! A request flows one way: identity → grant → lease → warehouse → profile. Each step hands the next one a
//! stronger type, and dying between any two leaves nothing that nobody knows about.

pub mod app;
pub mod audit;
pub mod broker;
pub mod cli;
pub mod clock;
pub mod config;
pub mod diagnostics;
pub mod end;
pub mod failpoint;
pub mod grant;
pub mod http;
pub mod identity;
pub mod issue;
pub mod lease;
pub mod mark;
pub mod metrics;
pub mod policy;
pub mod reaper;
pub mod renew;
pub mod residue;
pub mod revoke;
pub mod scan;
pub mod server;
pub mod service;
pub mod store;
#[cfg(test)]
mod story;
pub mod sweep;
pub mod telemetry;
#[cfg(test)]
mod testing;
pub mod view;
pub mod warehouse;
pub mod yaml;
