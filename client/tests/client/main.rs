//! Drives the real binary against a broker and an issuer that live in the test and can be told to lie.

#[cfg(test)]
mod exec;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod help;
#[cfg(test)]
mod login;
#[cfg(test)]
mod profile;
#[cfg(test)]
mod snowflake;
