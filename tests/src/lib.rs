//! The stack that kdbt is tested on: what it is made of, how to get it, and how to start and stop it.

pub mod bench;
pub mod binaries;
pub mod broker;
pub mod client;
pub mod contract;
pub mod dbt;
pub mod demo;
pub mod fault;
pub mod fuzz;
pub mod identity;
pub mod impostor;
pub mod issuer;
pub mod keycloak;
pub mod lake;
pub mod leaks;
pub mod mutations;
pub mod postgres;
pub mod process;
pub mod provision;
pub mod reproduce;
pub mod sbom;
pub mod schemathesis;
pub mod snowflake;
pub mod stack;
pub mod verify;
pub mod watchdog;
