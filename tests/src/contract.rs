//! What every implementation of a port is held to: functions that take the implementation and fail loudly.

pub mod warehouse;
//! What every implementation of a port must do, as functions over the port.
pub mod store;
