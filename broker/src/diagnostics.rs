//! A mistake in a file that people wrote: what is wrong, where, and what to do next, as text and as JSON.
//!
//! A [`Source`] may forbid that its lines are quoted: a configuration in which somebody wrote a password where
//! a reference belongs must not end up in a log.

use std::fmt;
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Group, Level as Severity, Origin, Renderer, Snippet};
use kdbt_api::terminal::visible;

/// A text file as it was read.
#[derive(PartialEq, Eq)]
pub struct Source {
    name: String,
    text: String,
    quotable: bool,
}

impl Source {
    /// A file whose lines may be shown.
    #[must_use]
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Arc<Self> {
        Arc::new(Self {
            name: name.into(),
            text: text.into(),
            quotable: true,
        })
    }

    /// A file whose lines are never shown; only file, line and column are.
    #[must_use]
    pub fn confidential(name: impl Into<String>, text: impl Into<String>) -> Arc<Self> {
        Arc::new(Self {
            name: name.into(),
            text: text.into(),
            quotable: false,
        })
    }

    /// The path as people know it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The whole text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// A place in a file. Written `file:line:column`; columns count characters, from 1.
#[derive(Clone, PartialEq, Eq)]
pub struct Span {
    source: Arc<Source>,
    start: usize,
    end: usize,
}

impl Span {
    /// The bytes from `start` to `end`; both are moved to the nearest earlier character of the text.
    #[must_use]
    pub fn new(source: &Arc<Source>, start: usize, end: usize) -> Self {
        let start = source.text.floor_char_boundary(start);
        let end = source.text.floor_char_boundary(end).max(start);
        Self {
            source: Arc::clone(source),
            start,
            end,
        }
    }

    /// The file.
    #[must_use]
    pub fn source(&self) -> &Arc<Source> {
        &self.source
    }

    /// From 1.
    #[must_use]
    pub fn line(&self) -> usize {
        self.before().matches('\n').count() + 1
    }

    /// From 1, in characters.
    #[must_use]
    pub fn column(&self) -> usize {
        self.before().rsplit('\n').next().unwrap_or_default().chars().count() + 1
    }

    fn before(&self) -> &str {
        let text = self.source.text.get(..self.start).unwrap_or_default();
        text.strip_prefix('\u{feff}').unwrap_or(text)
    }

    /// Where it starts in its file.
    #[must_use]
    pub fn start(&self) -> usize {
        self.start
    }

    /// The first line of what it covers.
    #[must_use]
    pub(crate) fn first_line(&self) -> Self {
        let text = self.source.text.get(self.start..self.end).unwrap_or_default();
        let line = text.lines().next().unwrap_or_default().trim_end();
        Self {
            source: Arc::clone(&self.source),
            start: self.start,
            end: self.start + line.len(),
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.source.name, self.line(), self.column())
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How bad a mistake is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The file cannot be used.
    Error,
    /// The file works, but should be looked at.
    Warning,
}

impl Level {
    /// The word in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad.
    pub level: Level,
    /// The lint that found it, such as `K003`.
    pub code: Option<&'static str>,
    /// What is wrong, without a full stop.
    pub message: String,
    /// Where.
    pub place: Option<Span>,
    /// A word at the place.
    pub label: Option<String>,
    /// What to do next.
    pub help: Option<String>,
}

impl Diagnostic {
    fn new(level: Level, message: impl Into<String>) -> Self {
        Self {
            level,
            code: None,
            message: message.into(),
            place: None,
            label: None,
            help: None,
        }
    }

    /// Something that makes the file unusable.
    #[must_use]
    pub fn error(message: impl Into<String>) -> Self {
        Self::new(Level::Error, message)
    }

    /// Something that should be looked at.
    #[must_use]
    pub fn warning(message: impl Into<String>) -> Self {
        Self::new(Level::Warning, message)
    }

    /// With the place.
    #[must_use]
    pub fn at(mut self, place: &Span) -> Self {
        self.place = Some(place.first_line());
        self
    }

    /// With the lint's code.
    #[must_use]
    pub fn code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    /// With a word at the place.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// With what to do next.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// For machines: `level`, `code`, `message`, `file`, `line`, `column`, `help`.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        let place = self.place.as_ref();
        serde_json::json!({
            "level": self.level.as_str(),
            "code": self.code,
            "message": self.message,
            "file": place.map(|place| place.source.name.as_str()),
            "line": place.map(Span::line),
            "column": place.map(Span::column),
            "help": self.help,
        })
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.level {
            Level::Error => Severity::ERROR,
            Level::Warning => Severity::WARNING,
        };
        let title = severity.primary_title(self.message.as_str());
        let title = match self.code {
            Some(code) => title.id(code),
            None => title,
        };
        let mut group = Group::with_title(title);
        if let Some(place) = &self.place {
            group = if place.source.quotable {
                let mut mark = AnnotationKind::Primary.span(place.start..place.end);
                if let Some(label) = &self.label {
                    mark = mark.label(label.as_str());
                }
                let snippet = Snippet::source(place.source.text.as_str()).path(place.source.name.as_str());
                group.element(snippet.annotation(mark))
            } else {
                let origin = Origin::path(place.source.name.as_str());
                group.element(origin.line(place.line()).char_column(place.column()))
            };
        }
        let hidden = self.place.as_ref().is_none_or(|place| !place.source.quotable);
        if let Some(label) = self.label.as_ref().filter(|_| hidden) {
            group = group.element(Severity::NOTE.message(label.as_str()));
        }
        if let Some(help) = &self.help {
            group = group.element(Severity::HELP.message(help.as_str()));
        }
        // A line of the file may hold what steers a terminal, and not all of it is the renderer's business.
        f.write_str(&visible(&Renderer::plain().render(&[group])))
    }
}

/// Nobody reads more at once, and each costs a walk through its file.
const MOST_SHOWN: usize = 100;

/// All that was found; as an error, at least one of them is one. As text, the first hundred.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Diagnostics(Vec<Diagnostic>);

impl Diagnostics {
    /// Nothing yet.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Adds one.
    pub fn push(&mut self, found: Diagnostic) {
        self.0.push(found);
    }

