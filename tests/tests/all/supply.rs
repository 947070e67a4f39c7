//! The bills of materials of what is shipped, held to `CycloneDX`'s rules, to the lock file and to what `cargo metadata` says.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use kdbt_e2e::sbom::{Bill, SHIPPED, TARGET};
use serde_json::Value;

const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

fn bill(program: &str) -> Value {
    serde_json::from_str(&Bill::of(program).unwrap().to_json().unwrap()).unwrap()
}

fn text<'v>(value: &'v Value, name: &str) -> &'v str {
    value[name]
        .as_str()
        .unwrap_or_else(|| panic!("no text `{name}` in {value}"))
}

fn texts<'v>(list: &'v Value, name: &str) -> Vec<&'v str> {
    let list = list.as_array().unwrap();
    list.iter().map(|entry| text(entry, name)).collect()
}

fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .args(arguments)
        .current_dir(REPOSITORY)
        .output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_bill_of_materials_keeps_the_rules_of_cyclonedx() {
    for program in SHIPPED {
        let bill = bill(program);
        assert_eq!(text(&bill, "bomFormat"), "CycloneDX");
        assert_eq!(text(&bill, "specVersion"), "1.6");
        assert_eq!(bill["version"], 1);
        let root = &bill["metadata"]["component"];
        assert_eq!((text(root, "type"), text(root, "name")), ("application", program));

        let components = bill["components"].as_array().unwrap();
        for component in components.iter().chain([root]) {
            let (name, version) = (text(component, "name"), text(component, "version"));
            assert_eq!(text(component, "purl"), format!("pkg:cargo/{name}@{version}"));
            assert_eq!(component["licenses"].as_array().unwrap().len(), 1, "{name}");
            assert!(!text(&component["licenses"][0], "expression").contains('/'), "{name}");
            let ours = name.starts_with("kdbt-");
            let hashes = component["hashes"].as_array().map_or(&[][..], Vec::as_slice);
            assert_eq!(hashes.len(), usize::from(!ours), "{name}");
            for hash in hashes {
                let content = text(hash, "content");
                assert_eq!(text(hash, "alg"), "SHA-256");
                assert!(
                    content.len() == 64 && content.bytes().all(|b| b.is_ascii_hexdigit()),
                    "{name}"
                );
            }
        }
        for component in components {
            assert_eq!(text(component, "type"), "library");
            assert!(["required", "excluded"].contains(&text(component, "scope")));
        }

        let mut refs = texts(&bill["components"], "bom-ref");
        refs.push(text(root, "bom-ref"));
        let known: BTreeSet<&str> = refs.iter().copied().collect();
        assert_eq!(known.len(), refs.len(), "{program}: a bom-ref stands there twice");
        let of = texts(&bill["dependencies"], "ref");
        assert_eq!(of.len(), known.len(), "{program}: one entry for each component");
        assert_eq!(of.iter().copied().collect::<BTreeSet<_>>(), known);
        let mut reached = BTreeSet::from([text(root, "bom-ref")]);
        for entry in bill["dependencies"].as_array().unwrap() {
            for on in entry["dependsOn"].as_array().unwrap() {
                let on = on.as_str().unwrap();
                assert!(known.contains(on), "{on} is in no list of components");
                reached.insert(on);
            }
        }
        assert_eq!(reached, known, "{program}: nothing needs one of them");
    }
}

#[test]
fn a_bill_of_materials_is_the_same_bytes_each_time_and_names_no_folder() {
    for program in SHIPPED {
        let first = Bill::of(program).unwrap().to_json().unwrap();
        assert_eq!(first, Bill::of(program).unwrap().to_json().unwrap());
        let here = Path::new(REPOSITORY).canonicalize().unwrap();
        for word in [here.to_str().unwrap(), "file:", "timestamp", "serialNumber"] {
            assert!(!first.contains(word), "{program}: {word}");
        }
    }
}

