//! `cargo verify reproduce`: builds what is committed twice, where nothing has the same path, and compares byte by byte.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::provision::run;
use crate::sbom::{Bill, SHIPPED};

const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Builds a release twice and says of each program whether it is the same, whether it names a folder of this machine, and
/// whether it was compiled from the crates of its bill of materials. Takes some ten minutes on two cores for each build, and
/// 2 GB in the folder for temporary files. True: all is well.
///
/// # Errors
/// If something does not build, or git, tar or a disk refuses.
pub fn reproduce() -> Result<bool> {
    let commit = head()?;
    say(&format!("commit {commit}"));
    if !run(git().args(["status", "--porcelain"]))?.trim().is_empty() {
        say("what is not committed is not built");
    }
    let room = tempfile::tempdir()?;
    let home = cargo_home()?;
    let near = Place {
        source: room.path().join("kdbt"),
        target: None,
        home: home.clone(),
        zone: "UTC",
    };
    let far = Place {
        source: room.path().join("somewhere/else/entirely/src"),
        target: Some(room.path().join("built")),
        home: room.path().join("cargo"),
        zone: "Pacific/Kiritimati",
    };
    mirror(&home, &far.home)?;
    let (first, second) = (near.build(&commit)?, far.build(&commit)?);

    let mut well = true;
    for (number, program) in SHIPPED.iter().enumerate() {
        let (one, other) = (first.read(program)?, second.read(program)?);
        say(&format!("{program} sha256:{}", hash(&one)));
        let mut complaints = Vec::new();
        if one != other {
            complaints.push(format!(
                "the second build is sha256:{}: {}",
                hash(&other),
                difference(&one, &other)
            ));
        }
        let folders = [room.path(), home.as_path()].into_iter();
        let folders = folders.filter(|folder| contains(&one, folder.as_os_str().as_encoded_bytes()));
        complaints.extend(folders.map(|folder| format!("names {}", folder.display())));
        complaints.extend(unlike_its_bill(program, first.crates.get(number))?);
        for complaint in &complaints {
            say(&format!("{program}: {complaint}"));
        }
        well &= complaints.is_empty();
    }
    if well {
        say(
            "both builds are the same, name no folder of this machine, and are of the crates of their bills of materials",
        );
    } else {
        say(&format!("kept: {}", room.keep().display()));
    }
    Ok(well)
}

/// Where and how one of the two is built.
struct Place {
    source: PathBuf,
    target: Option<PathBuf>,
    home: PathBuf,
    zone: &'static str,
}

struct Built {
    folder: PathBuf,
    /// Of each of [`SHIPPED`], in that order, what cargo has compiled.
    crates: Vec<BTreeSet<String>>,
}

impl Place {
    fn build(&self, commit: &str) -> Result<Built> {
        check_out(commit, &self.source)?;
        let folder = self.source.with_extension("release");
        say(&format!("building in {}", self.source.display()));
        let mut release = Command::new(self.source.join("deploy/release.sh"));
        release
            .arg(&folder)
            .arg("--message-format=json-render-diagnostics")
            .env_remove("CARGO_TARGET_DIR")
            .env("CARGO_HOME", &self.home)
            .env("TZ", self.zone)
            .stderr(Stdio::inherit());
        if let Some(target) = &self.target {
            release.env("CARGO_TARGET_DIR", target);
        }
        let output = release.output().context("run deploy/release.sh")?;
        ensure!(output.status.success(), "the release does not build, see above");
        let messages = String::from_utf8(output.stdout).context("cargo's messages are no text")?;
        Ok(Built {
            folder,
            crates: compiled(&messages),
        })
    }
}

impl Built {
    fn read(&self, program: &str) -> Result<Vec<u8>> {
        let path = self.folder.join(program);
        fs::read(&path).with_context(|| format!("read {}", path.display()))
    }
}

/// What cargo has compiled in each of its runs, as `name@version`.
fn compiled(messages: &str) -> Vec<BTreeSet<String>> {
    #[derive(Deserialize)]
    struct Message {
        reason: String,
        package_id: Option<String>,
    }
    let mut runs = Vec::new();
    let mut crates = BTreeSet::new();
    for message in messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok())
    {
        match (&*message.reason, message.package_id) {
            // `registry+https://github.com/rust-lang/crates.io-index#serde@1.0.228`
            ("compiler-artifact", Some(id)) => crates.extend(id.split_once('#').map(|(_, krate)| krate.to_owned())),
            ("build-finished", _) => runs.push(std::mem::take(&mut crates)),
            _ => {}
        }
    }
    runs
}

