//! The loaders of what people write: the policy, and the broker's configuration, in which somebody wrote a secret.

use std::fs;
use std::path::Path;

use kdbt_broker::config::Config;
use kdbt_broker::diagnostics::Diagnostics;
use kdbt_broker::policy::PolicySet;
use kdbt_e2e::broker::{demo_policies, test_policies};
use kdbt_e2e::fuzz::{Target, kind, repeats};

use super::{bytes, hold};

/// What a complaint must be, whatever it is about: a place in the file, and nothing that steers a terminal.
fn complaints(found: &Diagnostics, text: &[u8]) -> Result<String, String> {
    hold(found.has_errors(), "refused without an error")?;
    let text = String::from_utf8_lossy(text);
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let lines: Vec<&str> = text.split('\n').collect();
    for one in found.iter().take(100) {
        let json = one.to_json();
        let number = |name: &str| json[name].as_u64().and_then(|number| usize::try_from(number).ok());
        if let (Some(line), Some(column)) = (number("line"), number("column")) {
            let length = lines.get(line - 1).map(|line| line.chars().count());
            hold(
                length.is_some_and(|length| column <= length + 1),
                &format!("no such place: {json}"),
            )?;
        }
    }
    let told = found.to_string();
    let steers =
        |c: char| (c.is_control() && c != '\n') || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    hold(
        !told.contains(steers),
        &format!("it steers the terminal: {}", told.escape_debug()),
    )?;
    let kinds = found.iter().map(|one| kind(&one.to_json()["message"].to_string()));
    Ok(kinds.take(3).collect())
}

#[test]
fn a_policy_is_loaded_the_same_twice_or_refused_with_places_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("policy.yaml");
    let check = |input: &[u8]| {
        fs::write(&file, input).map_err(|error| error.to_string())?;
        let load = || PolicySet::load(folder.path(), &[]);
        match load() {
            Ok(loaded) => {
                let again = load().map_err(|found| format!("refused the second time: {found}"))?;
                hold(again.set.hash() == loaded.set.hash(), "another hash the second time")?;
                hold(again.set.run_tests().failures().next().is_none(), "its tests fail")?;
                Ok(format!("{} warnings", loaded.warnings.len()))
            }
            Err(found) => complaints(&found, input),
        }
    };
    Target {
        name: "policy",
        // Found: a line's end that is none in YAML went to the terminal as it was.
        seeds: [demo_policies(), test_policies()]
            .into_iter()
            .map(joined)
            .chain(bytes(["\u{85}"]))
            .collect(),
        words: &[
            "kdbt: 1\n",
            "rules:\n",
            "grants:\n",
            "targets:\n",
            "limits:\n",
            "tests:\n",
            "  - id: x\n",
            "when: {",
            "unless: {",
            "everyone: true",
            "effect: deny",
            "realm_roles: [",
            "claims: { ",
            "opt_in: true",
            "own_schema: ",
            "{{username}}",
            "{{claims.x}}",
            "create_as: ",
            "ttl: { max: 12h }",
            "ttl: 999999999h",
            "&a ",
            "*a",
            "<<: ",
            "!!str ",
            "? ",
            "- ",
            ": ",
            "|\n",
            ">-\n",
            "[",
            "]",
            "{",
            "}",
            "\"",
            "'",
            "#",
            "yes",
            "~",
            "null",
            "*",
            "--- \n",
            "...\n",
            "%YAML 1.2\n",
        ],
        short: 600,
        check: &check,
    }
    .run();
}

/// All files of a folder as one: no file of a policy has a say in how another one is read.
fn joined(folder: &Path) -> Vec<u8> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    let texts = files.iter().map(|file| fs::read_to_string(file).unwrap());
    let text: String = texts.map(|text| text.replace("kdbt: 1\n", "")).collect();
    format!("kdbt: 1\n{text}").into_bytes()
}

/// In the file that the configuration refers to.
const REFERRED: &str = "Hs5t-Pf9w-Lc4y-Gn6k";
/// In the configuration itself, where a reference belongs.
const WRITTEN: &str = "Vq8x-Zk3p-Jw7m-Bd2r";

