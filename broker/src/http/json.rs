//! JSON of callers, read strictly: every member known, every name once, and no error ever quotes a value.
//!
//! A value may be a secret that somebody put into the wrong member, so an error says where it stands and what
//! belongs there. Names of members are quoted, since without them nobody finds the spot, unless they look like a secret.

use std::fmt::{self, Display, Write as _};

use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor,
};
use serde_json::Number;

/// How deep lists and objects may stand in each other; no request needs more than 2.
const MAX_DEPTH: u8 = 16;

/// Why a body is not what the call takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct JsonFault {
    /// Where: `ttl`, `rules[1]`; empty for the body as a whole.
    path: String,
    /// What is wrong there.
    what: String,
    /// The member has the right shape, but its type refuses the text: a malformed verifier, a name that cannot be.
    pub(super) refused_value: bool,
}

impl JsonFault {
    fn new(what: impl Into<String>) -> Self {
        Self {
            path: String::new(),
            what: what.into(),
            refused_value: false,
        }
    }

    /// The same, seen from one level further out.
    fn within(mut self, outer: &str) -> Self {
        let dot = if self.path.is_empty() || self.path.starts_with('[') {
            ""
        } else {
            "."
        };
        self.path = format!("{outer}{dot}{}", self.path);
        self
    }
}

impl Display for JsonFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.as_str() {
            "" => f.write_str(&self.what),
            path => write!(f, "`{path}`: {}", self.what),
        }
    }
}

impl std::error::Error for JsonFault {}

impl de::Error for JsonFault {
    fn custom<T: Display>(refusal: T) -> Self {
        Self {
            refused_value: true,
            ..Self::new(refusal.to_string())
        }
    }

    fn invalid_type(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::new(format!("must be {expected}, not {}", kind(found)))
    }

    fn invalid_value(_found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::new(format!("must be {expected}"))
    }

    fn invalid_length(_found: usize, expected: &dyn de::Expected) -> Self {
        Self::new(format!("must be {expected}"))
    }

    fn unknown_variant(_found: &str, expected: &'static [&'static str]) -> Self {
        Self::new(format!("must be one of {}", quoted(expected)))
    }

    fn unknown_field(found: &str, expected: &'static [&'static str]) -> Self {
        let near = expected
            .iter()
            .copied()
            .find(|known| strsim::osa_distance(known, found) <= 2);
        let cure = near.map_or_else(
            || format!("known are {}", quoted(expected)),
            |near| format!("did you mean `{near}`?"),
        );
        Self::new(format!("unknown member; {cure}")).within(shown(found))
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new("is missing").within(field)
    }

    fn duplicate_field(field: &'static str) -> Self {
        Self::new("stands twice").within(field)
    }
}

fn quoted(names: &[&str]) -> String {
    let mut text = String::new();
    for (index, name) in names.iter().enumerate() {
        let comma = if index == 0 { "" } else { ", " };
        let _ = write!(text, "{comma}`{name}`");
    }
    text
}

fn kind(found: de::Unexpected<'_>) -> &'static str {
    use de::Unexpected as U;
    match found {
        U::Bool(_) => "true or false",
        U::Unsigned(_) | U::Signed(_) | U::Float(_) => "a number",
        U::Str(_) | U::Char(_) | U::Bytes(_) => "a text",
        U::Unit | U::Option => "null",
        U::Seq => "a list",
        U::Map => "an object",
        U::NewtypeStruct
        | U::Enum
        | U::UnitVariant
        | U::NewtypeVariant
        | U::TupleVariant
        | U::StructVariant
        | U::Other(_) => "something else",
    }
}

/// The longest name of a member that is quoted, in bytes.
const MAX_SHOWN: usize = 20;

/// A caller's name for a member, if it looks like one: a token or a password may stand there too, by a slip of the pen
/// or of a script, and those are long or have digits.
fn shown(name: &str) -> &str {
    let plain = |b: u8| b.is_ascii_alphabetic() || b == b'_' || b == b'-';
    if name.len() <= MAX_SHOWN && name.bytes().all(plain) {
        name
    } else {
        "…"
    }
}

/// Reads one value from a body.
pub(super) fn from_slice<T: DeserializeOwned>(body: &[u8]) -> Result<T, JsonFault> {
    T::deserialize(parse(body)?)
}

/// Reads one value from the pairs of a query; a number is written as a text there.
pub(super) fn from_pairs<T: DeserializeOwned>(pairs: Vec<(String, String)>) -> Result<T, JsonFault> {
    let mut members: Vec<(String, Json)> = Vec::with_capacity(pairs.len());
    for (name, value) in pairs {
        if members.iter().any(|(known, _)| *known == name) {
            return Err(JsonFault::new("stands twice").within(shown(&name)));
        }
        members.push((name, Json::Text(value)));
    }
    T::deserialize(Json::Object(members))
}

fn parse(body: &[u8]) -> Result<Json, JsonFault> {
    if body.is_empty() {
        return Err(JsonFault::new("the body is empty; it must be a JSON object"));
    }
    let mut found = None;
    let mut reader = serde_json::Deserializer::from_slice(body);
    let value = Reading {
        depth_left: MAX_DEPTH,
        found: &mut found,
    }
    .deserialize(&mut reader);
    value.and_then(|value| reader.end().map(|()| value)).map_err(|error| {
        let at = format!("line {}, column {}", error.line(), error.column());
        found.unwrap_or_else(|| JsonFault::new(format!("the body is not valid JSON at {at}")))
    })
}

/// A JSON value in which no name stands twice.
#[derive(Debug, Clone)]
enum Json {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Json>),
    Object(Vec<(String, Json)>),
}

