//! What to try next: a shell for each person, with everything set, to copy from.

use std::fs;

use anyhow::Result;

use super::people::Builder;
use super::screen::Screen;
use crate::broker::Broker;
use crate::client::Workstation;
use crate::identity::IdentityProvider;

/// What a story leaves to be tried.
pub(super) struct Invitation {
    pub(super) ada: Builder,
    pub(super) grace: Workstation,
    /// The target that Ada builds in.
    pub(super) target: &'static str,
    /// More for people to try.
    pub(super) people: Vec<String>,
    /// More for the operator to try.
    pub(super) operator: Vec<String>,
}

impl Invitation {
    /// Writes the shells' settings and says how to use them.
    pub(super) fn show(&self, broker: &Broker, identity: &IdentityProvider, screen: &Screen) -> Result<()> {
        let tool = crate::binaries::broker_bin().display().to_string();
        let config = broker.config_file().display().to_string();
        screen.scene("It stays up until Ctrl-C. In another terminal:");
        for (name, machine) in [("ada", &self.ada.machine), ("grace", &self.grace)] {
            screen.lines([format!(". {}   # be {name}", shell_of(machine)?)]);
        }
        let target = self.target;
        screen.lines([
            &format!("cd {}", self.ada.project.path().display()),
            "kdbt-client targets",
            &format!("kdbt-client exec --target {target} -- dbt build"),
            &format!(
                "kdbt-client profile --target {target}        # what dbt gets; the lease stays until you revoke it"
            ),
        ]);
        screen.lines(&self.people);
        screen.lines([
            "kdbt-client leases",
            "kdbt-client revoke --all",
            "kdbt-client login --no-open              # as anyone: ada, ben, grace, eve, nobody",
        ]);
        screen.say(&format!("\n  Everybody's password is {}", identity.people_password()));
        screen.say("\n  As the operator:");
        screen.lines([
            format!("{tool} doctor --config {config}"),
            format!("{tool} audit show --config {config}"),
            format!("curl -s {}/metrics", broker.management_url()),
            format!("tail -f {}", broker.log_file().display()),
        ]);
        screen.lines(&self.operator);
        Ok(())
    }
}

/// The file that makes a shell this person's.
fn shell_of(machine: &Workstation) -> Result<String> {
    let file = machine.home().join("shell");
    let export = |(name, value): &(String, String)| format!("export {name}='{}'\n", value.replace('\'', r"'\''"));
    let exports: Vec<String> = machine.environment().iter().map(export).collect();
    fs::write(&file, exports.concat())?;
    Ok(file.display().to_string())
}
