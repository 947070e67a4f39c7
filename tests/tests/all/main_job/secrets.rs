//! No secret and no token stays anywhere but with its holder.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use kdbt_broker::failpoint::Point;
use kdbt_e2e::broker::{Broker, BrokerOptions};
use kdbt_e2e::client::Workstation;
use kdbt_e2e::fault::Act;
use kdbt_e2e::postgres::PgVersion;
use kdbt_e2e::stack::{Stack, StackOptions};
use reqwest::Method;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::jobs::Job;
use super::{Caller, Lease, options, shared, within};

#[tokio::test]
async fn neither_log_nor_store_nor_the_servers_log_holds_a_secret_or_a_token() {
    for version in PgVersion::ALL {
        let usual = options(version);
        let stack = StackOptions {
            // All that the server can tell of statements.
            postgres: usual.postgres.clone().set("log_statement", "all"),
            broker: BrokerOptions {
                log: "trace".to_owned(),
                ..usual.broker.clone()
            },
            ..usual
        };
        let mut stack = Stack::start(&stack, |_| {}).await.unwrap();
        let ada = Caller::person(&stack, "ada");
        let lease = Lease::take(&ada, "team", "10m").await;
        let yaml = ada.fragment(&json!({ "target": "dev" })).await.expect(201).text;
        let second = yaml.lines().find_map(|line| line.trim().strip_prefix("password: "));
        let second = second.unwrap().trim_matches('"').to_owned();
        let broken = stack.identity.played().forge("ada").claim("exp", 1).token();
        Caller::new(&stack, broken.clone())
            .lease(&json!({ "target": "team" }))
            .await
            .expect(401);
        ada.post(&format!("/v1/leases/{}/renew", lease.id), &json!({}))
            .await
            .expect(200);
        ada.revoke(&lease.id).await.expect(200);
        let job = Job {
            caller: Caller::new(&stack, stack.identity.played().service_token("kdbt-ci")),
            proof: "a-proof-that-is-its-job-s-alone",
        };
        let proven = Lease::of(&job.caller.lease(&job.order()).await.expect(201).json());
        let wrong = "a-proof-of-somebody-who-guesses";
        for (proof, status) in [(wrong, 404), (job.proof, 200)] {
            let renewal = job
                .call(Method::POST, &format!("/{}/renew", proven.id), Some(proof))
                .await;
            renewal.expect(status);
        }
        // What a panic says may quote anything, so it is told by its place alone.
        stack.broker.script(Point::IssueDecided, Act::Panic).unwrap();
        ada.lease(&json!({ "target": "team" })).await.expect(500);
        stack.broker.clear_script().unwrap();
        stack.broker.stop().await.unwrap();
        let log = stack.broker.log().unwrap();
        let panics: Vec<&str> = log.lines().filter(|line| line.contains("a panic")).collect();
        assert!(panics.len() == 1 && panics[0].contains("failpoint.rs"), "{panics:?}");

        let mut places = vec![
            ("the broker's log", stack.broker.log().unwrap()),
            ("the server's log", stack.postgres.log().unwrap()),
        ];
        let folder = stack.broker.store_file().parent().unwrap().to_owned();
        for entry in fs::read_dir(folder).unwrap().flatten() {
            if entry.file_name().to_string_lossy().starts_with("kdbt.db") {
                let bytes = fs::read(entry.path()).unwrap();
                places.push(("the store", String::from_utf8_lossy(&bytes).into_owned()));
            }
        }
        let password = stack.broker.password().to_owned();
        // A token's last part alone would do to rebuild it from what is public.
        let signature = |token: &str| token.rsplit('.').next().unwrap().to_owned();
        let secrets = [
            ("a password", lease.password.clone()),
            ("a password in a fragment", second),
            ("a token", signature(&ada.token)),
            ("a refused token", signature(&broken)),
            ("the broker's password", password),
            ("a proof", job.proof.to_owned()),
            ("a refused proof", wrong.to_owned()),
            ("a panic's text", "a-panic-can-quote-whatever-went-wrong".to_owned()),
        ];
        assert!(places[0].1.contains(&lease.id), "the log tells of the lease");
        for (place, text) in &places {
            for (what, secret) in &secrets {
                assert!(secret.len() >= 24, "{what} is too short to look for");
                // The bootstrap's own statement is the DBA's, who sends a verifier where it matters.
                let bootstrap = *place == "the server's log" && *what == "the broker's password";
                assert!(bootstrap || !text.contains(secret.as_str()), "{place} holds {what}");
            }
        }
    }
}

