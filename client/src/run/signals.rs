//! Signals that end a run, with who sent them.

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::SignalsInfo;
use signal_hook::iterator::exfiltrator::WithOrigin;
use tokio::sync::mpsc;

use crate::exit::{Code, Failure, Outcome};

/// One signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Received {
    /// Its number.
    pub(crate) number: i32,
    /// No process sent it: a terminal did, and to its whole group.
    from_terminal: bool,
}

impl Received {
    /// Whether the child has it already. A second SIGINT would cut dbt's own cancelling short.
    pub(crate) fn child_has_it(self) -> bool {
        self.from_terminal && [SIGINT, SIGQUIT].contains(&self.number)
    }
}

/// Catches what would end us from here on.
pub(crate) fn catch() -> Outcome<mpsc::UnboundedReceiver<Received>> {
    let mut signals = SignalsInfo::<WithOrigin>::new([SIGINT, SIGTERM, SIGHUP, SIGQUIT])
        .map_err(|error| Failure::new(Code::Failed, format!("cannot catch signals: {error}")))?;
    let (sender, queue) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for origin in signals.forever() {
            let received = Received {
                number: origin.signal,
                from_terminal: origin.process.is_none(),
            };
            if sender.send(received).is_err() {
                break;
            }
        }
    });
    Ok(queue)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_terminal_has_sent_to_the_group_is_not_passed_on() {
        let received = |number, from_terminal| Received { number, from_terminal };
        assert!(received(SIGINT, true).child_has_it());
        assert!(!received(SIGINT, false).child_has_it());
        assert!(!received(SIGTERM, true).child_has_it());
        assert!(!received(SIGHUP, true).child_has_it());
    }
}
