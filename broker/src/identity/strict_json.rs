//! JSON read strictly: one object, every name once at any depth, nothing before or after it.
//!
//! `serde_json::Value` keeps the last of two members with the same name; another reader may keep the first, and
//! then two parties see two different tokens. Byte order marks, lone surrogates, invalid UTF-8 and trailing data
//! are refused by `serde_json` itself; a test holds it to that.

use std::cell::Cell;
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// How deep objects and lists may stand in each other; Keycloak's own tokens need 4.
const MAX_DEPTH: u8 = 16;

/// Why bytes are no strict JSON object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum StrictJsonError {
    /// Not JSON, not UTF-8, or something stands before or after the value.
    #[error("not one JSON value in UTF-8")]
    Syntax,
    /// JSON, but not an object.
    #[error("not a JSON object")]
    NotAnObject,
    /// A name stands twice in one object.
    #[error("a name stands twice in one object")]
    DuplicateName,
    /// Nested deeper than the limit.
    #[error("nested too deeply")]
    TooDeep,
}

/// Reads one JSON object.
pub(super) fn parse_object(bytes: &[u8]) -> Result<Map<String, Value>, StrictJsonError> {
    let fault = Cell::new(StrictJsonError::Syntax);
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = Strict {
        depth_left: MAX_DEPTH,
        fault: &fault,
    }
    .deserialize(&mut reader);
    match value.and_then(|value| reader.end().map(|()| value)) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(StrictJsonError::NotAnObject),
        Err(_) => Err(fault.get()),
    }
}

/// One value; `fault` keeps what serde's error would say only as text.
#[derive(Clone, Copy)]
struct Strict<'a> {
    depth_left: u8,
    fault: &'a Cell<StrictJsonError>,
}

impl Strict<'_> {
    fn deeper<E: de::Error>(self) -> Result<Self, E> {
        let depth_left = self
            .depth_left
            .checked_sub(1)
            .ok_or_else(|| self.fail(StrictJsonError::TooDeep))?;
        Ok(Self { depth_left, ..self })
    }

    fn fail<E: de::Error>(self, fault: StrictJsonError) -> E {
        self.fault.set(fault);
        E::custom(fault)
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| self.fail(StrictJsonError::Syntax))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(inner)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut object = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            let value = members.next_value_seed(inner)?;
            if object.insert(name, value).is_some() {
                return Err(self.fail(StrictJsonError::DuplicateName));
            }
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // R9
    #[test]
    fn a_name_that_stands_twice_is_refused_at_any_depth_and_in_any_spelling() {
        for text in [
            r#"{"iss":"a","iss":"b"}"#,
            r#"{"iss":"a","\u0069ss":"b"}"#,
            r#"{"realm_access":{"roles":[],"roles":["admin"]}}"#,
            r#"{"a":[{"b":[{"c":1,"c":2}]}]}"#,
        ] {
            assert_eq!(
                parse_object(text.as_bytes()),
                Err(StrictJsonError::DuplicateName),
                "{text}"
            );
        }
        assert!(parse_object(br#"{"iss":"a","ISS":"b"}"#).is_ok(), "another name");
    }

    // R9
    #[test]
    fn what_is_not_one_json_value_in_utf_8_is_refused() {
        let texts: &[&[u8]] = &[
            b"",
            b"{",
            b"{}x",
            b"{}{}",
            b"\xef\xbb\xbf{}",
            b"{\"a\":\"\xff\"}",
            br#"{"a":"\ud800"}"#,
            br#"{"a":"\udc00\ud800"}"#,
            br#"{"a":1,}"#,
            br#"{"a":NaN}"#,
            br#"{"a":1e999}"#,
            b"{'a':1}",
            b"{\"a\":\"\n\"}",
        ];
        for text in texts {
            assert_eq!(
                parse_object(text),
                Err(StrictJsonError::Syntax),
                "{}",
                text.escape_ascii()
            );
        }
    }

    // R9
    #[test]
    fn a_value_that_is_no_object_is_refused() {
        for text in ["[]", "null", "1", r#""{}""#, "true"] {
            assert_eq!(
                parse_object(text.as_bytes()),
                Err(StrictJsonError::NotAnObject),
                "{text}"
            );
        }
    }

    // R9
    #[test]
    fn nesting_is_refused_one_level_above_the_limit_and_far_above_it() {
        let nested = |depth: usize| format!(r#"{{"a":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
        let limit = usize::from(MAX_DEPTH) - 1;
        assert!(parse_object(nested(limit).as_bytes()).is_ok());
        assert_eq!(
            parse_object(nested(limit + 1).as_bytes()),
            Err(StrictJsonError::TooDeep)
        );
        assert_eq!(parse_object(nested(100_000).as_bytes()), Err(StrictJsonError::TooDeep));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = parse_object(&bytes);
        }

        #[test]
        fn what_is_accepted_is_read_as_serde_json_reads_it(names in prop::collection::btree_set("[a-z\"\\\\ü]{0,4}", 0..5), number: i64) {
            let object: Map<String, Value> = names.into_iter().map(|name| (name, number.into())).collect();
            let text = serde_json::to_vec(&object).unwrap();
            prop_assert_eq!(parse_object(&text), Ok(object));
        }
    }
}
