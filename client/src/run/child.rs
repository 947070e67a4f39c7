//! The process that a lease is for: its private folder, its environment, its life beside renewals and signals.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;
use std::time::Duration;

use kdbt_api::Ttl;
use kdbt_api::lease::{LeaseId, LeaseView, PostgresConnection};
use rand::RngExt as _;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::signals::Received;
use crate::broker::{Broker, CallError};
use crate::exit::{Code, Failure, Outcome};
use crate::order::Lease;
use crate::output::{Output, span};
use crate::settings::{our_variables, rng};

/// Settings of libpq that would lead its connections elsewhere, or past the lease's secret.
const MISLEADING: [&str; 5] = ["PGHOSTADDR", "PGSERVICE", "PGSERVICEFILE", "PGPASSFILE", "PGPASSWORD"];

/// A command for a child that must not see what only the client may use: a dbt package reads all of the
/// environment (S19).
pub(crate) fn command(words: &[OsString], keep_env: bool) -> Outcome<Command> {
    let (program, arguments) = words
        .split_first()
        .ok_or_else(|| Failure::new(Code::Usage, "there is no command to run"))?;
    let mut command = Command::new(program);
    command.args(arguments);
    if !keep_env {
        for name in our_variables() {
            command.env_remove(name);
        }
    }
    Ok(command)
}

/// Tells libpq, in whatever client, how to connect safely; the server's host and user come from elsewhere.
pub(crate) fn secure(command: &mut Command, lease: &Lease, connection: &PostgresConnection, ca_file: Option<&OsStr>) {
    for name in MISLEADING {
        command.env_remove(name);
    }
    command.env("PGAPPNAME", format!("kdbt/{}", lease.view.id));
    command.env("PGSSLMODE", connection.sslmode.as_str());
    // A server that asks for the password in clear is not the one that knows its verifier (S18).
    command.env("PGREQUIREAUTH", "scram-sha-256");
    if let Some(file) = ca_file {
        command.env("PGSSLROOTCERT", file);
    }
}

/// Starts a command; what is wrong with it is told by the codes that shells use.
pub(crate) fn spawn(command: &mut Command) -> Outcome<Child> {
    command.spawn().map_err(|error| {
        let program = command.as_std().get_program().to_string_lossy().into_owned();
        let missing = error.kind() == std::io::ErrorKind::NotFound;
        let code = if missing { Code::NotFound } else { Code::NotExecutable };
        Failure::new(code, format!("cannot run `{program}`: {error}"))
    })
}

/// Waits for a child that has no lease, passing signals on.
pub(crate) async fn wait(child: &mut Child, signals: &mut UnboundedReceiver<Received>) -> Outcome<u8> {
    loop {
        tokio::select! {
            status = child.wait() => return exit_code(status),
            Some(signal) = signals.recv() => pass_on(child, signal),
        }
    }
}

/// What a background call brought.
enum Done {
    Cancelled,
    Renewed(Box<Result<LeaseView, CallError>>),
}

/// Waits for a child with a lease: renews it, passes signals on, has its sessions ended on a signal.
pub(crate) async fn wait_with_lease(
    child: &mut Child,
    broker: &Arc<Broker>,
    lease: &Lease,
    ttl: Option<Ttl>,
    signals: &mut UnboundedReceiver<Received>,
) -> Outcome<u8> {
    let output = broker.settings().output;
    let mut renewal = Renewal::of(&lease.view);
    let mut tasks: JoinSet<Done> = JoinSet::new();
    loop {
        tokio::select! {
            status = child.wait() => return exit_code(status),
            Some(signal) = signals.recv() => {
                pass_on(child, signal);
                // Neither a cancelled nor a killed dbt ends its statements in the database by itself.
                let (broker, id, proof) = (Arc::clone(broker), lease.view.id, lease.proof.clone());
                tasks.spawn(async move {
                    // If it fails, the revocation at the end does the same.
                    let _ = broker.cancel(id, proof.as_ref()).await;
                    Done::Cancelled
                });
            }
            () = renewal.due() => {
                let (broker, id, proof) = (Arc::clone(broker), lease.view.id, lease.proof.clone());
                tasks.spawn(async move { Done::Renewed(Box::new(broker.renew(id, ttl, proof.as_ref()).await)) });
            }
            Some(done) = tasks.join_next() => if let Ok(Done::Renewed(result)) = done {
                renewal.note(*result, output);
            },
        }
    }
}

/// When to renew next. Counts on the monotonic clock, from what the broker says of its own.
#[derive(Debug)]
struct Renewal {
    id: LeaseId,
    ends_at: kdbt_api::Timestamp,
    deadline: Instant,
    next: Option<Instant>,
    warned: bool,
}

impl Renewal {
    fn of(view: &LeaseView) -> Self {
        let life = view.ends_at.since(view.issued_at);
        let mut renewal = Self {
            id: view.id,
            ends_at: view.ends_at,
            deadline: Instant::now() + life,
            next: None,
            warned: false,
        };
        renewal.plan();
        renewal
    }

    /// A third of what is left from now, a tenth of that earlier or later, so that many runs spread.
    fn plan(&mut self) {
        let third = self.left() / 3;
        let jitter = rng().random_range(0.9..1.1);
        self.next = Some(Instant::now() + third.mul_f64(jitter).max(Duration::from_millis(200)));
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Resolves once per planned renewal.
    async fn due(&mut self) {
        match self.next {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
        self.next = None;
    }

    fn note(&mut self, result: Result<LeaseView, CallError>, output: Output) {
        match result {
            Ok(view) => {
                self.deadline += view.ends_at.since(self.ends_at);
                self.ends_at = view.ends_at;
                self.warned = false;
                // At its maximum there is nothing to gain any more.
                if view.ends_at < view.max_ends_at {
                    self.plan();
                }
            }
            Err(error) => {
                let try_again =
                    matches!(error, CallError::Failed { .. }) || error.code().is_none_or(crate::order::may_pass);
                if !self.warned {
                    let left = span(self.left());
                    output.warn(&format!(
                        "{} is not renewed and ends in {left}: {}",
                        self.id,
                        Failure::from(error)
                    ));
                    self.warned = true;
                }
                if try_again && !self.left().is_zero() {
                    self.plan();
                }
            }
        }
    }
}

fn pass_on(child: &Child, signal: Received) {
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    let number = Signal::from_named_raw(signal.number);
    if let (Some(pid), Some(number), false) = (pid, number, signal.child_has_it()) {
        // A child that has just ended needs no signal.
        let _ = kill_process(pid, number);
    }
}

/// The child's own code, or 128 and the signal that killed it.
fn exit_code(status: std::io::Result<std::process::ExitStatus>) -> Outcome<u8> {
    use std::os::unix::process::ExitStatusExt as _;
    let status = status.map_err(|error| Failure::new(Code::Exec, format!("cannot wait for the command: {error}")))?;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX))
}
