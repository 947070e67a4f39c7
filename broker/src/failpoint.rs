//! Named steps at which a test lets the broker die, wait or panic. A release has none of this: there a step is no code, and
//! its name is not in the binary.

#[cfg(feature = "testkit")]
pub(crate) use script::at;

/// The list of all steps: each is a variant, and a name that only test builds have.
macro_rules! steps {
    ($($step:ident $name:literal)+) => {
        /// Where the broker may die: between any two things that outlive it, in the order of a lease's life.
        #[derive(Clone, Copy, PartialEq, Eq)]
        pub enum Point {
            $(#[doc = $name] $step,)+
        }

        #[cfg(feature = "testkit")]
        impl Point {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$step),+];

            /// As scripts spell it.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$step => $name,)+
                }
            }
        }
    };
}

steps! {
    StartConfigured "start.configured"
    StartOpened "start.opened"
    PolicyLoaded "policy.loaded"
    PolicyRecorded "policy.recorded"
    PolicyActive "policy.active"
    StartListening "start.listening"

    IssueDecided "issue.decided"
    IssueBooked "issue.booked"
    CreateConnected "create.connected"
    CreateOwnerReady "create.owner-ready"
    CreateMade "create.made"
    IssueCreated "issue.created"
    IssueActivated "issue.activated"

    RenewDecided "renew.decided"
    ExtendFound "extend.found"
    RenewExtended "renew.extended"
    RenewRecorded "renew.recorded"

    RevokeFound "revoke.found"
    RevokeRecorded "revoke.recorded"

    EndClaimed "end.claimed"
    EndFound "end.found"
    EndLoginsStopped "end.logins-stopped"
    EndMembershipsRevoked "end.memberships-revoked"
    EndSessionsEnded "end.sessions-ended"
    EndJoined "end.joined"
    EndCleaned "end.cleaned"
    EndDropped "end.dropped"
    EndReported "end.reported"
    EndRecorded "end.recorded"

    SweepCatalogRead "sweep.catalog-read"
    SweepStoreRead "sweep.store-read"
    SweepAdopted "sweep.adopted"
    SweepStrayEnded "sweep.stray-ended"
    SweepRecorded "sweep.recorded"

    PurgeDue "purge.due"
    PurgeDone "purge.done"
}

/// Passes a step; only test builds (feature `testkit`) look it up.
#[cfg(not(feature = "testkit"))]
pub(crate) fn at(_step: Point) -> std::future::Ready<()> {
    std::future::ready(())
}

/// A file with a line `<step>=kill`, `<step>=pause` or `<step>=panic` for each step that is not passed at once.
#[cfg(feature = "testkit")]
mod script {
    use std::path::PathBuf;
    use std::sync::LazyLock;
    use std::time::Duration;

    use rustix::process::{Signal, getpid, kill_process};

    use super::Point;

    /// How often a step that waits looks whether it may go on.
    const LOOK_EVERY: Duration = Duration::from_millis(10);

    #[expect(
        clippy::disallowed_methods,
        reason = "test builds only; a release reads no such variable"
    )]
    static FILE: LazyLock<Option<PathBuf>> =
        LazyLock::new(|| std::env::var("KDBT_TESTKIT_FAILPOINTS").ok().map(PathBuf::from));

    /// What a panic says, which may be anything: no log shows it.
    const PANIC: &str = "a-panic-can-quote-whatever-went-wrong";

    #[derive(Debug, PartialEq, Eq)]
    enum Action {
        Kill,
        Pause,
        Panic,
    }

    /// Passes a step: goes on at once, waits for as long as the script says `pause`, panics, or dies as by `kill -9`.
    #[expect(clippy::panic, reason = "test builds only, to see what the log says of it")]
    pub(crate) async fn at(step: Point) {
        let Some(file) = &*FILE else { return };
        let mut waits = false;
        loop {
            let script = std::fs::read_to_string(file).unwrap_or_default();
            match action(&script, step.name()) {
                None => return,
                Some(Action::Kill) => {
                    let _ = kill_process(getpid(), Signal::KILL);
                    std::future::pending::<()>().await;
                }
                Some(Action::Panic) => panic!("{PANIC}"),
                Some(Action::Pause) => {
                    if !waits {
                        tracing::info!("waiting at {}", step.name());
                        waits = true;
                    }
                    tokio::time::sleep(LOOK_EVERY).await;
                }
            }
        }
    }

    fn action(script: &str, step: &str) -> Option<Action> {
        let mut lines = script.lines().filter_map(|line| line.split_once('='));
        match lines.find(|(name, _)| *name == step)?.1 {
            "kill" => Some(Action::Kill),
            "pause" => Some(Action::Pause),
            "panic" => Some(Action::Panic),
            _ => None,
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_step_does_what_the_line_of_its_whole_name_says() {
            let script = "issue.booked=kill\nend.found=pause\nend.reported=panic\nend.dropped=\n";
            assert_eq!(action(script, "issue.booked"), Some(Action::Kill));
            assert_eq!(action(script, "end.found"), Some(Action::Pause));
            assert_eq!(action(script, "end.reported"), Some(Action::Panic));
            for passed in ["end.dropped", "issue", "booked", "issue.bookedx"] {
                assert_eq!(action(script, passed), None, "{passed}");
            }
        }

        #[test]
        fn no_two_steps_have_one_name() {
            let names: std::collections::BTreeSet<_> = Point::ALL.iter().map(|step| step.name()).collect();
            assert_eq!(names.len(), Point::ALL.len());
        }
    }
}
