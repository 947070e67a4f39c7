//! A server that dies with us: it runs under a small `sh` that holds a pipe whose other end is this process.
//!
//! However this process ends (`kill -9` and a panic included), the kernel closes the pipe, and the `sh` stops the server and
//! removes its folder. No signal of a parent's death is needed, so there is no `unsafe` and no pid file.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

/// `sh -c SCRIPT watchdog <signal> <log> <folder> <command…>`, with our pipe as its standard input.
///
/// The server leads a process group of its own, which is what is signalled: a start script and what it started go together.
/// To a server a file that may not grow is a full disk, and no signal.
/// The guard ignores TERM once it has begun to stop the server, so that the last `kill` ends it only while it still waits.
const SCRIPT: &str = r#"
signal=$1 log=$2 folder=$3
shift 3
trap '' XFSZ
exec 3<&0
setsid -- "$@" </dev/null >>"$log" 2>&1 3<&- &
server=$!
echo "$server"
exec >&- 2>&-
(
    if read -r _ <&3; then folder=; fi
    trap '' TERM
    kill -s "$signal" -- "-$server"
    tries=0
    while kill -0 "$server"; do
        tries=$((tries + 1))
        if [ "$tries" = 200 ]; then kill -s KILL -- "-$server"; fi
        sleep 0.05
    done
    if [ -n "$folder" ]; then rm -rf -- "$folder"; fi
) &
guard=$!
wait "$server"
status=$?
kill "$guard"
wait "$guard"
exit "$status"
"#;

/// How a server is started and stopped.
#[derive(Debug)]
pub struct Watched<'a> {
    /// What stops it at once, without the leading `SIG`: after ten seconds it is followed by KILL.
    pub stop_signal: &'a str,
    /// Its standard output and error go here, appended.
    pub log: &'a Path,
    /// Removed when the server has been stopped, unless it was stopped by [`Watchdog::stop`].
    pub folder: &'a Path,
}

/// A running server. Dropping it stops the server and removes its folder.
#[derive(Debug)]
pub struct Watchdog {
    shell: Child,
    pipe: Option<ChildStdin>,
    server: Pid,
}

impl Watchdog {
    /// Starts `command` (its arguments, environment and working directory count; its standard streams do not).
    pub fn start(command: &Command, watched: &Watched<'_>) -> Result<Self> {
        let mut shell = Command::new("sh");
        shell
            .args(["-c", SCRIPT, "watchdog", watched.stop_signal])
            .arg(watched.log)
            .arg(watched.folder)
            .arg(command.get_program())
            .args(command.get_args())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // A Ctrl-C on the terminal is for the runner alone; the servers follow when it is gone.
            .process_group(0);
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        if let Some(folder) = command.get_current_dir() {
            shell.current_dir(folder);
        }
        let what = || format!("start {} under its watchdog", command.get_program().display());
        let mut shell = shell.spawn().with_context(what)?;
        let pipe = shell.stdin.take();
        let mut line = String::new();
        BufReader::new(shell.stdout.take().context("the watchdog has no standard output")?).read_line(&mut line)?;
        let server = line.trim().parse().ok().and_then(Pid::from_raw).with_context(what)?;
        Ok(Self { shell, pipe, server })
    }

    /// The server's own process id.
    pub fn pid(&self) -> u32 {
        self.server.as_raw_pid().unsigned_abs()
    }

    /// Sends the server itself a signal: to freeze it, to kill it, to let it reload.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(self.server, signal).context("signal the server")
    }

    /// Has the server ended by itself, and how?
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.shell.try_wait()?)
    }

    /// Waits for a server that has been told to end.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        Ok(self.shell.wait()?)
    }

    /// Stops the server at once and leaves its folder, so that it can be started again or looked at.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(mut pipe) = self.pipe.take() {
            // A closed pipe means that the server, and so the watchdog, has ended already.
            let _ = pipe.write_all(b"keep\n");
        }
        self.shell.wait()?;
        Ok(())
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.pipe.take());
        let _ = self.shell.wait();
    }
}

/// A command that runs `program` as the operating system's user `user`, if we are root; as ourselves otherwise.
pub(crate) fn command_as(user: Option<&str>, program: impl AsRef<OsStr>) -> Command {
    match user {
        None => Command::new(program),
        Some(user) => {
            let mut command = Command::new("setpriv");
            command
                .args([
                    &format!("--reuid={user}"),
                    &format!("--regid={user}"),
                    "--init-groups",
                    "--",
                ])
                .arg(program);
            command
        }
    }
}