fn unlike_its_bill(program: &str, compiled: Option<&BTreeSet<String>>) -> Result<Vec<String>> {
    let bill = Bill::of(program)?.crates();
    let compiled = compiled.context("cargo does not say what it has compiled")?;
    let unlisted = compiled.difference(&bill);
    let unused = bill.difference(compiled);
    let complaints = unlisted.map(|krate| format!("{krate} was compiled and is not in the bill of materials"));
    Ok(complaints
        .chain(unused.map(|krate| format!("{krate} is in the bill of materials and was not compiled")))
        .collect())
}

/// What is committed now. Who works for minutes asks once: another commit may come meanwhile.
///
/// # Errors
/// If git refuses.
pub fn head() -> Result<String> {
    Ok(run(git().args(["rev-parse", "HEAD"]))?.trim().to_owned())
}

/// Lays a commit into a folder, without git's own files.
///
/// # Errors
/// If git, tar or the disk refuses.
pub fn check_out(commit: &str, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    let archive = folder.with_extension("tar");
    run(git().args(["archive", "--output"]).arg(&archive).arg(commit))?;
    run(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(folder))?;
    Ok(())
}

/// Another home for cargo with everything of the first one, so that no download is needed.
fn mirror(home: &Path, other: &Path) -> Result<()> {
    fs::create_dir_all(other)?;
    for entry in fs::read_dir(home).with_context(|| format!("read {}", home.display()))? {
        let entry = entry?;
        symlink(entry.path(), other.join(entry.file_name()))?;
    }
    Ok(())
}

fn cargo_home() -> Result<PathBuf> {
    let given = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let usual = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo"));
    given.or_else(usual).context("neither CARGO_HOME nor HOME is set")
}

/// Where two programs differ first, with the text around it in both.
fn difference(one: &[u8], other: &[u8]) -> String {
    let at = one.iter().zip(other).take_while(|(a, b)| a == b).count();
    let bytes = one.iter().zip(other).filter(|(a, b)| a != b).count();
    let around = |bytes: &[u8]| {
        let window = &bytes[at.saturating_sub(40).min(bytes.len())..(at + 80).min(bytes.len())];
        window.escape_ascii().to_string()
    };
    format!(
        "{} and {} bytes long, {bytes} bytes differ, from {at:#x} on: `{}`, `{}`",
        one.len(),
        other.len(),
        around(one),
        around(other)
    )
}

fn contains(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|window| window == text)
}

fn hash(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let digest = Sha256::digest(bytes);
    digest.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn git() -> Command {
    let mut git = Command::new("git");
    git.current_dir(REPOSITORY);
    git
}

fn say(line: &str) {
    eprintln!("reproduce: {line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_programs_differ_where_the_first_byte_does() {
        let one = b"same /home/ada/kdbt same";
        let other = b"same /home/bob/kdbt same!";
        let said = difference(one, other);
        assert!(
            said.contains("24 and 25 bytes long, 3 bytes differ, from 0xb on"),
            "{said}"
        );
        assert!(
            said.contains("/home/ada/kdbt") && said.contains("/home/bob/kdbt"),
            "{said}"
        );
        assert!(difference(b"a", b"ab").contains("from 0x1 on"));
    }

    #[test]
    fn each_run_of_cargo_is_told_apart_by_its_end() {
        let messages = r#"{"reason":"compiler-artifact","package_id":"registry+https://x#serde@1.0.228"}
{"reason":"build-script-executed","package_id":"registry+https://x#libc@0.2.0"}
{"reason":"build-finished","success":true}
{"reason":"compiler-artifact","package_id":"path+file:///x/api#kdbt-api@0.1.0"}
{"reason":"build-finished","success":true}
0123  kdbt-broker"#;
        let runs = compiled(messages);
        let set = |name: &str| BTreeSet::from([name.to_owned()]);
        assert_eq!(runs, [set("serde@1.0.228"), set("kdbt-api@0.1.0")]);
    }
}
