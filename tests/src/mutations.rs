//! `cargo verify mutations`: takes one control of the broker away at a time, and wants a test to fall for each. A test
//! that stays green without what it is there for proves nothing.
//!
//! The places stand here as texts of the sources; a test in every run holds them to the sources, so that none goes stale.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::reproduce::{check_out, head};

mod controls;

pub use self::controls::CONTROLS;

/// A control, and what it is taken away by.
#[derive(Debug, Clone, Copy)]
pub struct Control {
    /// What is not done any more.
    pub without: &'static str,
    /// Where, from the top of the repository.
    pub file: &'static str,
    /// What stands there, once.
    pub find: &'static str,
    /// What it becomes.
    pub replace: &'static str,
    /// The end-to-end test that has to fall, by its path or the end of it.
    pub falls: &'static str,
}

/// Longer than any of the tests takes, also where it fails by waiting for what never comes.
const PATIENCE: Duration = Duration::from_mins(5);

/// What came of one.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// The test fell, as it should.
    Fell,
    /// It passed: it does not see what is missing.
    Stands,
    /// It went on for longer than [`PATIENCE`]: a control is missed, and nothing says which.
    Hangs,
    /// No test is called so.
    NoTest,
}

/// Builds what is committed without each of the chosen controls, in a checkout of its own, and runs the test that has to fall.
/// Some two minutes each on two cores. True: all fell.
///
/// # Errors
/// If something does not build, or git or a disk refuses.
pub fn mutations(chosen: &str, variables: &[(&'static str, String)]) -> Result<bool> {
    let room = Room::new()?;
    let controls: Vec<&Control> = CONTROLS.iter().filter(|control| control.is_meant(chosen)).collect();
    ensure!(
        !controls.is_empty(),
        "no control has {chosen:?} in its name, file or test"
    );
    say("building as it is");
    room.build()?;
    let mut well = true;
    for (number, control) in controls.iter().enumerate() {
        let started = Instant::now();
        let source = room.source.join(control.file);
        let whole = fs::read_to_string(&source).with_context(|| format!("read {}", source.display()))?;
        fs::write(&source, control.taken_from(&whole)?)?;
        let outcome = room.build().and_then(|()| room.run(control.falls, variables));
        fs::write(&source, whole)?;
        let outcome = outcome.with_context(|| format!("without: {}", control.without))?;
        well &= outcome == Outcome::Fell;
        let said = match outcome {
            Outcome::Fell => "falls",
            Outcome::Stands => "STANDS",
            Outcome::Hangs => "HANGS",
            Outcome::NoTest => "IS NOT THERE",
        };
        say(&format!(
            "{} of {}: {}: {} {said} ({:.0} s)",
            number + 1,
            controls.len(),
            control.without,
            control.falls,
            started.elapsed().as_secs_f32()
        ));
    }
    Ok(well)
}

impl Control {
    fn is_meant(&self, chosen: &str) -> bool {
        [self.without, self.file, self.falls]
            .iter()
            .any(|text| text.contains(chosen))
    }

    /// The source without it.
    ///
    /// # Errors
    /// If the place is not there, or there twice.
    pub fn taken_from(&self, source: &str) -> Result<String> {
        let places = source.matches(self.find).count();
        ensure!(
            places == 1,
            "{}: {:?} stands there {places} times",
            self.file,
            self.find
        );
        Ok(source.replace(self.find, self.replace))
    }
}

/// The checkout that is broken, beside the build of the tests that break it.
struct Room {
    source: PathBuf,
    target: PathBuf,
}

impl Room {
    fn new() -> Result<Self> {
        let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/mutations");
        fs::create_dir_all(&target)?;
        let target = target.canonicalize()?;
        let source = target.join("source");
        if source.exists() {
            fs::remove_dir_all(&source)?;
        }
        check_out(&head()?, &source)?;
        Ok(Self { source, target })
    }

    fn cargo(&self, arguments: &[&str]) -> Command {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo
            .args(arguments)
            .current_dir(&self.source)
            .env("CARGO_TARGET_DIR", &self.target)
            .stdin(Stdio::null());
        cargo
    }

    fn build(&self) -> Result<()> {
        for arguments in [
            ["build", "--quiet", "--workspace", "--bins"].as_slice(),
            &["test", "--quiet", "--workspace", "--test", "all", "--no-run"],
        ] {
            let status = self.cargo(arguments).status().context("run cargo")?;
            ensure!(status.success(), "it does not build, see above");
        }
        Ok(())
    }

    fn run(&self, test: &str, variables: &[(&'static str, String)]) -> Result<Outcome> {
        let output = self.target.join("output");
        let mut cargo = self.cargo(&["test", "--workspace", "--test", "all", "--", test]);
        cargo.envs(variables.iter().map(|(name, value)| (name, value)));
        let both = fs::File::create(&output)?;
        let mut child = cargo.stdout(both.try_clone()?).stderr(both).spawn()?;
        let started = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if started.elapsed() > PATIENCE {
                child.kill()?;
                child.wait()?;
                return Ok(Outcome::Hangs);
            }
            std::thread::sleep(Duration::from_millis(200));
        };
        Ok(outcome(status.success(), &fs::read_to_string(&output)?))
    }
}

/// What cargo's exit and the closing line of its tests say.
fn outcome(success: bool, output: &str) -> Outcome {
    let closing = output
        .lines()
        .rfind(|line| line.starts_with("test result:"))
        .unwrap_or_default();
    if closing.contains(" 0 passed; 0 failed;") || closing.is_empty() {
        Outcome::NoTest
    } else if success {
        Outcome::Stands
    } else {
        Outcome::Fell
    }
}

fn say(line: &str) {
    eprintln!("mutations: {line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_control_stands_where_it_is_taken_away() {
        let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for control in CONTROLS {
            let source = fs::read_to_string(top.join(control.file)).expect(control.file);
            let broken = control.taken_from(&source).unwrap();
            assert_ne!(broken, source, "{}", control.without);
        }
    }

    #[test]
    fn only_a_test_that_ran_and_failed_has_fallen() {
        let closing =
            |passed, failed| format!("running 1 test\ntest result: x. {passed} passed; {failed} failed; 0 ignored\n");
        assert_eq!(outcome(false, &closing(0, 1)), Outcome::Fell);
        assert_eq!(outcome(true, &closing(1, 0)), Outcome::Stands);
        assert_eq!(outcome(true, &closing(0, 0)), Outcome::NoTest);
        assert_eq!(outcome(false, "error: no test target named `all`"), Outcome::NoTest);
    }
}
