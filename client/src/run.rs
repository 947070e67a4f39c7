//! A command that runs with a lease: `exec` and `psql`.

mod child;
pub(crate) mod dbt;
mod exec;
mod signals;

pub(crate) use exec::{exec, psql};
