//! From a tree to types: every mistake is reported with its place, and reading goes on to find the next.

use std::collections::BTreeSet;
use std::str::FromStr;

use super::tree::{Key, Node, Value};
use crate::diagnostics::{Diagnostic, Diagnostics, Span, suggestion};

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spanned<T> {
    /// The value.
    pub value: T,
    /// Where.
    pub span: Span,
}

/// What can be read of a node. `None`: a mistake was reported.
pub trait Read: Sized {
    /// Reads it, and reports all that is wrong with it.
    fn read(node: &Node, found: &mut Diagnostics) -> Option<Self>;
}

impl Node {
    fn refuse<T>(&self, expected: &str, found: &mut Diagnostics) -> Option<T> {
        let got = match &self.value {
            Value::Plain(_) => "a value without quotes",
            Value::Quoted(_) => "text in quotes",
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
        };
        found.push(Diagnostic::error(format!("expected {expected}, found {got}")).at(&self.span));
        None
    }

    /// Its entries, if it is a map.
    pub fn entries(&self, found: &mut Diagnostics) -> Option<&[(Key, Node)]> {
        match &self.value {
            Value::Map(entries) => Some(entries),
            Value::Plain(_) | Value::Quoted(_) | Value::List(_) => self.refuse("a map", found),
        }
    }

    /// Its items, if it is a list.
    pub fn items(&self, found: &mut Diagnostics) -> Option<&[Self]> {
        match &self.value {
            Value::List(items) => Some(items),
            Value::Plain(_) | Value::Quoted(_) | Value::Map(_) => self.refuse("a list", found),
        }
    }

    /// Its entries by name; `what` says in errors what the map is.
    pub fn fields<'a>(&'a self, what: &'a str, found: &mut Diagnostics) -> Option<Fields<'a>> {
        let entries = self.entries(found)?;
        Some(Fields {
            what,
            span: &self.span,
            entries,
            known: Vec::new(),
            refused: Vec::new(),
        })
    }

    /// The value that its text stands for; the error of `T` says what is wrong.
    pub fn parsed<T>(&self, found: &mut Diagnostics) -> Option<T>
    where
        T: FromStr,
        T::Err: std::fmt::Display,
    {
        let text = text_of(self, found)?;
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                found.push(Diagnostic::error(format!("{error}")).at(&self.span));
                None
            }
        }
    }
}

/// The text of a scalar. A number or boolean without quotes is a mistake: nobody can tell what was meant.
pub fn text_of<'a>(node: &'a Node, found: &mut Diagnostics) -> Option<&'a str> {
    match &node.value {
        Value::Plain(text) if text.parse::<f64>().is_ok() || matches!(text.as_str(), "true" | "false") => {
            let error = Diagnostic::error("expected text, found a number or boolean").at(&node.span);
            found.push(error.help("put it in quotes"));
            None
        }
        Value::Plain(text) | Value::Quoted(text) => Some(text),
        Value::List(_) | Value::Map(_) => node.refuse("text", found),
    }
}

impl Read for String {
    fn read(node: &Node, found: &mut Diagnostics) -> Option<Self> {
        text_of(node, found).map(str::to_owned)
    }
}

impl Read for bool {
    fn read(node: &Node, found: &mut Diagnostics) -> Option<Self> {
        match &node.value {
            Value::Plain(text) if text == "true" => Some(true),
            Value::Plain(text) if text == "false" => Some(false),
            Value::Plain(_) | Value::Quoted(_) | Value::List(_) | Value::Map(_) => {
                node.refuse("`true` or `false`", found)
            }
        }
    }
}

