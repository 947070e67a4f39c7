//! What every implementation of a port is held to: functions that take the implementation and fail loudly.

pub mod warehouse;
