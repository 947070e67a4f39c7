//! Strict YAML for all that people write: policies and the configuration, with a place for every value.
//!
//! The parser is the one inside serde-saphyr. Its events become a tree of our own instead of serde types, because
//! serde stops at the first mistake and hides whether a scalar was quoted. What YAML 1.1 would reinterpret is an
//! error here: tags, anchors, aliases, merge keys, `yes`, nulls, a second document.

mod read;
mod tree;

pub use self::read::{Fields, Read, Spanned, text_of};
pub use self::tree::{Key, MAX_BYTES, Node, Value, parse, read_file, source_of};

#[cfg(test)]
mod tests;
