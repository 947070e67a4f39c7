//! The log: lines on standard error, as text or JSON. No crate of others may say more than `info`, whatever is asked
//! for: at `debug` a PostgreSQL driver prints statements, and those hold verifiers.

use std::io;
use std::str::FromStr;

use kdbt_api::terminal::visible;
use tracing::level_filters::LevelFilter;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::filter::{EnvFilter, FilterFn, ParseError, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::{Layer as _, Registry, fmt as lines};

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For collectors.
    Json,
}

impl FromStr for LogFormat {
    type Err = LogFormatError;

    fn from_str(text: &str) -> Result<Self, LogFormatError> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(LogFormatError),
        }
    }
}

/// Neither of the two words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a log format is `text` or `json`")]
pub struct LogFormatError;

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter cannot be read.
    #[error("the log filter cannot be read; write it as `info` or `info,kdbt_broker=debug`")]
    Filter(#[from] ParseError),
    /// The process has a log already.
    #[error("the log is set up already")]
    Twice(#[from] tracing::subscriber::SetGlobalDefaultError),
}

/// Sets the log up for the whole process. `filter` is in the form of `RUST_LOG`; `info` if empty.
///
/// Panics are logged by place alone, since their text may hold anything.
pub fn init(filter: &str, format: LogFormat) -> Result<(), TelemetryError> {
    tracing::subscriber::set_global_default(subscriber(filter, format, io::stderr)?)?;
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        tracing::error!(place, "a panic");
    }));
    Ok(())
}

pub(crate) fn subscriber<W>(
    filter: &str,
    format: LogFormat,
    writer: W,
) -> Result<impl Subscriber + Send + Sync, ParseError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let asked_for = EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .parse(filter)?;
    let lines = lines::layer().with_writer(Plain(writer));
    let lines = match format {
        LogFormat::Text => lines.with_ansi(false).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    Ok(Registry::default().with(lines.with_filter(clamp())).with(asked_for))
}

/// Writes for people who read with a terminal: names in a line are chosen by holders of leases, so nothing in it steers
/// (S22), and what goes on below it is indented, so that no name begins a line that looks like ours.
struct Plain<W>(W);

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for Plain<W> {
    type Writer = Plain<W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        Plain(self.0.make_writer())
    }

    fn make_writer_for(&'a self, line: &Metadata<'_>) -> Self::Writer {
        Plain(self.0.make_writer_for(line))
    }
}

impl<W: io::Write> io::Write for Plain<W> {
    /// Each line of the log comes whole.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        let shown = visible(text.trim_end_matches('\n')).replace('\n', "\n    ");
        self.0.write_all((shown + "\n").as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Ours at any level, others at `info` and above.
fn clamp() -> FilterFn<fn(&Metadata<'_>) -> bool> {
    filter_fn(|line| is_ours(line.target()) || *line.level() <= tracing::Level::INFO)
}

fn is_ours(target: &str) -> bool {
    matches!(target.split("::").next(), Some("kdbt_broker" | "kdbt_api"))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// A log that stays in memory.
    #[derive(Clone, Default)]
    pub(crate) struct Memory(Arc<Mutex<Vec<u8>>>);

    impl Memory {
        pub(crate) fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl io::Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(filter: &str, format: LogFormat) -> String {
        let memory = Memory::default();
        let writer = memory.clone();
        let subscriber = subscriber(filter, format, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            tracing::trace!(target: "tokio_postgres::query", "CREATE ROLE canary-trace");
            tracing::debug!(target: "tokio_postgres::query", "CREATE ROLE canary-debug");
            tracing::debug!(target: "kdbt_broker_impostor", "canary-impostor");
            tracing::info!(target: "hyper", "third-info");
            tracing::debug!(target: "kdbt_broker::issue", "own-debug");
            tracing::info!(target: "kdbt_broker::issue", answer = 42, "own-info");
        });
        memory.text()
    }

    #[test]
    fn crates_of_others_stay_at_info_whatever_is_asked_for() {
        for filter in ["trace", "tokio_postgres=trace", "debug,tokio_postgres=trace"] {
            let text = logged(filter, LogFormat::Text);
            assert!(!text.contains("canary"), "{filter}: {text}");
        }
        assert!(logged("trace", LogFormat::Text).contains("third-info"));
        assert!(logged("trace", LogFormat::Text).contains("own-debug"));
    }

    #[test]
    fn without_a_filter_the_log_is_at_info() {
        let text = logged("", LogFormat::Text);
        assert!(text.contains("own-info") && !text.contains("own-debug"));
    }

    #[test]
    fn a_json_line_is_one_object() {
        let text = logged("kdbt_broker=info", LogFormat::Json);
        let line: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!(
            (line["message"].as_str(), line["answer"].as_i64()),
            (Some("own-info"), Some(42))
        );
    }

    /// S22
    #[test]
    fn a_name_in_the_log_neither_steers_a_terminal_nor_begins_a_line() {
        let name = "a\u{1b}[2K\u{9b}2J\u{202e}b\nerror";
        for format in [LogFormat::Text, LogFormat::Json] {
            let memory = Memory::default();
            let writer = memory.clone();
            let subscriber = subscriber("info", format, move || writer.clone()).unwrap();
            tracing::subscriber::with_default(subscriber, || {
                tracing::info!(target: "kdbt_broker::end", name, shown = %name, debug = ?[name], "{name}");
            });
            let text = memory.text();
            let steers = |c: char| c != '\n' && kdbt_api::terminal::is_control(c);
            assert!(!text.contains(steers), "{format:?}: {text:?}");
            assert!(text.ends_with('\n') && !text.contains("\nerror"), "{text}");
            if format == LogFormat::Json {
                let line: serde_json::Value = serde_json::from_str(&text).unwrap();
                assert_eq!((&line["name"], &line["shown"]), (&name.into(), &name.into()));
            }
        }
    }

    #[test]
    fn a_filter_that_cannot_be_read_is_an_error() {
        assert!(subscriber("kdbt_broker=loud", LogFormat::Text, io::stderr).is_err());
    }
}
