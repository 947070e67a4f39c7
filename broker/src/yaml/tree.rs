//! From bytes to a tree: everything that is wrong whatever the file means.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use serde_saphyr::granit_parser::{Event, Options, Parser, ScalarStyle, ScanError, Span as EventSpan};

use crate::diagnostics::{Diagnostic, Diagnostics, Source, Span};

/// The longest file, in bytes.
pub const MAX_BYTES: usize = 1024 * 1024;

/// How deep lists and maps may stand in each other.
const MAX_DEPTH: usize = 16;

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What it covers.
    pub span: Span,
    /// What it is.
    pub value: Value,
}

/// What a value is. Nulls never get here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A scalar without quotes: text, a number or a boolean.
    Plain(String),
    /// A scalar in quotes or a block: text and nothing else.
    Quoted(String),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in the order of the file; no key stands twice.
    Map(Vec<(Key, Node)>),
}

/// A key of a mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Its text.
    pub text: String,
    /// Where it stands.
    pub span: Span,
}

/// Reads a file whole; refuses one that is too long before it is in memory.
pub fn read_file(path: &Path) -> Result<Vec<u8>, Diagnostic> {
    let failed = |error: &std::io::Error| Diagnostic::error(format!("cannot read {}: {error}", path.display()));
    let mut bytes = Vec::new();
    let limit = u64::try_from(MAX_BYTES).unwrap_or(u64::MAX).saturating_add(1);
    let file = File::open(path).map_err(|error| failed(&error))?;
    let read = file.take(limit).read_to_end(&mut bytes);
    read.map_err(|error| failed(&error))?;
    Ok(bytes)
}

/// Makes a source of bytes: too long, not UTF-8 and tabs before a value are found here.
pub fn source_of(name: &str, bytes: Vec<u8>, quotable: bool) -> Result<Arc<Source>, Diagnostic> {
    let make = |text: String| {
        if quotable {
            Source::new(name, text)
        } else {
            Source::confidential(name, text)
        }
    };
    if bytes.len() > MAX_BYTES {
        return Err(Diagnostic::error(format!("{name} is longer than 1 MiB")).help("split it into several files"));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let head = error.as_bytes().get(..valid).unwrap_or_default();
        let source = make(String::from_utf8_lossy(head).into_owned());
        Diagnostic::error("the file is not UTF-8 from here on").at(&Span::new(&source, valid, valid))
    })?;
    let source = make(text);
    let mut start = 0;
    for line in source.text().split_inclusive('\n') {
        let indent = line.len() - line.trim_start_matches([' ', '\t']).len();
        if let Some(tab) = line.get(..indent).and_then(|indent| indent.find('\t')) {
            let place = Span::new(&source, start + tab, start + tab + 1);
            return Err(Diagnostic::error("a tab in the indentation")
                .at(&place)
                .help("indent with spaces"));
        }
        start += line.len();
    }
    Ok(source)
}

/// The tree of a document, or `None` if it cannot be read; what is wrong goes to `found`.
pub fn parse(source: &Arc<Source>, found: &mut Diagnostics) -> Option<Node> {
    let mut options = Options::default();
    options.disallow_directives = true;
    options.emit_comments = false;
    options.emit_unresolved_aliases = true;
    options.flow_nesting_limit = MAX_DEPTH;
    options.block_nesting_limit = MAX_DEPTH;
    let mut builder = Builder {
        source,
        events: Parser::new_from_str_with_options(source.text(), options),
        found,
    };
    builder.document()
}