/// Builds a [`Json`]; `found` keeps a fault of ours, which `serde_json`'s error could only carry as text.
struct Reading<'a> {
    depth_left: u8,
    found: &'a mut Option<JsonFault>,
}

impl Reading<'_> {
    fn fail<E: de::Error>(&mut self, fault: JsonFault) -> E {
        *self.found = Some(fault);
        E::custom("")
    }

    fn deeper<E: de::Error>(&mut self) -> Result<Reading<'_>, E> {
        match self.depth_left.checked_sub(1) {
            Some(depth_left) => Ok(Reading {
                depth_left,
                found: self.found,
            }),
            None => Err(self.fail(JsonFault::new("the body is nested too deeply"))),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Reading<'_> {
    type Value = Json;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Reading<'_> {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(Number::from_f64(value).map_or(Json::Null, Json::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<Json, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self.deeper()?)? {
            list.push(item);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut members: A) -> Result<Json, A::Error> {
        let mut object: Vec<(String, Json)> = Vec::new();
        while let Some(name) = members.next_key::<String>()? {
            if object.iter().any(|(known, _)| *known == name) {
                return Err(self.fail(JsonFault::new("stands twice in one object").within(shown(&name))));
            }
            if object.len() == MAX_MEMBERS {
                return Err(self.fail(JsonFault::new(format!("an object has more than {MAX_MEMBERS} members"))));
            }
            let value = members.next_value_seed(self.deeper()?)?;
            object.push((name, value));
        }
        Ok(Json::Object(object))
    }
}

/// How many members an object may have; keeps the search for names that stand twice short.
const MAX_MEMBERS: usize = 64;

impl IntoDeserializer<'_, JsonFault> for Json {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

/// Hands members out and puts their names into the faults that come back.
struct Members {
    left: std::vec::IntoIter<(String, Json)>,
    value: Option<(String, Json)>,
}

