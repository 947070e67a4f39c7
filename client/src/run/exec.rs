//! `exec` and `psql`: a lease before the command, its end after it, whatever happens between.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use kdbt_api::lease::{Connection, Engine, LeaseStatus};
use kdbt_api::name::{ProfileName, RuleId, TargetName};
use kdbt_api::profile;
use secrecy::ExposeSecret as _;
use tokio::process::Command;
use tokio::sync::mpsc::UnboundedReceiver;

use super::child;
use super::dbt::{Call, Needs};
use super::signals::{self, Received};
use crate::broker::Broker;
use crate::cli::{Exec, Order, Psql};
use crate::exit::{Code, Failure, Outcome};
use crate::order::{self, Lease};
use crate::output::{Output, clean, moment};
use crate::private::{self, TemporaryFolder};
use crate::settings::{Settings, now, text_variable};

/// How long the end of a lease may hold up the end of its command; after that it is the reaper's.
const REVOKE_PATIENCE: Duration = Duration::from_secs(2);

/// How long a command that needs no lease waits to hear of its engine.
const STUB_PATIENCE: Duration = Duration::from_secs(2);

/// Runs a command as the policy allows; its exit code is ours.
pub(crate) async fn exec(settings: Settings, args: Exec) -> Outcome<u8> {
    let call = Call::read(&args.command);
    if call.has_profiles_dir {
        settings
            .output
            .note("the command names its own --profiles-dir; the variables of the lease apply all the same");
    }
    let mut command = child::command(&args.command, args.keep_env)?;
    let needs = call.needs();
    if needs == Needs::Nothing {
        return run_without_lease(&mut command).await;
    }
    let profile = call.profile(&args.project)?;
    let target = call.target(args.order.target.as_ref())?;
    if is_inside_lease(&settings, &profile, target.as_ref(), &args.order.rules)? {
        return run_without_lease(&mut command).await;
    }
    if needs == Needs::Stub {
        let folder = TemporaryFolder::new()?;
        let stub = stub(settings, &profile, target.as_ref()).await?;
        private::create(&folder.path().join("profiles.yml"), stub.as_bytes())?;
        point_dbt_at(&mut command, &folder);
        for engine in [Engine::Postgres, Engine::Snowflake] {
            command.env(profile::secret_variable(engine), "no-lease");
        }
        return run_without_lease(&mut command).await;
    }
    let output = settings.output;
    let (broker, mut signals) = prepare(settings).await?;
    let lease = match take(&broker, target, &args.order, profile, &mut signals).await? {
        Taken::Lease(lease) => lease,
        Taken::Signal(code) => return Ok(code),
    };
    let started = async {
        let folder = TemporaryFolder::new()?;
        // The CA goes by variable: its path is new each time, and in the profile it would void dbt's cache.
        let yaml = lease.render(false, None)?;
        private::create(&folder.path().join("profiles.yml"), yaml.expose_secret().as_bytes())?;
        remember(broker.settings(), &lease, yaml.expose_secret())?;
        point_dbt_at(&mut command, &folder);
        fill(&mut command, &lease, &folder)?;
        command.env("KDBT_LEASE_BROKER", broker.url.as_str());
        command.env("KDBT_LEASE_RULES", rules_of(&args.order.rules));
        if let Some(subject) = broker.claims().await?.sub {
            command.env("DBT_ENV_CUSTOM_ENV_KDBT_SUBJECT", subject);
        }
        Ok(folder)
    };
    let result = match started.await {
        Ok(folder) => run(&mut command, &broker, &lease, &args.order, &mut signals, folder).await,
        Err(failure) => Err(failure),
    };
    if matches!(result, Ok(1..)) {
        say_if_ended(&broker, &lease, output).await;
    }
    revoke(&broker, &lease).await;
    result
}

/// psql as the lease's user.
pub(crate) async fn psql(settings: Settings, args: Psql) -> Outcome<u8> {
    let words: Vec<OsString> = std::iter::once(OsString::from("psql")).chain(args.args).collect();
    let mut command = child::command(&words, false)?;
    let (broker, mut signals) = prepare(settings).await?;
    let profile: ProfileName = "kdbt"
        .parse()
        .map_err(|error| Failure::new(Code::Failed, format!("the default profile: {error}")))?;
    let lease = match take(&broker, args.order.target.clone(), &args.order, profile, &mut signals).await? {
        Taken::Lease(lease) => lease,
        Taken::Signal(code) => return Ok(code),
    };
    let Connection::Postgres(connection) = lease.connection.clone() else {
        revoke(&broker, &lease).await;
        let failure = Failure::new(
            Code::Usage,
            format!("`{}` is on Snowflake, which psql cannot reach", lease.target),
        );
        return Err(failure.hint(
            "`kdbt-client exec -- dbt debug` shows whether a lease works, `kdbt-client exec -- dbt show --inline '…'` \
             runs a query",
        ));
    };
    let started = TemporaryFolder::new().and_then(|folder| {
        fill(&mut command, &lease, &folder)?;
        command.env("PGHOST", &connection.host);
        command.env("PGPORT", connection.port.to_string());
        command.env("PGUSER", connection.user.as_str());
        command.env("PGDATABASE", connection.database.as_str());
        command.env("PGPASSWORD", lease.secret.text().expose_secret());
        Ok(folder)
    });
    let result = match started {
        Ok(folder) => run(&mut command, &broker, &lease, &args.order, &mut signals, folder).await,
        Err(failure) => Err(failure),
    };
    revoke(&broker, &lease).await;
    result
}