struct Builder<'a, I> {
    source: &'a Arc<Source>,
    events: I,
    found: &'a mut Diagnostics,
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the parser's enum is open; an event that has no place ends the reading"
)]
impl<'a, I: Iterator<Item = Result<(Event<'a>, EventSpan), ScanError>>> Builder<'a, I> {
    fn document(&mut self) -> Option<Node> {
        let mut root = None;
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamStart | Event::DocumentEnd => {}
                Event::DocumentStart(..) if root.is_some() => {
                    let error = Diagnostic::error("a second document in one file").at(&self.span(span));
                    self.found.push(error.help("remove the `---`, or use another file"));
                    return None;
                }
                Event::DocumentStart(..) => root = Some(self.node()?),
                Event::StreamEnd if root.is_none() => {
                    let start = Span::new(self.source, 0, 0);
                    let error = Diagnostic::error(format!("{} is empty", self.source.name())).at(&start);
                    self.found.push(error.help("start it with `kdbt: 1`"));
                    return None;
                }
                Event::StreamEnd => return root,
                _ => return self.stray(span),
            }
        }
    }

    fn next(&mut self) -> Option<(Event<'a>, EventSpan)> {
        match self.events.next()? {
            Ok(event) => Some(event),
            Err(error) => {
                let at = error.marker().byte_offset().unwrap_or(self.source.text().len());
                let found = Diagnostic::error(format!("this is no YAML: {}", error.info()));
                self.found.push(found.at(&Span::new(self.source, at, at + 1)));
                None
            }
        }
    }

    fn span(&self, span: EventSpan) -> Span {
        let range = span.byte_range().unwrap_or_default();
        Span::new(self.source, range.start, range.end)
    }

    /// A node, whose first event is the next one.
    fn node(&mut self) -> Option<Node> {
        let (event, span) = self.next()?;
        self.node_of(event, span)
    }

    fn node_of(&mut self, event: Event<'a>, at: EventSpan) -> Option<Node> {
        let span = self.span(at);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.refuse_properties(&span, anchor, tag.is_some());
                let text = text.into_owned();
                let value = match style {
                    ScalarStyle::Plain => Value::Plain(text),
                    ScalarStyle::SingleQuoted
                    | ScalarStyle::DoubleQuoted
                    | ScalarStyle::Literal
                    | ScalarStyle::Folded => Value::Quoted(text),
                };
                Some(Node { span, value })
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.refuse_properties(&span, anchor, tag.is_some());
                let mut items = Vec::new();
                loop {
                    match self.next()? {
                        (Event::SequenceEnd, end) => return Some(self.close(&span, end, Value::List(items))),
                        (event, at) => {
                            let item = self.node_of(event, at)?;
                            self.refuse_ambiguous(&item, "an item of the list", &item.span);
                            items.push(item);
                        }
                    }
                }
            }
            Event::MappingStart(_, anchor, tag) => {
                self.refuse_properties(&span, anchor, tag.is_some());
                let mut entries: Vec<(Key, Node)> = Vec::new();
                loop {
                    match self.next()? {
                        (Event::MappingEnd, end) => return Some(self.close(&span, end, Value::Map(entries))),
                        (event, at) => {
                            let key = self.node_of(event, at);
                            let key = self.key(key?);
                            let value = self.node()?;
                            if let Some(key) = key {
                                self.entry(&mut entries, key, value);
                            }
                        }
                    }
                }
            }
            Event::Alias(_) | Event::UnresolvedAlias(_) => {
                let error = Diagnostic::error("aliases are not allowed").at(&span);
                self.found.push(error.help("write the value out where it is used"));
                // Reading goes on with a value that no type takes for anything but text.
                let value = Value::Quoted(String::new());
                Some(Node { span, value })
            }
            _ => self.stray(at),
        }
    }

    /// An event where none of its kind can be.
    fn stray(&mut self, at: EventSpan) -> Option<Node> {
        let error = Diagnostic::error("this is no YAML that can be read").at(&self.span(at));
        self.found.push(error);
        None
    }

    fn close(&self, start: &Span, end: EventSpan, value: Value) -> Node {
        let end = self.span(end);
        let span = Span::new(self.source, start.start(), end.start().max(start.start()) + 1);
        Node { span, value }
    }

    fn entry(&mut self, entries: &mut Vec<(Key, Node)>, key: Key, value: Node) {
        if key.text == "<<" {
            let error = Diagnostic::error("merge keys are not allowed").at(&key.span);
            self.found.push(error.help("write the keys out"));
            return;
        }
        if let Some((first, _)) = entries.iter().find(|(other, _)| other.text == key.text) {
            let error = Diagnostic::error(format!("the key `{}` stands twice", key.text)).at(&key.span);
            let line = first.span.line();
            self.found.push(error.label(format!("first on line {line}")));
            return;
        }
        self.refuse_ambiguous(&value, &format!("`{}`", key.text), &key.span);
        entries.push((key, value));
    }

    fn key(&mut self, node: Node) -> Option<Key> {
        match node.value {
            Value::Plain(text) | Value::Quoted(text) if !text.is_empty() => Some(Key { text, span: node.span }),
            Value::Plain(_) | Value::Quoted(_) => {
                self.found.push(Diagnostic::error("an empty key").at(&node.span));
                None
            }
            Value::List(_) | Value::Map(_) => {
                let error = Diagnostic::error("a list or map cannot be a key").at(&node.span);
                self.found
                    .push(error.help("if this is a template, quote it: `\"dbt_{{username}}\"`"));
                None
            }
        }
    }

    fn refuse_properties(&mut self, span: &Span, anchor: usize, tag: bool) {
        if anchor != 0 {
            let error = Diagnostic::error("anchors are not allowed").at(span);
            self.found.push(error.help("write the value out where it is used"));
        }
        if tag {
            let error = Diagnostic::error("tags are not allowed").at(span);
            self.found.push(error.help("remove the word that starts with `!`"));
        }
    }

    /// A null says nothing, and nothing must never mean "no condition"; `yes` means true to some readers only.
    fn refuse_ambiguous(&mut self, node: &Node, what: &str, near: &Span) {
        let Value::Plain(text) = &node.value else { return };
        match text.to_ascii_lowercase().as_str() {
            "" | "~" | "null" => {
                let error = Diagnostic::error(format!("{what} has no value")).at(near);
                self.found.push(error.help("give it one, or remove it"));
            }
            "yes" | "no" | "on" | "off" | "y" | "n" => {
                let error = Diagnostic::error("a word that some readers of YAML take for a boolean").at(&node.span);
                self.found
                    .push(error.help("write `true` or `false`, or quote it if it is text"));
            }
            _ => {}
        }
    }
}