/// Runs it, and sends it a signal after so many milliseconds.
async fn stopped(mut command: Command, millis: u64, signal: Signal) -> Output {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    tokio::time::sleep(Duration::from_millis(millis)).await;
    kill_process(Pid::from_child(&child), signal).unwrap();
    child.wait_with_output().unwrap()
}

async fn end_all(stack: &Stack, name: &str) {
    Caller::person(stack, name)
        .post("/v1/revocations", &json!({ "mine": true }))
        .await
        .expect(200);
}

/// Nobody but the client and its child know the password of such a lease, so anything that could be one counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_stopped_at_any_moment_has_shown_no_password() {
    let stack = shared(PgVersion::Pg18).await;
    let ada = stack.log_in("ada").await.unwrap();
    let project = Stack::project().unwrap();
    let lease = Lease::take(&Caller::person(stack, "ada"), "team", "10m").await;
    assert!(could_hold_a_password(&lease.password), "the search finds one");
    let command = "true > began; exec sleep 5 > /dev/null 2>&1";
    let mut began = 0;
    for moment in 0..24 {
        let client = ada
            .command_in(&project, &["exec", "-t", "team", "--", "sh", "-c", command])
            .unwrap();
        let signals = [Signal::KILL, Signal::TERM, Signal::INT];
        let signal = signals[usize::try_from(moment).unwrap() % signals.len()];
        let output = stopped(client, 25 * moment, signal).await;
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(!could_hold_a_password(&said), "after {} ms: {said}", 25 * moment);
        began += usize::from(fs::remove_file(project.path().join("began")).is_ok());
        end_all(stack, "ada").await;
    }
    assert!(
        (1..24).contains(&began),
        "the moments lie on both sides of the child's start: {began}"
    );
    // What is asked for on standard output, or in a file, is nowhere else, and no file is ever open to others.
    for moment in 0..5 {
        for (number, form) in [&["env"][..], &["profile", "--write", "stopped"]]
            .into_iter()
            .enumerate()
        {
            let client = ada.command_in(&project, &[form, &["-t", "team"]].concat()).unwrap();
            let signal = if moment % 2 == 0 { Signal::INT } else { Signal::TERM };
            let output = stopped(client, 70 * moment, signal).await;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!could_hold_a_password(&said), "{form:?}: {said}");
            let asked = number == 0 || output.stdout.is_empty();
            assert!(asked, "{form:?} wrote to standard output");
            for entry in fs::read_dir(project.path().join("stopped")).into_iter().flatten() {
                let mode = entry.unwrap().metadata().unwrap().permissions().mode();
                assert_eq!(mode & 0o077, 0);
            }
        }
        end_all(stack, "ada").await;
    }
}

/// What it takes to be one of somebody: a login that is broken off as it comes to its end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_stopped_at_any_moment_has_shown_no_token() {
    let stack = shared(PgVersion::Pg18).await;
    for moment in 0..6 {
        let machine = Workstation::new(&stack.broker.url()).unwrap();
        let mut command = machine.command(&["login", "--no-open"]);
        let said = machine.home().join("said");
        command
            .stdin(Stdio::null())
            .stdout(fs::File::create(&said).unwrap())
            .stderr(fs::File::options().append(true).open(&said).unwrap());
        let mut client = command.spawn().unwrap();
        let text = || fs::read_to_string(&said).unwrap();
        let address = || {
            let text = text();
            let lines = text.lines().filter_map(|line| line.trim().parse::<url::Url>().ok());
            lines.into_iter().find(|url| url.query().is_some())
        };
        within(Duration::from_secs(10), "it names an address", async || {
            address().is_some()
        })
        .await;
        let at = address().unwrap();
        let signed_in = stack.identity.sign_in("ada", &at);
        let stop = async {
            tokio::time::sleep(Duration::from_millis(15 * moment)).await;
            kill_process(Pid::from_child(&client), Signal::INT).unwrap();
        };
        // Whether the browser still found somebody is not what counts.
        let (_either, ()) = tokio::join!(signed_in, stop);
        client.wait().unwrap();
        assert!(!text().contains("eyJ"), "a token: {}", text());
        let kept = machine.home().join("state/kdbt/logins");
        for entry in fs::read_dir(kept).into_iter().flatten() {
            let mode = entry.unwrap().metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0);
        }
    }
}

