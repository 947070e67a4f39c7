//! What the user sees: the product on stdout, words on stderr, and nothing anywhere else.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use kdbt_api::Timestamp;
use kdbt_api::terminal::{is_control, visible};

use crate::exit::{Code, Failure, Outcome};

/// Where a command writes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    quiet: bool,
    colour: bool,
}

impl Output {
    /// `colour` is what the environment allows; a stderr that is no terminal gets none.
    pub(crate) fn new(quiet: bool, colour: bool) -> Self {
        Self {
            quiet,
            colour: colour && std::io::stderr().is_terminal(),
        }
    }

    /// The product for programs, as it is. A reader that has gone away is no failure.
    #[expect(clippy::unused_self, reason = "all output goes through this one value")]
    pub(crate) fn product(self, text: &str) -> Outcome<()> {
        let mut stdout = std::io::stdout().lock();
        match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure::new(
                Code::Failed,
                format!("cannot write to standard output: {error}"),
            )),
            _ => Ok(()),
        }
    }

    /// The product for people, in which nothing steers their terminal.
    pub(crate) fn show(self, text: &str) -> Outcome<()> {
        self.product(&visible(text))
    }

    /// A value as JSON, for programs. What would steer a terminal is escaped in it.
    pub(crate) fn json(self, value: &impl serde::Serialize) -> Outcome<()> {
        let text = serde_json::to_string_pretty(value)
            .map_err(|error| Failure::new(Code::Failed, format!("cannot write JSON: {error}")))?;
        self.show(&(text + "\n"))
    }

    /// News that `--quiet` turns off.
    pub(crate) fn note(self, text: &str) {
        if !self.quiet {
            self.line(text);
        }
    }

    /// What the user must read, `--quiet` or not.
    pub(crate) fn ask(self, text: &str) {
        self.line(text);
    }

    /// Something that did not stop the command.
    pub(crate) fn warn(self, text: &str) {
        self.lead("33", "warning:", text);
    }

    /// The failure that ends the command, its hint on a line of its own.
    pub(crate) fn failure(self, failure: &Failure) {
        self.lead("31", "error:", &failure.to_string());
        if let Some(hint) = &failure.hint {
            self.lead("36", "hint:", hint);
        }
    }

    /// A line behind a coloured word.
    fn lead(self, colour: &str, word: &str, text: &str) {
        // A stderr that is gone leaves nobody to tell.
        let _ = writeln!(
            std::io::stderr().lock(),
            "{} {}",
            self.paint(colour, word),
            visible(text)
        );
    }

    #[expect(clippy::unused_self, reason = "all output goes through this one value")]
    fn line(self, text: &str) {
        // As above.
        let _ = writeln!(std::io::stderr().lock(), "{}", visible(text));
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colour {
            format!("\u{1b}[{code}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }
}

/// Local time and distance: `14:05 (in 47 min)`, with the date where it is not today.
pub(crate) fn moment(at: Timestamp, now: Timestamp) -> String {
    let zone = jiff::tz::TimeZone::system();
    let local = |time: Timestamp| {
        jiff::Timestamp::from_millisecond(time.as_unix_millis()).map(|time| time.to_zoned_datetime(zone.clone()))
    };
    let (Ok(then), Ok(today)) = (local(at), local(now)) else {
        return at.to_string();
    };
    let format = if then.date() == today.date() {
        "%H:%M"
    } else {
        "%Y-%m-%d %H:%M"
    };
    let distance = if at >= now {
        format!("in {}", span(at.since(now)))
    } else {
        format!("{} ago", span(now.since(at)))
    };
    format!("{} ({distance})", then.strftime(format))
}

/// A duration in its two largest units: `47 min`, `2 h 5 min`, `30 s`.
pub(crate) fn span(duration: Duration) -> String {
    match duration.as_secs() {
        s if s < 90 => format!("{s} s"),
        s if s < 90 * 60 => format!("{} min", (s + 30) / 60),
        s if s < 48 * 3600 => match (s / 3600, s % 3600 / 60) {
            (hours, 0) => format!("{hours} h"),
            (hours, minutes) => format!("{hours} h {minutes} min"),
        },
        s => format!("{} days", s / 86_400),
    }
}

/// A text from elsewhere as it may stand on a terminal: no control characters, no turned direction, at
/// most 500 characters.
pub(crate) fn clean(text: &str) -> String {
    text.chars().filter(|c| !is_control(*c)).take(500).collect()
}

/// The same for a text of several lines, up to 16 000 characters.
pub(crate) fn clean_lines(text: &str) -> String {
    text.chars()
        .filter(|c| *c == '\n' || !is_control(*c))
        .take(16_000)
        .collect()
}

/// Columns aligned with two spaces between, for people.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(String::as_str);
        let widths = cells.chain(head.get(column).copied()).map(|cell| cell.chars().count());
        widths.max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        padded.join("  ").trim_end().to_owned() + "\n"
    };
    let mut text = line(&mut head.iter().copied());
    for row in rows {
        text += &line(&mut row.iter().map(String::as_str));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_told_in_its_largest_units() {
        for (seconds, text) in [
            (30, "30 s"),
            (89, "89 s"),
            (90, "2 min"),
            (47 * 60, "47 min"),
            (7_200, "2 h"),
            (7_500, "2 h 5 min"),
            (40 * 3600, "40 h"),
            (72 * 3600, "3 days"),
        ] {
            assert_eq!(span(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn a_text_from_elsewhere_cannot_steer_the_terminal() {
        assert_eq!(clean("a\u{1b}[2Jb\u{202e}c\nd"), "a[2Jbcd");
        assert_eq!(clean(&"x".repeat(1000)).len(), 500);
        assert_eq!(clean_lines("a\n\u{7}b"), "a\nb");
    }

    #[test]
    fn a_table_has_no_trailing_blanks() {
        let rows = vec![
            vec!["dev".to_owned(), "x".to_owned()],
            vec!["production".to_owned(), String::new()],
        ];
        assert_eq!(
            table(&["TARGET", "TIER"], &rows),
            "TARGET      TIER\ndev         x\nproduction\n"
        );
    }
}