/// What came first: the lease, or a signal that ends us.
enum Taken {
    Lease(Box<Lease>),
    Signal(u8),
}

/// The broker and a login, and from here on signals no longer end us at once.
async fn prepare(settings: Settings) -> Outcome<(Arc<Broker>, UnboundedReceiver<Received>)> {
    let broker = Broker::find(settings, false).await?;
    broker.log_in_if_needed().await?;
    Ok((Arc::new(broker), signals::catch()?))
}

/// Takes the lease. A caller who goes away before the answer leaves none: the broker ends what it cannot deliver.
async fn take(
    broker: &Broker,
    target: Option<TargetName>,
    wanted: &Order,
    profile: ProfileName,
    signals: &mut UnboundedReceiver<Received>,
) -> Outcome<Taken> {
    let lease = async {
        let target = order::choose_target(broker, target).await?;
        order::order(broker, target, wanted, profile).await
    };
    let lease = tokio::select! {
        lease = lease => lease?,
        Some(signal) = signals.recv() => return Ok(Taken::Signal(u8::try_from(128 + signal.number).unwrap_or(u8::MAX))),
    };
    let view = &lease.view;
    let until = moment(view.ends_at, now());
    broker.settings().output.note(&format!(
        "{} on {} as {}, until {until}",
        view.id, lease.target, view.user
    ));
    Ok(Taken::Lease(Box::new(lease)))
}

/// Runs the command to its end; its folder goes before the answer comes.
async fn run(
    command: &mut Command,
    broker: &Arc<Broker>,
    lease: &Lease,
    order: &Order,
    signals: &mut UnboundedReceiver<Received>,
    folder: TemporaryFolder,
) -> Outcome<u8> {
    let mut running = child::spawn(command)?;
    let result = child::wait_with_lease(&mut running, broker, lease, order.ttl, signals).await;
    drop(folder);
    result
}

async fn run_without_lease(command: &mut Command) -> Outcome<u8> {
    let mut signals = signals::catch()?;
    let mut running = child::spawn(command)?;
    child::wait(&mut running, &mut signals).await
}

/// Both names: a `.env` file could bring the newer one in, which beats the older.
fn point_dbt_at(command: &mut Command, folder: &TemporaryFolder) {
    command.env("DBT_PROFILES_DIR", folder.path());
    command.env("DBT_ENGINE_PROFILES_DIR", folder.path());
}

/// What a child gets of a lease. Never a target or a profile by dbt's own variables: they void its parse cache.
fn fill(command: &mut Command, lease: &Lease, folder: &TemporaryFolder) -> Outcome<()> {
    let ca_file = match lease.ca_pem() {
        Some(pem) => {
            let path = folder.path().join("ca.pem");
            private::create(&path, pem.as_bytes())?;
            Some(path.into_os_string())
        }
        None => None,
    };
    if let Connection::Postgres(connection) = &lease.connection {
        child::secure(command, lease, connection, ca_file.as_deref());
    }
    command.env(lease.secret_variable(), lease.secret.text().expose_secret());
    command.envs(lease.variables());
    // An `exec` inside this one joins instead of leasing again.
    command.env("KDBT_LEASE_ID", lease.view.id.to_string());
    command.env("KDBT_LEASE_TARGET", lease.target.as_str());
    command.env("KDBT_LEASE_PROFILE", lease.profile.as_str());
    Ok(())
}

/// Whether this runs inside an `exec` whose lease is the one that is wanted. What is not named may be any.
fn is_inside_lease(
    settings: &Settings,
    profile: &ProfileName,
    target: Option<&TargetName>,
    rules: &[RuleId],
) -> Outcome<bool> {
    let is = |name: &str, wanted: &str| -> Outcome<bool> { Ok(text_variable(name)?.as_deref() == Some(wanted)) };
    let broker = settings.named_broker()?;
    Ok(text_variable("KDBT_LEASE_ID")?.is_some()
        && is("KDBT_LEASE_PROFILE", profile.as_str())?
        && match target {
            Some(target) => is("KDBT_LEASE_TARGET", target.as_str())?,
            None => text_variable("KDBT_LEASE_TARGET")?.is_some(),
        }
        && (rules.is_empty() || is("KDBT_LEASE_RULES", &rules_of(rules))?)
        && match broker {
            Some(broker) => is("KDBT_LEASE_BROKER", broker.as_str())?,
            None => true,
        })
}

