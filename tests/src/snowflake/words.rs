//! A statement as words: the only reading of SQL that the simulator does, and as strict as a server's own.

use super::Refusal;

/// One word of a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    /// A bare word, in capitals as the server folds it: a keyword or an identifier.
    Bare(String),
    /// `"…"`: an identifier, taken exactly.
    Quoted(String),
    /// `'…'`, with `''` and backslash escapes resolved.
    Text(String),
    /// Digits.
    Number(i64),
    /// Anything else that has a meaning: `=`, `(`, `)`, `,`, `;`.
    Sign(char),
}

/// The words of one statement. A `;` may stand at the end only.
pub fn words(text: &str) -> Result<Vec<Word>, Refusal> {
    let mut words = Vec::new();
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        let word = match c {
            c if c.is_whitespace() => continue,
            '"' => Word::Quoted(quoted(&mut rest)?),
            '\'' => Word::Text(literal(&mut rest)?),
            c if c.is_ascii_digit() => {
                let mut digits = String::from(c);
                while let Some(c) = rest.next_if(char::is_ascii_digit) {
                    digits.push(c);
                }
                Word::Number(digits.parse().map_err(|_| Refusal::syntax("a number"))?)
            }
            c if c.is_ascii_alphabetic() || c == '_' => {
                let mut name = String::from(c.to_ascii_uppercase());
                while let Some(c) = rest.next_if(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '$')) {
                    name.push(c.to_ascii_uppercase());
                }
                Word::Bare(name)
            }
            '=' | '(' | ')' | ',' | ';' | '.' => Word::Sign(c),
            other => return Err(Refusal::syntax(&format!("unexpected '{other}'"))),
        };
        words.push(word);
    }
    if words.last() == Some(&Word::Sign(';')) {
        words.pop();
    }
    if words.contains(&Word::Sign(';')) {
        return Err(Refusal::new(
            422,
            "000008",
            "0A000",
            "Actual statement count 2 did not match the desired statement count 1.",
        ));
    }
    Ok(words)
}

type Chars<'a> = std::iter::Peekable<std::str::Chars<'a>>;

fn quoted(rest: &mut Chars<'_>) -> Result<String, Refusal> {
    let mut name = String::new();
    while let Some(c) = rest.next() {
        match c {
            '"' if rest.next_if_eq(&'"').is_some() => name.push('"'),
            '"' if name.is_empty() => return Err(Refusal::syntax("an empty identifier")),
            '"' => return Ok(name),
            c => name.push(c),
        }
    }
    Err(Refusal::syntax("an identifier without its end"))
}

fn literal(rest: &mut Chars<'_>) -> Result<String, Refusal> {
    let mut text = String::new();
    while let Some(c) = rest.next() {
        match c {
            '\'' if rest.next_if_eq(&'\'').is_some() => text.push('\''),
            '\'' => return Ok(text),
            '\\' => match rest.next() {
                Some('n') => text.push('\n'),
                Some('t') => text.push('\t'),
                Some('r') => text.push('\r'),
                Some('0') => text.push('\0'),
                Some(c) => text.push(c),
                None => return Err(Refusal::syntax("a text without its end")),
            },
            c => text.push(c),
        }
    }
    Err(Refusal::syntax("a text without its end"))
}

/// Words read one after the other.
pub struct Reader {
    words: std::iter::Peekable<std::vec::IntoIter<Word>>,
}

impl Reader {
    /// Of one statement.
    pub fn new(text: &str) -> Result<Self, Refusal> {
        Ok(Self {
            words: words(text)?.into_iter().peekable(),
        })
    }

    /// Whether these keywords come next; then they are taken.
    pub fn takes(&mut self, keywords: &str) -> bool {
        let mut ahead = self.words.clone();
        for keyword in keywords.split(' ') {
            if ahead.next() != Some(Word::Bare(keyword.to_owned())) {
                return false;
            }
        }
        self.words = ahead;
        true
    }

    /// Whether this sign comes next; then it is taken.
    pub fn sign(&mut self, sign: char) -> bool {
        self.words.next_if_eq(&Word::Sign(sign)).is_some()
    }

    /// These keywords must come next.
    pub fn expect(&mut self, keywords: &str) -> Result<(), Refusal> {
        if self.takes(keywords) {
            Ok(())
        } else {
            Err(self.unexpected())
        }
    }

    /// An identifier, folded unless quoted.
    pub fn name(&mut self) -> Result<String, Refusal> {
        match self.words.next() {
            Some(Word::Bare(name) | Word::Quoted(name)) => Ok(name),
            other => Err(Refusal::syntax(&format!("expected a name, found {other:?}"))),
        }
    }

    /// A text in quotes.
    pub fn text(&mut self) -> Result<String, Refusal> {
        match self.words.next() {
            Some(Word::Text(text)) => Ok(text),
            other => Err(Refusal::syntax(&format!("expected a text, found {other:?}"))),
        }
    }

    /// A number.
    pub fn number(&mut self) -> Result<i64, Refusal> {
        match self.words.next() {
            Some(Word::Number(number)) => Ok(number),
            other => Err(Refusal::syntax(&format!("expected a number, found {other:?}"))),
        }
    }

    /// `TRUE` or `FALSE`.
    pub fn flag(&mut self) -> Result<bool, Refusal> {
        match self.words.next() {
            Some(Word::Bare(word)) if word == "TRUE" => Ok(true),
            Some(Word::Bare(word)) if word == "FALSE" => Ok(false),
            other => Err(Refusal::syntax(&format!("expected TRUE or FALSE, found {other:?}"))),
        }
    }

    /// `KEY =`, if a property comes next.
    pub fn property(&mut self) -> Result<Option<String>, Refusal> {
        match self.words.next() {
            None => Ok(None),
            Some(Word::Bare(name)) => {
                if self.sign('=') {
                    Ok(Some(name))
                } else {
                    Err(Refusal::syntax(&format!("`=` after {name}")))
                }
            }
            other => Err(Refusal::syntax(&format!("expected a property, found {other:?}"))),
        }
    }

    /// Nothing may follow.
    pub fn end(&mut self) -> Result<(), Refusal> {
        if self.words.peek().is_none() {
            Ok(())
        } else {
            Err(self.unexpected())
        }
    }

    fn unexpected(&mut self) -> Refusal {
        Refusal::syntax(&format!("unexpected {:?}", self.words.peek()))
    }
}
