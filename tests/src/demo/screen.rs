//! What the demo shows: scenes, the commands that are run, what was seen.

use std::cell::Cell;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Standard output, in colours where somebody sees them.
#[derive(Debug)]
pub(super) struct Screen {
    colours: bool,
    checks: Cell<u32>,
    last: Cell<Instant>,
}

impl Screen {
    pub(super) fn new() -> Self {
        Self {
            colours: std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
            checks: Cell::new(0),
            last: Cell::new(Instant::now()),
        }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colours {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// A new part of the story.
    pub(super) fn scene(&self, title: &str) {
        println!("\n{}", self.paint("1", title));
    }

    /// A command that is about to run.
    pub(super) fn command(&self, who: &str, command: &str) {
        println!("  {} {command}", self.paint("36", &format!("{who}$")));
    }

    /// Something that was checked, and how long it took since the last one.
    pub(super) fn seen(&self, what: &str) {
        self.checks.set(self.checks.get() + 1);
        let took = self.last.replace(Instant::now()).elapsed();
        let time = if took > Duration::from_millis(500) {
            self.paint("2", &format!("  ({:.1} s)", took.as_secs_f32()))
        } else {
            String::new()
        };
        println!("  {} {what}{time}", self.paint("32", "✓"));
    }

    /// A table or an excerpt.
    pub(super) fn lines<T: AsRef<str>>(&self, lines: impl IntoIterator<Item = T>) {
        for line in lines {
            println!("      {}", self.paint("2", line.as_ref()));
        }
    }

    /// Plain text.
    #[expect(clippy::unused_self, reason = "all output goes through the screen")]
    pub(super) fn say(&self, text: &str) {
        println!("{text}");
    }

    /// The last line of the story.
    pub(super) fn end(&self, took: Duration) {
        let line = format!(
            "{} steps, each seen to work, in {:.0} s",
            self.checks.get(),
            took.as_secs_f32()
        );
        println!("\n{}", self.paint("1;32", &line));
    }
}
