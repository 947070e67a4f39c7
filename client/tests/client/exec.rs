//! `exec`: its child's life, surroundings and end.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};

use crate::fake::{Fake, LEASE, stderr, stdout, until};

fn deleted() -> String {
    format!("DELETE /v1/leases/{LEASE}")
}

#[test]
fn the_exit_code_is_the_childs_and_the_lease_ends_with_it() {
    let fake = Fake::start();
    for code in [0, 1, 2, 42] {
        let output = fake
            .client_with_token(&["exec", "--", "sh", "-c", &format!("exit {code}")])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        assert_eq!(fake.lines().last(), Some(&deleted()));
        assert!(fake.leftovers().is_empty());
    }
}

#[test]
fn a_command_that_cannot_run_has_the_codes_of_shells() {
    let fake = Fake::start();
    let plain = fake.home.path().join("plain");
    std::fs::write(&plain, "x").unwrap();
    for (command, code) in [("/nowhere/to/be/found", 127), (plain.to_str().unwrap(), 126)] {
        let output = fake.client_with_token(&["exec", "--", command]).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        assert_eq!(fake.lines().last(), Some(&deleted()));
    }
    let output = fake.client(&["exec", "--", "true"]).output().unwrap();
    assert_eq!(output.status.code(), Some(125), "without a login");
}

#[test]
fn the_child_sees_the_lease_and_none_of_our_tokens() {
    let fake = Fake::start();
    let script = "env; echo FILE; cat $DBT_PROFILES_DIR/profiles.yml; stat -c %a $DBT_PROFILES_DIR $DBT_PROFILES_DIR/profiles.yml";
    let output = fake
        .client_with_token(&["exec", "--", "sh", "-c", script])
        .env("KDBT_CLIENT_SECRET", "hush-hush")
        .env("KDBT_OIDC_TOKEN", "x")
        .env("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "x")
        .env("PGHOSTADDR", "203.0.113.1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    let (environment, file) = text.split_once("FILE\n").unwrap();
    let variables: BTreeMap<&str, &str> = environment.lines().filter_map(|line| line.split_once('=')).collect();
    let app_name = format!("kdbt/{LEASE}");
    for (name, value) in [
        ("KDBT_HOST", "127.0.0.1"),
        ("KDBT_PORT", "5432"),
        ("KDBT_USER", "kdbt_ada_0"),
        ("KDBT_DBNAME", "analytics"),
        ("KDBT_SCHEMA", "finance"),
        ("KDBT_LEASE_ID", LEASE),
        ("DBT_ENV_CUSTOM_ENV_KDBT_LEASE", LEASE),
        ("DBT_ENV_CUSTOM_ENV_KDBT_SUBJECT", "sub-ada"),
        ("PGAPPNAME", &app_name),
        ("PGSSLMODE", "disable"),
        ("PGREQUIREAUTH", "scram-sha-256"),
    ] {
        assert_eq!(variables.get(name), Some(&value), "{name}");
    }
    assert_eq!(variables["DBT_PROFILES_DIR"], variables["DBT_ENGINE_PROFILES_DIR"]);
    for name in variables.keys() {
        let ours = [
            "KDBT_TOKEN",
            "KDBT_CLIENT_",
            "KDBT_OIDC_TOKEN",
            "ACTIONS_ID_TOKEN_REQUEST_",
        ];
        assert!(!ours.iter().any(|prefix| name.starts_with(prefix)), "{name}");
        assert!(!["DBT_TARGET", "DBT_PROFILE", "PGHOSTADDR"].contains(name), "{name}");
    }
    let secret = variables["DBT_ENV_SECRET_KDBT_PASSWORD"];
    assert_eq!(secret.len(), 32);
    assert!(!file.contains(secret) && file.contains("env_var('DBT_ENV_SECRET_KDBT_PASSWORD')"));
    assert!(file.ends_with("700\n600\n"), "{file}");
    assert!(!stderr(&output).contains(secret));
    let kept: Vec<u8> = walk(fake.home.path())
        .into_iter()
        .flat_map(|path| std::fs::read(path).unwrap())
        .collect();
    assert!(
        !String::from_utf8_lossy(&kept).contains(secret),
        "the secret lies in a file"
    );
}

fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] })
        .collect()
}

