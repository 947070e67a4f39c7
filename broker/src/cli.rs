//! The command line of the broker: one module per group of commands.

pub mod policy;