    /// Adds all of another list.
    pub fn extend(&mut self, found: impl IntoIterator<Item = Diagnostic>) {
        self.0.extend(found);
    }

    /// Whether one of them is an error.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.0.iter().any(|found| found.level == Level::Error)
    }

    /// In the order of files and places.
    #[must_use]
    pub fn sorted(mut self) -> Self {
        let place = |found: &Diagnostic| found.place.as_ref().map(|span| (span.source.name.clone(), span.start));
        self.0.sort_by_cached_key(place);
        self
    }

    /// Each of them.
    pub fn iter(&self) -> std::slice::Iter<'_, Diagnostic> {
        self.0.iter()
    }

    /// All of them.
    #[must_use]
    pub fn into_vec(self) -> Vec<Diagnostic> {
        self.0
    }
}

impl From<Diagnostic> for Diagnostics {
    fn from(found: Diagnostic) -> Self {
        Self(vec![found])
    }
}

impl IntoIterator for Diagnostics {
    type Item = Diagnostic;
    type IntoIter = std::vec::IntoIter<Diagnostic>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a> IntoIterator for &'a Diagnostics {
    type Item = &'a Diagnostic;
    type IntoIter = std::slice::Iter<'a, Diagnostic>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, found) in self.0.iter().take(MOST_SHOWN).enumerate() {
            if n > 0 {
                f.write_str("\n\n")?;
            }
            found.fmt(f)?;
        }
        match self.0.len().saturating_sub(MOST_SHOWN) {
            0 => Ok(()),
            more => write!(f, "\n\nand {more} more"),
        }
    }
}

impl std::error::Error for Diagnostics {}

/// The one of `known` that `word` was probably meant to be.
#[must_use]
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let near = |candidate: &'a str| (strsim::damerau_levenshtein(word, candidate), candidate);
    let (distance, candidate) = known.into_iter().map(near).min()?;
    (distance <= (word.chars().count() / 3).max(1)).then_some(candidate)
}

/// "did you mean `x`?", or what there is.
#[must_use]
pub fn suggestion<'a>(word: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> String {
    if let Some(near) = nearest(word, known.clone()) {
        return format!("did you mean `{near}`?");
    }
    let all: Vec<String> = known.into_iter().map(|name| format!("`{name}`")).collect();
    if all.is_empty() {
        "none is defined".to_owned()
    } else {
        format!("known: {}", all.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_shows_its_line_and_its_cure() {
        let source = Source::new("rules.yaml", "kdbt: 1\nrules:\n  - id: ä\n    relam_roles: [x]\n");
        let start = source.text().find("relam").unwrap();
        let found = Diagnostic::error("unknown key `relam_roles`")
            .code("K001")
            .at(&Span::new(&source, start, start + 11))
            .label("did you mean `realm_roles`?");
        insta::assert_snapshot!(found, @r"
        error[K001]: unknown key `relam_roles`
         --> rules.yaml:4:5
          |
        4 |     relam_roles: [x]
          |     ^^^^^^^^^^^ did you mean `realm_roles`?
        ");
    }

    #[test]
    fn of_many_mistakes_a_hundred_are_shown_and_the_others_counted() {
        let text = |count: usize| {
            let mut all = Diagnostics::default();
            for n in 0..count {
                all.push(Diagnostic::error(format!("mistake {n}")));
            }
            all.to_string()
        };
        assert!(text(100).ends_with("error: mistake 99"));
        assert!(text(1_000).ends_with("error: mistake 99\n\nand 900 more"));
    }

    #[test]
    fn a_confidential_file_is_never_quoted() {
        let source = Source::confidential("broker.yaml", "password: hunter2\n");
        let found = Diagnostic::error("a secret must be a reference")
            .at(&Span::new(&source, 10, 17))
            .help("write `{ file: … }` or `{ env: … }`");
        let text = format!("{found}\n{found:?}\n{}", found.to_json());
        assert!(!text.contains("hunter2"), "{text}");
        insta::assert_snapshot!(found, @r#"
        error: a secret must be a reference
        --> broker.yaml:1:11
         = help: write `{ file: … }` or `{ env: … }`
        "#);
    }

    #[test]
    fn columns_count_characters_and_skip_a_byte_order_mark() {
        let source = Source::new("x", "\u{feff}äö: 1");
        let colon = source.text().find(':').unwrap();
        assert_eq!(Span::new(&source, colon, colon + 1).to_string(), "x:1:3");
        assert_eq!(Span::new(&source, 4, 900).to_string(), "x:1:1", "inside a character");
    }
}
