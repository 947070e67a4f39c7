//! The stack under test.
pub mod issuer;
