//! The lines of the table, and how each target came out.

use std::time::Duration;

/// All that was measured.
#[derive(Debug, Default)]
pub(super) struct Report {
    lines: Vec<String>,
    verdicts: Vec<String>,
}

impl Report {
    /// A line of the table; also said at once, since the whole takes minutes.
    pub(super) fn line(&mut self, text: String) {
        say(&text);
        self.lines.push(text);
    }

    /// A target of the project: met or not.
    pub(super) fn judge(&mut self, met: bool, text: &str) {
        let verdict = if met { "PASS" } else { "MISS" };
        self.verdicts.push(format!("{verdict}  {text}"));
    }

    /// Everything again, in one piece.
    pub(super) fn print(&self) {
        say("");
        for line in self.lines.iter().chain(&self.verdicts) {
            println!("{line}");
        }
    }
}

/// Progress, for people.
pub(super) fn say(text: &str) {
    eprintln!("{text}");
}

/// The value that this share of all stays under, by the nearest rank; nothing of nothing.
pub(super) fn percentile(sorted: &[Duration], share: f64) -> Duration {
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss
    )]
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

/// Milliseconds, as the table shows them.
pub(super) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// How many per second.
pub(super) fn per_second(count: usize, took: Duration) -> f64 {
    #[allow(clippy::cast_precision_loss)]
    let count = count as f64;
    count / took.as_secs_f64()
}
