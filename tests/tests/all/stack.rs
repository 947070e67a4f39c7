//! The ground holds: servers start, refuse, log, and die with their runner.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kdbt_e2e::binaries::{broker_bin, client_bin};
use kdbt_e2e::dbt::{Dbt, Project};
use kdbt_e2e::postgres::{PgOptions, PgServer, PgStop, PgVersion, Postgres, unique};
use tokio_postgres::error::SqlState;

#[tokio::test]
async fn both_versions_run_with_fsync_and_refuse_a_wrong_password() {
    for version in PgVersion::ALL {
        let server = Postgres::shared(version);
        let shown = server
            .execute("postgres", "SHOW server_version_num; SHOW fsync")
            .await
            .unwrap();
        let number: u32 = shown[0][0].as_deref().unwrap().parse().unwrap();
        assert!(number / 10_000 >= version.major(), "{number}");
        assert_eq!(shown[1][0].as_deref(), Some("on"));

        let refused = server
            .connect_as("postgres", "postgres", "wrong")
            .await
            .expect_err("a wrong password opens nothing");
        assert_eq!(refused.code(), Some(&SqlState::INVALID_PASSWORD), "{refused:?}");
    }
}

#[tokio::test]
async fn the_log_shows_what_the_server_refused() {
    for version in PgVersion::ALL {
        let server = Postgres::shared(version);
        let nobody = format!("nobody_{}", unique());
        assert!(server.connect_as("postgres", &nobody, "x").await.is_err());
        let log = server.log().unwrap();
        assert!(log.contains(&nobody), "{log}");
    }
}

#[tokio::test]
async fn a_database_of_a_test_is_its_own() {
    let server = Postgres::shared(PgVersion::Pg15);
    let name = format!("stack_{}", unique());
    server.create_database(&name).await.unwrap();
    server
        .execute(&name, "CREATE TABLE t (); SELECT * FROM t")
        .await
        .unwrap();
    assert!(server.execute("postgres", "SELECT * FROM t").await.is_err());
}

#[tokio::test]
async fn a_server_keeps_what_was_committed_through_an_immediate_stop() {
    let mut server = PgServer::start(PgVersion::Pg18, &PgOptions::default().set("max_connections", "20")).unwrap();
    server
        .execute("postgres", "CREATE TABLE kept AS SELECT 1 AS one")
        .await
        .unwrap();
    let port = server.port();
    server.stop(PgStop::Immediate).unwrap();
    assert!(server.connect("postgres").await.is_err());
    server.restart().unwrap();
    assert_eq!(server.port(), port);
    let rows = server
        .execute("postgres", "SELECT one FROM kept; SHOW max_connections")
        .await
        .unwrap();
    assert_eq!(rows, [[Some("1".to_owned())], [Some("20".to_owned())]]);
    server.stop(PgStop::Fast).unwrap();
    assert!(
        server.log().unwrap().contains("not properly shut down"),
        "the first stop was immediate"
    );
}

#[tokio::test]
async fn the_certificate_stands_where_the_build_has_tls() {
    let server = Postgres::shared(PgVersion::Pg15);
    assert!(server.ca_pem().unwrap().starts_with("-----BEGIN CERTIFICATE"));
    let mut psql = server.program("psql").unwrap();
    psql.env("PGSSLMODE", "verify-full")
        .env("PGSSLROOTCERT", server.ca_file().unwrap());
    let output = psql
        .args(["-XAtc", "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "t\n", "{output:?}");
    assert_eq!(Postgres::shared(PgVersion::Pg18).ca_pem(), None);
}

/// Not a test: what the next one kills.
#[test]
#[ignore = "run as a child by a_server_dies_with_its_runner"]
fn runner_that_is_killed() {
    let server = PgServer::start(PgVersion::Pg15, &PgOptions::default()).unwrap();
    println!("\nserver {} {}", server.pid().unwrap(), server.socket_dir().display());
    std::thread::sleep(Duration::from_mins(10));
}

#[test]
fn a_server_dies_with_its_runner() {
    let mut runner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "stack::runner_that_is_killed", "--ignored", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(runner.stdout.take().unwrap()));
    let line = lines
        .map(Result::unwrap)
        .find(|line| line.starts_with("server "))
        .expect("the runner starts a server");
    let (pid, socket) = line.strip_prefix("server ").unwrap().split_once(' ').unwrap();
    let process = std::path::PathBuf::from(format!("/proc/{pid}"));
    let folder = std::path::Path::new(socket).parent().unwrap();
    assert!(process.exists() && folder.exists());

    runner.kill().unwrap();
    runner.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while process.exists() || folder.exists() {
        assert!(Instant::now() < deadline, "{line} outlived its runner");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn dbt_runs_in_a_copy_of_a_project_without_its_callers_settings() {
    if !Dbt::Postgres.is_there() {
        return;
    }
    let demo = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/project");
    let project = Project::copy_of(&demo, Dbt::Postgres).unwrap();
    let profiles = project.path().join("nowhere");
    let finished = project.dbt(&["parse", "--no-version-check"], &profiles, &[]).unwrap();
    assert_eq!(
        finished.code, 2,
        "dbt refuses a profiles folder that is not there: {}",
        finished.output
    );
    assert!(finished.output.contains("nowhere"), "{}", finished.output);
    let version = project.dbt(&["--version"], project.path(), &[]).unwrap();
    assert!(
        version.code == 0 && version.output.contains("1.11."),
        "{}",
        version.output
    );
}

#[test]
fn the_programs_under_test_are_what_cargo_has_just_built() {
    for program in [broker_bin(), client_bin()] {
        assert!(
            program.is_file() && program.starts_with(target_folder()),
            "{}",
            program.display()
        );
    }
}

/// This test lies in `<target>/debug/deps`.
fn target_folder() -> std::path::PathBuf {
    std::env::current_exe().unwrap().ancestors().nth(2).unwrap().to_owned()
}