macro_rules! read_number {
    ($type:ty) => {
        impl Read for $type {
            fn read(node: &Node, found: &mut Diagnostics) -> Option<Self> {
                let digits = match &node.value {
                    Value::Plain(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok(),
                    Value::Plain(_) | Value::Quoted(_) | Value::List(_) | Value::Map(_) => None,
                };
                digits.or_else(|| node.refuse(&format!("a whole number up to {}", <$type>::MAX), found))
            }
        }
    };
}
read_number!(u16);
read_number!(u32);

impl Read for i32 {
    fn read(node: &Node, found: &mut Diagnostics) -> Option<Self> {
        let number = match &node.value {
            Value::Plain(text) => text.parse().ok(),
            Value::Quoted(_) | Value::List(_) | Value::Map(_) => None,
        };
        number.or_else(|| node.refuse("a whole number", found))
    }
}

macro_rules! read_parsed {
    ($($type:ty),+) => {
        $(impl Read for $type {
            fn read(node: &Node, found: &mut Diagnostics) -> Option<Self> {
                node.parsed(found)
            }
        })+
    };
}
read_parsed!(
    kdbt_api::Timestamp,
    kdbt_api::Ttl,
    kdbt_api::name::DatabaseName,
    kdbt_api::name::InstallationName,
    kdbt_api::name::RoleName,
    kdbt_api::name::RuleId,
    kdbt_api::name::SchemaName,
    kdbt_api::name::ServerName,
    kdbt_api::name::TargetName,
    kdbt_api::name::WarehouseName
);

impl<T: Read> Read for Spanned<T> {
    fn read(node: &Node, found: &mut Diagnostics) -> Option<Self> {
        let value = T::read(node, found)?;
        let span = node.span.clone();
        Some(Self { value, span })
    }
}

impl<T: Read> Read for Vec<T> {
    /// Whatever can be read; a list with a wrong item is a list without it, and the mistake is reported.
    fn read(node: &Node, found: &mut Diagnostics) -> Option<Self> {
        let items = node.items(found)?;
        Some(items.iter().filter_map(|item| T::read(item, found)).collect())
    }
}

impl<T: Read + Ord> Read for BTreeSet<T> {
    fn read(node: &Node, found: &mut Diagnostics) -> Option<Self> {
        let mut set = Self::new();
        for item in node.items(found)? {
            if let Some(value) = T::read(item, found)
                && !set.insert(value)
            {
                found.push(Diagnostic::error("stands twice in the list").at(&item.span));
            }
        }
        Some(set)
    }
}

/// The entries of a map, taken one by one; [`Fields::finish`] reports those that nobody took.
#[derive(Debug)]
pub struct Fields<'a> {
    what: &'a str,
    span: &'a Span,
    entries: &'a [(Key, Node)],
    known: Vec<&'static str>,
    refused: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    /// The node of a key, and that this key is known.
    pub fn node(&mut self, name: &'static str) -> Option<&'a Node> {
        self.entry(name).map(|(_, node)| node)
    }

    /// The key and the node of a name.
    pub fn entry(&mut self, name: &'static str) -> Option<&'a (Key, Node)> {
        self.known.push(name);
        self.entries.iter().find(|(key, _)| key.text == name)
    }

    /// A value that may be missing.
    pub fn optional<T: Read>(&mut self, name: &'static str, found: &mut Diagnostics) -> Option<T> {
        self.node(name).and_then(|node| T::read(node, found))
    }

    /// A value that must be there.
    pub fn required<T: Read>(&mut self, name: &'static str, found: &mut Diagnostics) -> Option<T> {
        let Some(node) = self.node(name) else {
            self.missing(name, found);
            return None;
        };
        T::read(node, found)
    }

    /// Reports that a key is not there.
    pub fn missing(&self, name: &str, found: &mut Diagnostics) {
        found.push(Diagnostic::error(format!("{} has no `{name}`", self.what)).at(self.span));
    }

    /// A key of the language that this version cannot honour: refused, never half understood.
    pub fn unsupported(&mut self, name: &'static str, instead: &str, found: &mut Diagnostics) {
        self.refused.push(name);
        if let Some((key, _)) = self.entries.iter().find(|(key, _)| key.text == name) {
            let error = Diagnostic::error(format!("`{name}` is not supported yet")).at(&key.span);
            found.push(error.help(instead));
        }
    }

    /// Reports the keys that nobody asked for.
    pub fn finish(self, found: &mut Diagnostics) {
        for (key, _) in self.entries {
            let name = key.text.as_str();
            if !self.known.contains(&name) && !self.refused.contains(&name) {
                let error = Diagnostic::error(format!("unknown key `{}`", key.text)).code("K001");
                let near = suggestion(&key.text, self.known.iter().copied());
                found.push(error.at(&key.span).label(near));
            }
        }
    }
}