/// The rules that an order names, in one spelling.
fn rules_of(rules: &[RuleId]) -> String {
    let rules: BTreeSet<&str> = rules.iter().map(AsRef::as_ref).collect();
    rules.into_iter().collect::<Vec<_>>().join(",")
}

/// Keeps the profile (without a secret) for commands that need none but share dbt's parse cache.
fn remember(settings: &Settings, lease: &Lease, yaml: &str) -> Outcome<()> {
    for target in [lease.target.as_str(), ""] {
        private::write_json(&memory(settings, &lease.profile, target)?, &yaml)?;
    }
    private::write_json(&engine_memory(settings, &lease.profile)?, &lease.connection.engine())
}

/// The profile of the last lease, else one with placeholders: of the engine that this profile had a lease on or that the
/// broker names, because dbt wants the adapter of whatever the profile names.
async fn stub(settings: Settings, profile: &ProfileName, target: Option<&TargetName>) -> Outcome<String> {
    let path = memory(&settings, profile, target.map_or("", TargetName::as_str))?;
    if let Some(yaml) = private::read_json(&path)? {
        return Ok(yaml);
    }
    let output = settings.output;
    let remembered = private::read_json(&engine_memory(&settings, profile)?).unwrap_or_default();
    let engine = match remembered {
        Some(engine) => Some(engine),
        None => announced_engine(settings, target).await,
    };
    if engine.is_none() {
        output.note(&format!(
            "profile `{profile}` had no lease here yet: dbt gets placeholders for PostgreSQL. On Snowflake, run \
             `kdbt-client exec -- dbt debug` once before"
        ));
    }
    let default = || "dev".parse::<TargetName>();
    let target = target.cloned().map_or_else(default, Ok);
    let target = target.map_err(|error| Failure::new(Code::Failed, format!("the default target: {error}")))?;
    profile::template(profile, &target, engine.unwrap_or(Engine::Postgres))
        .map_err(|error| Failure::new(Code::Usage, error.to_string()))
}

/// The engine of the target, or of all targets if none is named, as the broker says: if there is a login already and an
/// answer soon, because what needs no lease must not wait for one.
async fn announced_engine(settings: Settings, target: Option<&TargetName>) -> Option<Engine> {
    let targets = async { Broker::find(settings, false).await.ok()?.targets().await.ok() };
    let known = tokio::time::timeout(STUB_PATIENCE, targets).await.ok()??.targets;
    let mut engines = known
        .iter()
        .filter(|view| target.is_none_or(|target| *target == view.target))
        .map(|view| view.engine);
    let first = engines.next()?;
    engines.all(|other| other == first).then_some(first)
}

fn memory(settings: &Settings, profile: &ProfileName, target: &str) -> Outcome<std::path::PathBuf> {
    let name = crate::login::file_name(&[profile.as_str(), target]);
    settings.state_file("profiles", &format!("{name}.json"))
}

fn engine_memory(settings: &Settings, profile: &ProfileName) -> Outcome<std::path::PathBuf> {
    let name = crate::login::file_name(&[profile.as_str()]);
    settings.state_file("profiles", &format!("{name}.engine.json"))
}

/// Databases never say why a login is refused, so a failed run is told if its lease is why.
async fn say_if_ended(broker: &Broker, lease: &Lease, output: Output) {
    let view = tokio::time::timeout(REVOKE_PATIENCE, broker.lease(lease.view.id, lease.proof.as_ref())).await;
    let Ok(Ok(view)) = view else { return };
    if !matches!(view.state, LeaseStatus::Provisioning | LeaseStatus::Active) {
        let at = moment(view.ended_at.unwrap_or(view.ends_at), now());
        let reason = view.end_reason.as_deref().unwrap_or("expired");
        output.warn(&format!("{} ended during the run, at {at}: {}", view.id, clean(reason)));
    }
}

async fn revoke(broker: &Broker, lease: &Lease) {
    let ended = tokio::time::timeout(REVOKE_PATIENCE, broker.revoke(lease.view.id, lease.proof.as_ref())).await;
    let why = match ended {
        Ok(Ok(_)) => return,
        Ok(Err(error)) if error.code() == Some(kdbt_api::problem::ProblemCode::LeaseNotActive) => return,
        Ok(Err(error)) => Failure::from(error).to_string(),
        Err(_) => "the broker takes too long".into(),
    };
    let output = broker.settings().output;
    output.warn(&format!(
        "{} could not be ended now and ends by itself: {why}",
        lease.view.id
    ));
}
