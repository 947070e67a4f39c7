//! `profile` and `env`: a lease that stays when the command ends.

use std::path::Path;

use kdbt_api::lease::Connection;
use kdbt_api::name::TargetName;
use kdbt_api::profile;
use secrecy::ExposeSecret as _;

use crate::broker::Broker;
use crate::cli::{Env, Profile, Shell};
use crate::exit::{Code, Failure, Outcome};
use crate::order::{self, Lease};
use crate::output::{Output, moment};
use crate::private;
use crate::run::dbt::Call;
use crate::settings::{Settings, now};

/// How our files begin; one that begins otherwise is not overwritten.
const HEADER: &str = "# Written by kdbt-client";

/// Takes a lease and hands its profile out.
pub(crate) async fn profile(settings: Settings, args: Profile) -> Outcome<()> {
    let call = Call::default();
    let name = call.profile(&args.project)?;
    let target = call.target(args.order.target.as_ref())?;
    if args.template {
        let target = target.map_or_else(|| "dev".parse::<TargetName>(), Ok);
        let target = target.map_err(|error| Failure::new(Code::Failed, format!("the default target: {error}")))?;
        let yaml = profile::template(&name, &target, args.engine.into())
            .map_err(|error| Failure::new(Code::Usage, error.to_string()))?;
        return settings.output.product(&yaml);
    }
    // Looked at before a lease is taken that could not be written.
    if let Some(folder) = &args.write {
        check_ours(&folder.join("profiles.yml"))?;
    }
    let broker = Broker::find(settings, false).await?;
    broker.log_in_if_needed().await?;
    let target = order::choose_target(&broker, target).await?;
    let lease = order::order(&broker, target, &args.order, name).await?;
    let settings = broker.settings();
    order::keep_proof(settings, &lease)?;
    if let Some(folder) = &args.write {
        write(&lease, folder)?;
    } else {
        let yaml = lease.render(true, stable_ca_file(settings, &lease)?.as_deref())?;
        if args.json {
            settings.output.json(&serde_json::json!({
                "lease": lease.view,
                "connection": lease.connection,
                (lease.secret.kind()): lease.secret.text().expose_secret(),
                "profiles_yml": yaml.expose_secret(),
            }))?;
        } else {
            settings.output.product(yaml.expose_secret())?;
        }
    }
    tell(settings.output, &lease);
    Ok(())
}

/// Takes a lease and prints it for a shell to read.
pub(crate) async fn env(settings: Settings, args: Env) -> Outcome<()> {
    let broker = Broker::find(settings, false).await?;
    broker.log_in_if_needed().await?;
    let name = Call::default().profile(&crate::cli::Project {
        profile: None,
        project_dir: None,
    })?;
    let target = order::choose_target(&broker, Call::default().target(args.order.target.as_ref())?).await?;
    let lease = order::order(&broker, target, &args.order, name).await?;
    let settings = broker.settings();
    order::keep_proof(settings, &lease)?;
    let mut variables = lease.variables();
    if let Connection::Postgres(connection) = &lease.connection {
        variables.push(("PGAPPNAME", format!("kdbt/{}", lease.view.id)));
        variables.push(("PGSSLMODE", connection.sslmode.as_str().to_owned()));
        variables.push(("PGREQUIREAUTH", "scram-sha-256".to_owned()));
    }
    if let Some(path) = stable_ca_file(settings, &lease)? {
        variables.push(("PGSSLROOTCERT", path));
    }
    variables.push((lease.secret_variable(), lease.secret.text().expose_secret().to_owned()));
    let lines: String = variables
        .iter()
        .map(|(name, value)| line(args.shell, name, value))
        .collect();
    settings.output.product(&lines)?;
    tell(settings.output, &lease);
    Ok(())
}

/// One assignment, quoted so that the shell takes the value as it is.
fn line(shell: Shell, name: &str, value: &str) -> String {
    match shell {
        Shell::Sh => format!("export {name}='{}'\n", value.replace('\'', r"'\''")),
        Shell::Fish => format!("set -gx {name} '{}'\n", value.replace('\\', r"\\").replace('\'', r"\'")),
        Shell::Powershell => format!("$env:{name} = '{}'\n", value.replace('\'', "''")),
    }
}

fn tell(output: Output, lease: &Lease) {
    let view = &lease.view;
    output.note(&format!(
        "{} on {} as {}, until {}",
        view.id,
        lease.target,
        view.user,
        moment(view.ends_at, now())
    ));
    output.note(&format!("kdbt-client revoke {} ends it sooner", view.id));
}

/// A place for the CA that is the same each time: its path is part of what dbt's parse cache hangs on.
fn stable_ca_file(settings: &Settings, lease: &Lease) -> Outcome<Option<String>> {
    let Some(pem) = lease.ca_pem() else {
        return Ok(None);
    };
    let path = settings.state_file("ca", &format!("{}.pem", crate::login::file_name(&[pem])))?;
    private::write(&path, pem.as_bytes())?;
    utf8(&path).map(Some)
}

fn utf8(path: &Path) -> Outcome<String> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| {
        Failure::new(
            Code::Usage,
            format!("`{}` is not UTF-8, as dbt needs it", path.display()),
        )
    })
}

/// Writes `profiles.yml`, and the CA beside it, for tools that read files only.
fn write(lease: &Lease, folder: &Path) -> Outcome<()> {
    private::create_folder(folder)?;
    let folder = std::path::absolute(folder).map_err(|error| Failure::file("find", folder, &error))?;
    let ca_file = match lease.ca_pem() {
        Some(pem) => {
            let path = folder.join("kdbt-ca.pem");
            private::write(&path, pem.as_bytes())?;
            Some(utf8(&path)?)
        }
        None => None,
    };
    let yaml = lease.render(true, ca_file.as_deref())?;
    let view = &lease.view;
    let text = format!(
        "{HEADER}: lease {}, ends at {} unless renewed.\n{}",
        view.id,
        view.ends_at,
        yaml.expose_secret()
    );
    private::write(&folder.join("profiles.yml"), text.as_bytes())
}

/// A profile that somebody else wrote is not ours to replace.
fn check_ours(path: &Path) -> Outcome<()> {
    match std::fs::read_to_string(path) {
        Ok(text) if text.starts_with(HEADER) => Ok(()),
        Ok(_) => Err(Failure::new(
            Code::Usage,
            format!("`{}` was not written by kdbt-client", path.display()),
        )
        .hint("choose another folder, and point DBT_PROFILES_DIR at it")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Failure::file("read", path, &error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_cannot_leave_its_quotes_in_any_shell() {
        let value = r"a'; rm -rf \'";
        assert_eq!(line(Shell::Sh, "X", value), "export X='a'\\''; rm -rf \\'\\'''\n");
        assert_eq!(line(Shell::Fish, "X", value), "set -gx X 'a\\'; rm -rf \\\\\\''\n");
        assert_eq!(line(Shell::Powershell, "X", value), "$env:X = 'a''; rm -rf \\'''\n");
    }
}