#[test]
fn a_bill_of_materials_holds_what_a_release_compiles_and_nothing_that_only_tests_need() {
    let has = |program: &str, name: &str| {
        let bill = bill(program);
        let found = bill["components"].as_array().unwrap().iter();
        let found = found.filter(|component| component["name"] == name);
        found
            .map(|component| text(component, "scope").to_owned())
            .collect::<Vec<_>>()
    };
    for name in ["proptest", "insta", "tempfile", "rcgen"] {
        assert!(has("kdbt-broker", name).is_empty(), "{name}");
        assert!(has("kdbt-client", name).is_empty(), "{name}");
    }
    for name in ["axum", "utoipa", "rusqlite", "tokio-postgres"] {
        assert_eq!(has("kdbt-broker", name), ["required"], "{name}");
        assert!(has("kdbt-client", name).is_empty(), "{name}");
    }
    for program in SHIPPED {
        assert_eq!(has(program, "rustls"), ["required"]);
        assert_eq!(has(program, "kdbt-api"), ["required"]);
        assert_eq!(has(program, "cc"), ["excluded"], "it builds aws-lc and runs nowhere");
        assert_eq!(
            has(program, "serde_derive"),
            ["excluded"],
            "a macro is not in the program"
        );
    }
}

#[test]
fn a_bill_of_materials_says_what_cargo_tree_and_metadata_and_the_lock_file_say() {
    let metadata: Value = serde_json::from_str(&cargo(&[
        "metadata",
        "--locked",
        "--format-version=1",
        "--filter-platform",
        TARGET,
    ]))
    .unwrap();
    let purl = |package: &Value| format!("pkg:cargo/{}@{}", text(package, "name"), text(package, "version"));
    let packages = metadata["packages"].as_array().unwrap();
    let purls: BTreeMap<&str, String> = packages.iter().map(|p| (text(p, "id"), purl(p))).collect();
    let licenses: BTreeMap<String, String> = packages
        .iter()
        .map(|p| (purl(p), text(p, "license").replace('/', " OR ")))
        .collect();
    let mut edges = BTreeSet::new();
    for node in metadata["resolve"]["nodes"].as_array().unwrap() {
        for dependency in node["deps"].as_array().unwrap() {
            let kinds = dependency["dep_kinds"].as_array().unwrap();
            if kinds.iter().any(|kind| kind["kind"] != "dev") {
                edges.insert((&purls[text(node, "id")], &purls[text(dependency, "pkg")]));
            }
        }
    }
    let lock = std::fs::read_to_string(Path::new(REPOSITORY).join("Cargo.lock")).unwrap();

    for program in SHIPPED {
        let bill = bill(program);
        for component in bill["components"].as_array().unwrap() {
            let (name, version) = (text(component, "name"), text(component, "version"));
            assert_eq!(
                text(&component["licenses"][0], "expression"),
                licenses[text(component, "purl")]
            );
            if let Some(checksum) = component["hashes"][0]["content"].as_str() {
                let source = "registry+https://github.com/rust-lang/crates.io-index";
                let entry = format!(
                    "name = \"{name}\"\nversion = \"{version}\"\nsource = \"{source}\"\nchecksum = \"{checksum}\""
                );
                assert!(lock.contains(&entry), "{entry}");
            }
        }
        for entry in bill["dependencies"].as_array().unwrap() {
            for on in entry["dependsOn"].as_array().unwrap() {
                let edge = (&text(entry, "ref").to_owned(), &on.as_str().unwrap().to_owned());
                assert!(edges.contains(&edge), "{edge:?}");
            }
        }

        let listed = Bill::of(program).unwrap().crates();
        let plain = ["--prefix", "none", "--format", "{p}", "--target", TARGET];
        let tree = [&["tree", "--locked", "-p", program, "-e", "normal,build"][..], &plain].concat();
        let tree = cargo(&tree);
        let built = tree.lines().map(|line| {
            let mut words = line.split(' ');
            format!(
                "{}@{}",
                words.next().unwrap(),
                words.next().unwrap().trim_start_matches('v')
            )
        });
        assert_eq!(listed, built.collect::<BTreeSet<_>>());
    }
}
