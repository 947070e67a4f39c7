//! The commands that ask, show and hand out; those that run something stand in `run`.

mod doctor;
mod leases;
mod profile;
mod session;
mod targets;

pub(crate) use doctor::doctor;
pub(crate) use leases::{leases, renew, revoke};
pub(crate) use profile::{env, profile};
pub(crate) use session::{login, logout, whoami};
pub(crate) use targets::{explain, targets};
