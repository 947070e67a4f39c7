//! What to try next: a shell for each person, with everything set, to copy from.

use std::fs;

use anyhow::Result;

use super::scenes::People;
use super::screen::Screen;
use crate::stack::Stack;

/// Writes the shells' settings and says how to use them.
pub(super) fn invite(stack: &Stack, people: &People, screen: &Screen) -> Result<()> {
    let broker = &stack.broker;
    let tool = crate::binaries::broker_bin().display().to_string();
    let config = broker.config_file().display().to_string();
    screen.scene("It stays up until Ctrl-C. In another terminal:");
    let mut sources = Vec::new();
    for (name, machine) in [("ada", &people.ada.machine), ("grace", &people.grace)] {
        let file = machine.home().join("shell");
        let export = |(name, value): &(String, String)| format!("export {name}='{}'\n", value.replace('\'', r"'\''"));
        let exports = machine
            .environment()
            .iter()
            .map(export)
            .collect::<Vec<String>>()
            .concat();
        fs::write(&file, exports)?;
        sources.push(format!(". {}   # be {name}", file.display()));
    }
    screen.lines(&sources);
    screen.lines([
        &format!("cd {}", people.ada.project.path().display()),
        "kdbt-client targets",
        "kdbt-client exec --target dev -- dbt build",
        "kdbt-client psql --target team",
        "kdbt-client profile --target team        # what dbt gets; the lease stays until you revoke it",
        "kdbt-client leases",
        "kdbt-client revoke --all",
        "kdbt-client login --no-open              # as anyone: ada, ben, grace, eve, nobody",
    ]);
    screen.say(&format!(
        "\n  Everybody's password is {}",
        stack.identity.people_password()
    ));
    screen.say("\n  As the operator:");
    screen.lines([
        format!("{tool} doctor --config {config}"),
        format!("{tool} audit show --config {config}"),
        format!("curl -s {}/metrics", broker.management_url()),
        format!("tail -f {}", broker.log_file().display()),
        format!("psql '{}'", stack.postgres.superuser_url(crate::stack::DATABASE)),
    ]);
    Ok(())
}
