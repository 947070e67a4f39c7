//! Logging in, staying logged in, and not being led elsewhere.

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use crate::fake::{Fake, browse, stderr, stdout};

/// Starts a login that prints its address; the address and the running client.
fn start_login(fake: &Fake) -> (Child, BufReader<std::process::ChildStderr>, String) {
    let mut child = fake
        .client(&["login", "--no-open"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("http") {
        line.clear();
        assert!(lines.read_line(&mut line).unwrap() > 0, "no address was printed");
    }
    (child, lines, line.trim().to_owned())
}

fn log_in(fake: &Fake) {
    let (mut child, mut rest, url) = start_login(fake);
    let (_, callback) = browse(&url);
    assert!(browse(&callback.unwrap()).0.contains("200"));
    let mut text = String::new();
    rest.read_to_string(&mut text).unwrap();
    assert!(child.wait().unwrap().success(), "{text}");
    assert!(text.contains("as ada"), "{text}");
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] })
        .collect()
}

#[test]
fn a_login_by_browser_is_kept_where_only_its_owner_can_read() {
    let fake = Fake::start();
    log_in(&fake);
    let state = fake.home.path().join(".local/state/kdbt");
    assert_eq!(std::fs::metadata(&state).unwrap().mode() & 0o777, 0o700);
    for file in files(&state) {
        assert_eq!(
            std::fs::metadata(&file).unwrap().mode() & 0o777,
            0o600,
            "{}",
            file.display()
        );
    }
    let output = fake.client(&["whoami"]).output().unwrap();
    assert!(stdout(&output).contains("name         ada\n"), "{}", stderr(&output));
}

/// CVE-2021-38553
#[test]
fn what_is_kept_is_the_owner_s_alone_whatever_the_umask() {
    let fake = Fake::start();
    let openly = |command| {
        let output = Fake::openly(&command).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        stdout(&output)
    };
    openly(fake.client(&["login", "--device"]));
    let shown = openly(fake.client(&[
        "exec",
        "--",
        "sh",
        "-c",
        "umask; stat -c %a $DBT_PROFILES_DIR $DBT_PROFILES_DIR/profiles.yml",
    ]));
    assert_eq!(shown, "0000\n700\n600\n", "the umask is the child's as it was");
    let mut machine = fake.client(&["profile", "--write", "written"]);
    machine.envs([("KDBT_CLIENT_ID", "kdbt-ci"), ("KDBT_CLIENT_SECRET", "hush-hush")]);
    openly(machine);
    let (state, written) = (fake.home.path().join(".local"), fake.home.path().join("work/written"));
    let kept = everything(&state).into_iter().chain(everything(&written));
    let mut kinds = std::collections::BTreeSet::new();
    for path in kept {
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!(metadata.mode() & 0o077, 0, "{}", path.display());
        kinds.extend(path.parent().and_then(Path::file_name).map(ToOwned::to_owned));
    }
    for kind in ["logins", "brokers", "profiles", "proofs", "written"] {
        assert!(kinds.contains(std::ffi::OsStr::new(kind)), "{kind}: {kinds:?}");
    }
}

/// A folder, its folders and their files.
fn everything(folder: &Path) -> Vec<PathBuf> {
    let mut all = vec![folder.to_owned()];
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        all.extend(if path.is_dir() { everything(&path) } else { vec![path] });
    }
    all
}

/// CVE-2021-38554: who logs in at one broker brings its token to no other, not even to one that names the same issuer.
#[test]
fn a_login_at_one_broker_or_issuer_is_none_at_another() {
    let (fake, other) = (Fake::start(), Fake::start());
    log_in(&fake);
    let asks = |issuer: Option<String>| {
        other.knobs().issuer = issuer;
        let output = fake.client_at(&other, &["targets"]).output().unwrap();
        assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
        assert!(other.lines().is_empty(), "it has heard {:?}", other.calls());
        let pins = fake.home.path().join(".local/state/kdbt/brokers");
        for pin in files(&pins) {
            if std::fs::read_to_string(&pin).unwrap().contains(&other.issuer()) {
                std::fs::remove_file(pin).unwrap();
            }
        }
    };
    asks(None);
    asks(Some(fake.issuer()));
    let output = fake.client(&["targets"]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn a_callback_with_another_state_ends_the_login() {
    let fake = Fake::start();
    let (mut child, mut rest, url) = start_login(&fake);
    let callback = browse(&url).1.unwrap();
    let mut forged = url::Url::parse(&callback).unwrap();
    forged
        .query_pairs_mut()
        .clear()
        .extend_pairs([("code", "evil"), ("state", "evil")]);
    assert!(browse(forged.as_str()).0.contains("400"));
    let mut text = String::new();
    rest.read_to_string(&mut text).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(3));
    assert!(text.contains("`state` differs"), "{text}");
}

#[test]
fn a_login_by_device_needs_no_browser_here() {
    let fake = Fake::start();
    let output = fake.client(&["login", "--device"]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("ABCD-EFGH"));
    assert_eq!(stdout(&output), "");
    assert!(fake.client(&["targets"]).output().unwrap().status.success());
}

#[test]
fn a_token_about_to_expire_is_refreshed_and_a_dead_login_says_what_to_do() {
    let fake = Fake::start();
    fake.knobs().expires_in = 30;
    log_in(&fake);
    let output = fake.client(&["whoami"]).output().unwrap();
    assert!(stdout(&output).contains("ada-again"), "{}", stderr(&output));
    fake.knobs().refresh_works = false;
    let output = fake.client(&["exec", "--", "true"]).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(stderr(&output).contains("hint: kdbt-client login"));
    assert_eq!(fake.client(&["whoami"]).output().unwrap().status.code(), Some(3));
}

#[test]
fn a_broker_that_suddenly_names_another_issuer_is_refused() {
    let fake = Fake::start();
    log_in(&fake);
    fake.knobs().issuer = Some("https://evil.example/realm".into());
    let before = fake.lines().len();
    let output = fake.client(&["whoami"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains(&fake.issuer()), "{}", stderr(&output));
    assert!(stderr(&output).contains("--trust-issuer"));
    assert_eq!(fake.lines().len(), before);
}

#[test]
fn a_logout_ends_leases_and_forgets_the_login() {
    let fake = Fake::start();
    log_in(&fake);
    let output = fake.client(&["logout"]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(fake.lines().contains(&"POST /v1/revocations".to_owned()));
    assert_eq!(fake.client(&["whoami"]).output().unwrap().status.code(), Some(3));
}

#[test]
fn nobody_is_asked_where_nobody_is() {
    let fake = Fake::start();
    let output = fake.client(&["targets"]).env("CI", "true").output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let output = fake.client(&["login"]).env("CI", "true").output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let output = fake.client(&["targets"]).env_remove("KDBT_BROKER").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}