/// The command where a dump of its memory would be written.
fn with_dumps(command: &Command) -> Command {
    after("ulimit -c unlimited", command)
}

/// The command as a shell starts it that did this before.
fn after(first: &str, command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell
        .args(["-c", &format!("{first} && exec \"$0\" \"$@\"")])
        .arg(command.get_program())
        .args(command.get_args())
        .current_dir(command.get_current_dir().unwrap())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell
}

/// Passwords and tokens are in the memory of both; what `exec` runs is not changed by it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_broker_nor_client_leaves_its_memory_in_a_core_dump() {
    let aborted = |status: ExitStatus| {
        assert_eq!(status.signal(), Some(Signal::ABORT.as_raw()), "{status}");
        status.core_dumped()
    };
    let folder = tempfile::tempdir().unwrap();
    let mut other = Command::new("sh");
    other.args(["-c", "kill -ABRT $$"]).current_dir(folder.path());
    if !aborted(with_dumps(&other).status().unwrap()) {
        eprintln!("NOT RUN: this machine writes no core dumps");
        return;
    }
    let stack = shared(PgVersion::Pg18).await;
    let ada = stack.log_in("ada").await.unwrap();
    let script = "ulimit -c > limit; kill -ABRT $PPID";
    let client = ada.command(&["exec", "-t", "team", "--", "sh", "-c", script]);
    assert!(!aborted(with_dumps(&client).status().unwrap()), "the client");
    let limit = fs::read_to_string(ada.home().join("limit")).unwrap();
    assert_eq!(limit.trim(), "unlimited", "what a child may is its own");
    end_all(stack, "ada").await;

    let broker = another_broker(stack);
    let mut running = with_dumps(&broker.command(&["serve"]).unwrap()).spawn().unwrap();
    serves(&broker).await;
    kill_process(Pid::from_child(&running), Signal::ABORT).unwrap();
    assert!(!aborted(running.wait().unwrap()), "the broker");
}

/// CVE-2021-38553
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_is_the_broker_s_user_s_alone_whatever_the_umask() {
    let broker = another_broker(shared(PgVersion::Pg18).await);
    let command = broker.command(&["serve"]).unwrap();
    let mut running = after("umask 000", &command).spawn().unwrap();
    serves(&broker).await;
    let mut files = Vec::new();
    for entry in fs::read_dir(broker.store_file().parent().unwrap()).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("kdbt.db") {
            let mode = entry.metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "{name}");
            files.push(name);
        }
    }
    kill_process(Pid::from_child(&running), Signal::KILL).unwrap();
    running.wait().unwrap();
    assert!(files.len() > 1, "with what lies beside the store: {files:?}");
}

/// One of another installation at the same server, not running yet.
fn another_broker(stack: &Stack) -> Broker {
    let options = BrokerOptions {
        installation: "another".to_owned(),
        ..options(PgVersion::Pg18).broker
    };
    let broker = stack.broker.beside(&options, &stack.postgres, &stack.identity.issuer());
    broker.unwrap()
}

async fn serves(broker: &Broker) {
    let alive = format!("{}/healthz", broker.url());
    within(Duration::from_secs(20), "the broker serves", async || {
        reqwest::get(&alive)
            .await
            .is_ok_and(|answer| answer.status().is_success())
    })
    .await;
}

/// Half of a password's 32 letters and digits in a row. Ids are hexadecimal.
fn could_hold_a_password(text: &str) -> bool {
    text.split(|c: char| !c.is_ascii_alphanumeric())
        .any(|run| run.len() >= 16 && !run.bytes().all(|b| b.is_ascii_hexdigit()))
}