#[test]
fn a_configuration_is_refused_with_places_in_it_and_never_with_a_secret() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("broker.yaml");
    fs::write(folder.path().join("secret"), REFERRED).unwrap();
    fs::create_dir(folder.path().join("policies")).unwrap();
    let example = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/broker.example.yaml"));
    let example = fs::read_to_string(example)
        .unwrap()
        .replace("{ env: KDBT_DWH_PASSWORD }", "{ file: secret }")
        .replace("../policies", "policies");
    let check = |input: &[u8]| {
        fs::write(&file, input).map_err(|error| error.to_string())?;
        let said = match Config::load(&file) {
            Ok(config) => {
                let told = format!("{config:?}");
                hold(!told.contains(REFERRED), "Debug tells a secret")?;
                Ok(format!("{} warnings", config.warnings.len()))
            }
            Err(found) => {
                let told = format!("{found} {found:?}");
                hold(
                    !repeats(&told, REFERRED.as_bytes(), 9),
                    "a complaint tells a secret that it refers to",
                )?;
                complaints(&found, input)
            }
        };
        let _ = (Config::engines_of(&file), Config::issuer_facts_of(&file));
        said
    };
    Target {
        name: "configuration",
        seeds: bytes([
            example.clone(),
            example
                .replace("  # ", "  ")
                .replace("{ file: sf.p8 }", "{ file: secret }"),
            example.replace(
                "# audit: { key: { file: audit.key } }",
                "audit: { key: { file: secret } }",
            ),
            example.replace("{ file: secret }", "{ file: secret, env: PATH }"),
        ]),
        words: &[
            "file: secret",
            "env: HOME",
            "ca_file: secret",
            "ca_file: broker.yaml",
            "tls: { cert: secret, key: secret }",
            "behind_proxy: [127.0.0.1]",
            "https://",
            "http://[::1]:1",
            "127.0.0.1:0",
            "0.0.0.0:99999",
            "engine: snowflake",
            "30s",
            "1e9h",
            "realm:",
            "client::",
            "group:/",
            "claims.",
            "&a ",
            "*a",
            "!!binary ",
            "[",
            "]",
            "{",
            "}",
            "\"",
            "'",
            "~",
            "- ",
        ],
        short: 600,
        check: &check,
    }
    .run();
}

#[test]
fn a_secret_written_where_its_reference_belongs_is_in_no_complaint() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("broker.yaml");
    let example = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/broker.example.yaml"));
    let example = fs::read_to_string(example).unwrap().replace("  # ", "  ");
    // The line with the secret stays whole; all around it is broken.
    let line = |name: &str, value: &str| format!("\n      {name}: {value}\n");
    let check = |input: &[u8]| {
        let text = String::from_utf8_lossy(input);
        let password = line("password", WRITTEN);
        let key = line("private_key", &format!("\"{WRITTEN}\""));
        let text = text.replace("PASSWORD-HERE\n", &password).replace("KEY-HERE\n", &key);
        fs::write(&file, &text).map_err(|error| error.to_string())?;
        match Config::load(&file) {
            Ok(_) => Ok("taken".to_owned()),
            Err(found) => {
                let told = format!("{found} {found:?}");
                hold(
                    !repeats(&told, WRITTEN.as_bytes(), 12),
                    &format!("a complaint tells a secret: {found}"),
                )?;
                complaints(&found, text.as_bytes())
            }
        }
    };
    Target {
        name: "configuration with a secret in it",
        seeds: bytes([example
            .replace("      password: { env: KDBT_DWH_PASSWORD }", "PASSWORD-HERE\n     ")
            .replace("      private_key: { file: sf.p8 } ", "KEY-HERE\n      ")]),
        words: &[
            "PASSWORD-HERE\n",
            "KEY-HERE\n",
            "connect:",
            "{ ",
            " }",
            "? ",
            "|\n",
            "- ",
            "password: ",
        ],
        short: 600,
        check: &check,
    }
    .run();
}