impl<'de> MapAccess<'de> for Members {
    type Error = JsonFault;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, JsonFault> {
        self.value = self.left.next();
        let Some((name, _)) = &self.value else { return Ok(None) };
        seed.deserialize(name.as_str().into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, JsonFault> {
        let (name, value) = self
            .value
            .take()
            .ok_or_else(|| JsonFault::new("a member has no value"))?;
        seed.deserialize(value).map_err(|fault| fault.within(shown(&name)))
    }
}

/// Hands items out and puts their index into the faults that come back.
struct Items {
    left: std::iter::Enumerate<std::vec::IntoIter<Json>>,
}

impl<'de> SeqAccess<'de> for Items {
    type Error = JsonFault;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, JsonFault> {
        let Some((index, item)) = self.left.next() else {
            return Ok(None);
        };
        seed.deserialize(item)
            .map(Some)
            .map_err(|fault| fault.within(&format!("[{index}]")))
    }
}

impl<'de> Deserializer<'de> for Json {
    type Error = JsonFault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, JsonFault> {
        match self {
            Self::Null => visitor.visit_unit(),
            Self::Bool(value) => visitor.visit_bool(value),
            Self::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
                (Some(value), _, _) => visitor.visit_u64(value),
                (None, Some(value), _) => visitor.visit_i64(value),
                (None, None, value) => visitor.visit_f64(value.unwrap_or(f64::NAN)),
            },
            Self::Text(text) => visitor.visit_string(text),
            Self::List(items) => visitor.visit_seq(Items {
                left: items.into_iter().enumerate(),
            }),
            Self::Object(members) => visitor.visit_map(Members {
                left: members.into_iter(),
                value: None,
            }),
        }
    }

    /// `null` is no way to leave a member out of a request: one form for one meaning.
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, JsonFault> {
        visitor.visit_some(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, JsonFault> {
        match self {
            Self::Text(text) => visitor.visit_enum(text.into_deserializer()),
            Self::Null | Self::Bool(_) | Self::Number(_) | Self::List(_) | Self::Object(_) => {
                Err(JsonFault::new("must be a text"))
            }
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, JsonFault> {
        visitor.visit_newtype_struct(self)
    }

    /// Serde would take a list for a struct, member by member; no caller may count on that.
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, JsonFault> {
        match self {
            Self::Object(_) => self.deserialize_any(visitor),
            Self::Null | Self::Bool(_) | Self::Number(_) | Self::Text(_) | Self::List(_) => {
                Err(JsonFault::new("must be an object"))
            }
        }
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        seq tuple tuple_struct map identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use kdbt_api::lease::{ExplainRequest, OrderRequest, RenewRequest};
    use proptest::prelude::*;

    use super::*;

    fn order(body: &str) -> String {
        from_slice::<OrderRequest>(body.as_bytes())
            .map(|_| ())
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn a_fault_names_the_member_and_what_belongs_there() {
        for (body, fault) in [
            ("", "the body is empty; it must be a JSON object"),
            ("{", "the body is not valid JSON at line 1, column 1"),
            ("{}\n]", "the body is not valid JSON at line 2, column 1"),
            ("{}", "`target`: is missing"),
            (r#"["dev"]"#, "must be an object"),
            ("null", "must be an object"),
            (r#"{"target": 7}"#, "`target`: must be a string, not a number"),
            (r#"{"target": null}"#, "`target`: must be a string, not null"),
            (r#"{"target": "a", "ttl": null}"#, "`ttl`: must be a string, not null"),
            (
                r#"{"target": "a", "tll": "2h"}"#,
                "`tll`: unknown member; did you mean `ttl`?",
            ),
            (
                r#"{"target": "a", "rules": "b"}"#,
                "`rules`: must be a sequence, not a text",
            ),
            (
                r#"{"target": "a", "rules": ["b", 1]}"#,
                "`rules[1]`: must be a string, not a number",
            ),
            (
                r#"{"target": "a", "target": "b"}"#,
                "`target`: stands twice in one object",
            ),
            (
                r#"{"target": "a", "\u0074arget": "b"}"#,
                "`target`: stands twice in one object",
            ),
        ] {
            assert_eq!(order(body), fault, "{body}");
        }
    }

    #[test]
    fn a_fault_never_quotes_a_value() {
        for body in [
            r#"{"target": "hunter2 hunter2"}"#,
            r#"{"target": "a", "ttl": "hunter2"}"#,
            r#"{"target": "a", "verifier": "hunter2"}"#,
            r#"{"target": "a", "owner_proof": "hunter2"}"#,
            r#"{"target": {"hunter2": 1}}"#,
            r#"{"target": ["hunter2"]}"#,
            r#""hunter2""#,
            r#"{"hunter2": 1}"#,
            r#"{"hunter2": 1, "hunter2": 1}"#,
        ] {
            assert!(!order(body).contains("hunter2"), "{}", order(body));
        }
        assert_eq!(
            order(r#"{"target": "a", "CorrectHorseBatteryStaple": 1}"#)
                .split(';')
                .next(),
            Some("`…`: unknown member")
        );
    }

    #[test]
    fn what_a_type_refuses_is_told_apart_from_a_wrong_shape() {
        let fault = |body: &str| from_slice::<OrderRequest>(body.as_bytes()).map(|_| ()).unwrap_err();
        assert!(fault(r#"{"target": "a", "verifier": "md5abc"}"#).refused_value);
        assert!(fault(r#"{"target": "a; DROP ROLE b"}"#).refused_value);
        assert!(!fault(r#"{"target": "a", "verifier": 1}"#).refused_value);
    }

    #[test]
    fn a_good_body_is_read() {
        let order: OrderRequest = from_slice(br#"{"target": "dev", "ttl": "2h", "rules": ["a", "b"]}"#).unwrap();
        assert_eq!((order.target.as_str(), order.rules.len()), ("dev", 2));
        assert!(from_slice::<RenewRequest>(b"{}").unwrap().ttl.is_none());
        assert!(from_slice::<ExplainRequest>(br#" {"target": "dev"} "#).is_ok());
    }

    #[test]
    fn deep_and_wide_bodies_are_refused() {
        let deep = format!(r#"{{"target": {}1{}}}"#, "[".repeat(20_000), "]".repeat(20_000));
        assert_eq!(order(&deep), "the body is nested too deeply");
        let wide: Vec<String> = (0..=MAX_MEMBERS).map(|n| format!(r#""m{n}": 1"#)).collect();
        assert_eq!(
            order(&format!("{{{}}}", wide.join(","))),
            "an object has more than 64 members"
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = from_slice::<OrderRequest>(&bytes);
        }
    }
}
