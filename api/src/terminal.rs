//! Texts from elsewhere on their way to people: what would steer a terminal, and how it is shown instead.
//!
//! Nothing is lost: what is escaped reads back as what it was in JSON and in a double-quoted scalar of YAML.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Control characters, those that turn the direction of a text, and YAML's line breaks and non-characters.
#[must_use]
pub fn is_control(c: char) -> bool {
    let turning = matches!(
        c,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    );
    let broken = matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}');
    c.is_control() || turning || broken
}

/// A text of several lines with all of those escaped, as `\u202e`, but the ends of its lines.
#[must_use]
pub fn visible(text: &str) -> Cow<'_, str> {
    escaped(text, |c| c != '\n' && is_control(c))
}

/// The same for a text that must not begin a line of its own.
#[must_use]
pub fn visible_line(text: &str) -> Cow<'_, str> {
    escaped(text, is_control)
}

fn escaped(text: &str, hidden: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.chars().any(&hidden) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if hidden(c) {
            // All of them have four digits at most. A `String` takes whatever is written.
            let _ = write!(shown, "\\u{:04x}", u32::from(c));
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_steers_is_escaped_and_nothing_else_is() {
        assert_eq!(
            visible("a\u{1b}[2J\u{9b}\u{202e}\n\u{fc} 王"),
            "a\\u001b[2J\\u009b\\u202e\n\u{fc} 王"
        );
        assert_eq!(visible_line("a\nerror: b"), "a\\u000aerror: b");
    }

    proptest! {
        #[test]
        fn json_reads_back_what_was_escaped(text in any::<String>()) {
            let json = serde_json::to_string(&text).unwrap();
            let shown = visible_line(&json);
            prop_assert!(!shown.chars().any(is_control));
            prop_assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), text);
        }

        #[test]
        fn every_character_that_is_escaped_has_four_digits(c in any::<char>()) {
            prop_assert!(!is_control(c) || u32::from(c) <= 0xffff);
        }
    }
}
