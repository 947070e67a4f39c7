//! What the documents say is there: problem codes, reasons, metrics, variables, tests, commands and flags.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use kdbt_api::problem::ProblemCode;
use kdbt_broker::identity::Reason;
use kdbt_e2e::binaries::{broker_bin, client_bin};
use kdbt_e2e::contract::warehouse::snowflake::live;

const DOCUMENTS: [&str; 7] = [
    "README.md",
    "docs/api.md",
    "docs/architecture.md",
    "docs/client.md",
    "docs/operations.md",
    "docs/policies.md",
    "docs/security.md",
];

fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn read(file: &str) -> String {
    std::fs::read_to_string(repository().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// All Rust sources below these folders.
pub(super) fn sources(folders: &[&str]) -> Vec<String> {
    let mut folders: Vec<PathBuf> = folders.iter().map(|folder| repository().join(folder)).collect();
    let mut texts = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                texts.push(std::fs::read_to_string(path).unwrap());
            }
        }
    }
    texts
}

/// What stands between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn every_problem_code_is_in_the_api_document_with_its_status() {
    let text = read("docs/api.md");
    for code in ProblemCode::ALL {
        let row = format!("| `{code}` | {} |", code.status());
        assert!(text.contains(&row), "{row}");
    }
}

#[test]
fn every_token_reason_is_in_the_security_document_with_its_status() {
    let text = read("docs/security.md");
    for reason in Reason::ALL {
        let status = kdbt_broker::identity::AuthError::from(*reason).status();
        let row = format!("| `{}` | {status} |", reason.code());
        assert!(text.contains(&row), "{row}");
    }
}

#[test]
fn every_metric_is_in_the_operations_document() {
    let text = read("docs/operations.md");
    let source = read("broker/src/metrics.rs");
    let names: Vec<&str> = source
        .split("to.register(")
        .skip(1)
        .filter_map(|call| call.trim_start().strip_prefix('"')?.split('"').next())
        .collect();
    assert!(
        names.len() >= 10,
        "the metrics are not registered as they were: {names:?}"
    );
    for name in names {
        assert!(text.contains(&format!("| `kdbt_{name}")), "{name}");
    }
}

#[test]
fn every_variable_that_is_read_is_documented() {
    let text = [read("docs/client.md"), read("docs/operations.md")].concat();
    let documented: BTreeSet<&str> = quoted(&text).collect();
    let mut found = 0;
    for source in sources(&["broker/src", "client/src"]) {
        for name in source.split('"').filter(|text| text.starts_with("KDBT_")) {
            let is_name = name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
            // A reference in an example, what only test builds read, and names on Snowflake: they are in capitals too.
            let other = ["KDBT_TEST", "KDBT_ENT_", "KDBT__"]
                .iter()
                .any(|prefix| name.starts_with(prefix))
                || ["KDBT_", "KDBT_BROKER", "KDBT_SVC", "KDBT_DWH_PASSWORD"].contains(&name);
            if is_name && !other {
                found += 1;
                assert!(documented.contains(name), "{name} is read and not documented");
            }
        }
    }
    assert!(found > 20, "the variables are not written as they were");
}

#[test]
fn every_variable_of_a_live_account_is_in_the_snowflake_document_and_no_other() {
    let text = read("docs/snowflake.md");
    let documented: BTreeSet<&str> = quoted(&text)
        .filter(|text| text.starts_with("KDBT_SNOWFLAKE_LIVE_"))
        .collect();
    let read = live::Live::NEEDED.into_iter().chain([live::Live::BASE_URL]);
    assert_eq!(documented, read.collect());
    let run = live::RUN.join(" ");
    assert!(text.contains(&run), "how to run it: {run}");
}

#[test]
fn every_test_that_the_security_document_names_exists() {
    let code = sources(&["api/src", "broker/src", "client", "tests"]).concat();
    let text = read("docs/security.md");
    let names: Vec<&str> = quoted(&text).filter(|text| is_test_name(text)).collect();
    assert!(names.len() > 30, "{names:?}");
    for name in names {
        assert!(code.contains(&format!("fn {name}(")), "there is no test {name}");
    }
}

#[test]
fn every_finding_that_the_hardening_list_names_is_one_of_the_doctors() {
    let code = sources(&["broker/src/warehouse", "broker/src/identity"]).concat();
    let text = read("docs/security.md");
    let rows = text.lines().filter_map(|line| line.split_once("| doctor"));
    let findings: Vec<&str> = rows
        .flat_map(|(_, cell)| quoted(cell))
        .filter(|text| text.contains('-') && !text.starts_with('-'))
        .collect();
    assert!(findings.len() > 20, "{findings:?}");
    for finding in findings {
        assert!(code.contains(&format!("\"{finding}\"")), "no doctor says {finding}");
    }
}

fn is_test_name(text: &str) -> bool {
    text.matches('_').count() >= 3
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

#[test]
fn every_command_and_flag_that_the_documents_show_exists() {
    let mut shown = 0;
    for document in DOCUMENTS {
        let text = read(document);
        for (program, path) in [("kdbt-broker", broker_bin()), ("kdbt-client", client_bin())] {
            for call in calls(&text, program) {
                shown += 1;
                let help = Command::new(path).args(&call.command).arg("--help").output().unwrap();
                let known = String::from_utf8_lossy(&help.stdout).into_owned();
                assert!(help.status.success(), "{document}: {program} {:?}", call.command);
                for flag in call.flags {
                    assert!(
                        known.contains(flag),
                        "{document}: {program} {:?} has no {flag}",
                        call.command
                    );
                }
            }
        }
    }
    assert!(shown > 40, "the documents show {shown} commands only");
}

struct Call<'t> {
    command: Vec<&'t str>,
    flags: Vec<&'t str>,
}

/// What is called in this text: command words up to the first argument, and flags up to `--`.
fn calls<'t>(text: &'t str, program: &str) -> Vec<Call<'t>> {
    let mut calls = Vec::new();
    for rest in text.split(&format!("{program} ")).skip(1) {
        let line = rest
            .split(['`', '\n', '#', ')', '&', '|', '>'])
            .next()
            .unwrap_or_default();
        let words: Vec<&str> = line.split_whitespace().take_while(|word| *word != "--").collect();
        let Some(first) = words
            .first()
            .filter(|word| word.bytes().all(|b| b.is_ascii_lowercase()))
        else {
            continue;
        };
        let nested = matches!(*first, "policy" | "audit");
        let command = words.iter().copied().take(if nested { 2 } else { 1 });
        let command: Vec<&str> = command
            .map(|word| word.trim_end_matches([',', '.', ';', '"']))
            .collect();
        if !PROSE.contains(first) {
            let flags = words.iter().copied().filter(|word| word.starts_with("--"));
            calls.push(Call {
                command,
                flags: flags.collect(),
            });
        }
    }
    calls
}

/// Words that follow a program's name in a sentence.
const PROSE: [&str; 3] = ["and", "made", "is"];
