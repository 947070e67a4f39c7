//! What every implementation of a port must do, as functions over the port.

pub mod store;
pub mod warehouse;