#[test]
fn a_signal_reaches_the_child_and_nothing_is_left_behind() {
    for (script, signal, code) in [
        (
            "trap 'exit 3' TERM; echo $DBT_PROFILES_DIR; while :; do sleep 0.02; done",
            Signal::TERM,
            3,
        ),
        (
            "echo $DBT_PROFILES_DIR; while :; do sleep 0.02; done",
            Signal::TERM,
            143,
        ),
        (
            "trap 'exit 5' INT; echo $DBT_PROFILES_DIR; while :; do sleep 0.02; done",
            Signal::INT,
            5,
        ),
    ] {
        let fake = Fake::start();
        let mut client = fake
            .client_with_token(&["exec", "--", "sh", "-c", script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut folder = String::new();
        BufReader::new(client.stdout.take().unwrap())
            .read_line(&mut folder)
            .unwrap();
        let folder = std::path::Path::new(folder.trim());
        assert!(folder.join("profiles.yml").is_file());
        kill_process(Pid::from_child(&client), signal).unwrap();
        until("the signal ended nothing", || client.try_wait().unwrap().is_some());
        assert_eq!(client.wait().unwrap().code(), Some(code));
        assert!(!folder.exists());
        assert_eq!(fake.lines().last(), Some(&deleted()));
        assert!(fake.lines().contains(&format!("POST /v1/leases/{LEASE}/cancel")) || code == 143);
    }
}

#[test]
fn a_lease_is_renewed_while_its_child_runs() {
    let fake = Fake::start();
    fake.knobs().ttl_secs = 3;
    let go = fake.home.path().join("go");
    let script = format!("while [ ! -e {} ]; do sleep 0.02; done", go.display());
    let mut client = fake
        .client_with_token(&["exec", "--", "sh", "-c", &script])
        .spawn()
        .unwrap();
    let renewal = format!("POST /v1/leases/{LEASE}/renew");
    until("no renewal came", || fake.lines().contains(&renewal));
    std::fs::write(&go, "").unwrap();
    assert!(client.wait().unwrap().success());
}

#[test]
fn a_refused_renewal_is_told_once_and_kills_nobody() {
    let fake = Fake::start();
    fake.knobs().ttl_secs = 3;
    fake.knobs().refuse_renewal = true;
    fake.knobs().lease_state = "ended";
    let output = fake
        .client_with_token(&["exec", "--", "sh", "-c", "sleep 2; exit 2"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    assert_eq!(text.matches("is not renewed and ends in").count(), 1, "{text}");
    assert!(
        text.contains("ended during the run") && text.contains("revoked by an admin"),
        "{text}"
    );
}

#[test]
fn what_does_not_log_in_takes_no_lease() {
    let fake = Fake::start();
    let bin = fake.home.path().join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    std::fs::write(bin.join("dbt"), "#!/bin/sh\necho \"${DBT_PROFILES_DIR:-none}\"\n[ -z \"$DBT_PROFILES_DIR\" ] || cat $DBT_PROFILES_DIR/profiles.yml\n").unwrap();
    std::fs::set_permissions(bin.join("dbt"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let dbt = bin.join("dbt");
    let dbt = dbt.to_str().unwrap();
    let run = |args: &[&str]| {
        let words: Vec<&str> = ["exec", "--", dbt].into_iter().chain(args.iter().copied()).collect();
        stdout(&fake.client(&words).output().unwrap())
    };
    assert_eq!(run(&["--version"]), "none\n");
    assert_eq!(run(&["init"]), "none\n");
    assert!(run(&["deps"]).contains("kdbt_no_lease"));
    assert_eq!(fake.lines(), Vec::<String>::new());
    // After a run they get its user, so that dbt's parse cache stays good.
    let words = ["exec", "--", dbt, "build"];
    assert!(fake.client_with_token(&words).output().unwrap().status.success());
    assert!(run(&["parse"]).contains("\"kdbt_ada_0\""));
}

#[test]
fn the_target_and_the_profile_are_the_childs() {
    let fake = Fake::start();
    let bin = fake.home.path().join("dbt");
    std::fs::write(&bin, "#!/bin/sh\ncat $DBT_PROFILES_DIR/profiles.yml\n").unwrap();
    std::fs::set_permissions(&bin, std::fs::Permissions::from_mode(0o755)).unwrap();
    fake.knobs().targets = vec!["prod", "dev"];
    let words = [
        "exec",
        "--",
        bin.to_str().unwrap(),
        "build",
        "-t",
        "dev",
        "--profile",
        "jaffle",
    ];
    let output = fake.client_with_token(&words).output().unwrap();
    assert!(
        stdout(&output).starts_with("\"jaffle\":\n  target: \"dev\"\n"),
        "{}",
        stderr(&output)
    );
    let words = [
        "exec",
        "--target",
        "prod",
        "--",
        bin.to_str().unwrap(),
        "build",
        "-t",
        "dev",
    ];
    assert_eq!(
        fake.client_with_token(&words).output().unwrap().status.code(),
        Some(125)
    );
}

#[test]
fn an_exec_inside_an_exec_joins_its_lease() {
    let fake = Fake::start();
    let client = env!("CARGO_BIN_EXE_kdbt-client");
    let output = fake
        .client_with_token(&["exec", "--", client, "exec", "--", "sh", "-c", "exit 9"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(9), "{}", stderr(&output));
    assert_eq!(fake.lines().iter().filter(|line| *line == "POST /v1/leases").count(), 1);
}

/// CVE-2021-38554
#[test]
fn leases_of_other_targets_rules_and_commands_are_ordered_anew_with_secrets_of_their_own() {
    let fake = Fake::start();
    fake.knobs().targets = vec!["dev", "prod"];
    for order in [
        &["--target", "dev"][..],
        &["--target", "dev"],
        &["--target", "dev", "--rule", "one"],
        &["--target", "dev", "--rule", "two"],
    ] {
        let words = [&["exec"], order, &["--", "true"]].concat();
        let output = fake.client_with_token(&words).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
    }
    let orders: Vec<_> = fake
        .calls()
        .into_iter()
        .filter(|call| call.line == "POST /v1/leases")
        .collect();
    let rules: Vec<_> = orders.iter().map(|order| order.body["rules"].to_string()).collect();
    assert_eq!(&rules[2..], ["[\"one\"]", "[\"two\"]"], "{rules:?}");
    let verifiers: std::collections::BTreeSet<_> =
        orders.iter().map(|order| order.body["verifier"].to_string()).collect();
    assert_eq!(verifiers.len(), 4);
}

/// CVE-2021-38554
#[test]
fn an_exec_inside_an_exec_for_other_rules_or_another_broker_uses_no_lease_but_its_own() {
    let client = env!("CARGO_BIN_EXE_kdbt-client");
    let (fake, other) = (Fake::start(), Fake::start());
    let orders = |fake: &Fake| fake.lines().iter().filter(|line| *line == "POST /v1/leases").count();
    let token = fake.home.path().join("token");
    std::fs::write(&token, fake.token()).unwrap();
    let token = token.to_str().unwrap();
    let of = |rules: &[&'static str]| -> Vec<&'static str> { rules.iter().flat_map(|rule| ["--rule", rule]).collect() };
    for (outer, inner, taken) in [
        (&["one", "two"][..], &["two", "one"][..], 1),
        (&["one"], &[], 1),
        (&["one"], &["two"], 2),
        (&["one", "two"], &["one"], 2),
        (&[], &["one"], 2),
    ] {
        let before = orders(&fake);
        let (outer, inner) = (of(outer), of(inner));
        let inner = [&[client, "exec", "--token-file", token], &inner[..], &["--", "true"]].concat();
        let words = [&["exec"], &outer[..], &["--"], &inner].concat();
        let output = fake.client_with_token(&words).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!(orders(&fake) - before, taken, "{words:?}");
    }
    std::fs::write(token, other.token()).unwrap();
    let elsewhere = other.url();
    let words = [
        "exec",
        "--",
        client,
        "exec",
        "--token-file",
        token,
        "--broker",
        &elsewhere,
        "--",
        "true",
    ];
    let output = fake.client_with_token(&words).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(orders(&other), 1);
}

#[test]
fn the_command_line_of_the_child_holds_no_secret() {
    let fake = Fake::start();
    let script = "echo $DBT_ENV_SECRET_KDBT_PASSWORD; cat /proc/$$/cmdline /proc/$PPID/cmdline | tr '\\0' ' '";
    let output = fake
        .client_with_token(&["exec", "--", "sh", "-c", script])
        .output()
        .unwrap();
    let text = stdout(&output);
    let (secret, lines) = text.split_once('\n').unwrap();
    assert_eq!(secret.len(), 32);
    assert!(!lines.contains(secret) && !lines.contains(&fake.token()));
}

#[test]
fn psql_connects_as_the_leases_user() {
    let fake = Fake::start();
    let bin = fake.home.path().join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    std::fs::write(
        bin.join("psql"),
        "#!/bin/sh\necho $PGHOST $PGPORT $PGUSER $PGDATABASE $PGSSLMODE ${#PGPASSWORD} $1\nexit 3\n",
    )
    .unwrap();
    std::fs::set_permissions(bin.join("psql"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var_os("PATH").unwrap().display());
    let output = fake
        .client_with_token(&["psql", "--", "-l"])
        .env("PATH", path)
        .output()
        .unwrap();
    assert_eq!(
        stdout(&output),
        "127.0.0.1 5432 kdbt_ada_0 analytics disable 32 -l\n",
        "{}",
        stderr(&output)
    );
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(fake.lines().last(), Some(&deleted()));
}
