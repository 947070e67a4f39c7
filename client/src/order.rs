//! Getting a lease: the secret is made here, the broker gets its verifier or public key, and its answer is checked
//! again, because a lying broker must not reach into dbt.

use std::net::IpAddr;
use std::time::Duration;

use kdbt_api::credential::OwnerProof;
use kdbt_api::lease::{
    Connection, Engine, IssuedView, LeaseId, LeaseView, OrderRequest, PostgresConnection, SnowflakeConnection, SslMode,
};
use kdbt_api::name::{ProfileName, SnowflakeUsername, TargetName};
use kdbt_api::problem::ProblemCode;
use kdbt_api::profile::{self, SecretForm};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::broker::{Broker, CallError};
use crate::cli::Order;
use crate::exit::{Code, Failure, Outcome};
use crate::output::{clean, span};
use crate::private;
use crate::secret::{Known, Secret};
use crate::settings::{Settings, rng};

/// How often an order is sent again when its answer was lost.
const RESENDS: u32 = 2;

/// The largest certificate authority file that is taken.
const MAX_CA_BYTES: usize = 256 * 1024;

/// A lease and the secret that opens it.
#[derive(Debug)]
pub(crate) struct Lease {
    /// What the broker says of it.
    pub(crate) view: LeaseView,
    /// The target that was asked for.
    pub(crate) target: TargetName,
    /// How to connect; checked.
    pub(crate) connection: Connection,
    /// The profile's name.
    pub(crate) profile: ProfileName,
    /// Shows that the lease is ours, where the token does not.
    pub(crate) proof: Option<OwnerProof>,
    pub(crate) secret: Secret,
}

impl Lease {
    /// The variable that dbt reads the secret from.
    pub(crate) fn secret_variable(&self) -> &'static str {
        profile::secret_variable(self.connection.engine())
    }

    /// What goes into an environment besides the secret: for a committed template, and for dbt's artifacts.
    pub(crate) fn variables(&self) -> Vec<(&'static str, String)> {
        let mut variables = match &self.connection {
            Connection::Postgres(connection) => vec![
                ("KDBT_HOST", connection.host.clone()),
                ("KDBT_PORT", connection.port.to_string()),
                ("KDBT_USER", connection.user.to_string()),
                ("KDBT_DBNAME", connection.database.to_string()),
                ("KDBT_SCHEMA", connection.schema.to_string()),
            ],
            Connection::Snowflake(connection) => {
                let warehouse = connection.warehouse.as_ref();
                vec![
                    ("KDBT_ACCOUNT", connection.account.clone()),
                    ("KDBT_USER", connection.user.to_string()),
                    ("KDBT_ROLE", connection.role.to_string()),
                    ("KDBT_DBNAME", connection.database.to_string()),
                    ("KDBT_WAREHOUSE", warehouse.map(ToString::to_string).unwrap_or_default()),
                    ("KDBT_SCHEMA", connection.schema.to_string()),
                ]
            }
        };
        variables.push(("DBT_ENV_CUSTOM_ENV_KDBT_LEASE", self.view.id.to_string()));
        variables
    }

    /// The certificate authority that came with the connection.
    pub(crate) fn ca_pem(&self) -> Option<&str> {
        match &self.connection {
            Connection::Postgres(connection) => connection.ca_pem.as_deref(),
            Connection::Snowflake(_) => None,
        }
    }

    /// The dbt profile, with the secret in it or in a variable.
    pub(crate) fn render(&self, literal: bool, ca_file: Option<&str>) -> Outcome<SecretString> {
        let secret = if literal {
            SecretForm::Literal(self.secret.text())
        } else {
            SecretForm::Variable
        };
        profile::render(&self.profile, &self.target, &self.connection, secret, ca_file).map_err(|error| {
            Failure::new(
                Code::Failed,
                format!("this connection cannot be a dbt profile: {error}"),
            )
        })
    }
}

/// Orders a lease, waiting as long as the order says for room or a warehouse.
pub(crate) async fn order(broker: &Broker, target: TargetName, order: &Order, profile: ProfileName) -> Outcome<Lease> {
    let settings = broker.settings();
    // A caller without a session shares its subject with every other run of the same client.
    let proof = match broker.claims().await?.sid {
        Some(_) => None,
        None => Some(OwnerProof::generate(&mut rng())),
    };
    let memory = engine_file(settings, broker, &target)?;
    // A guess, which costs a round trip where it is wrong: a memory that cannot be read is none.
    let remembered: Option<Engine> = private::read_json(&memory).unwrap_or_default();
    let mut engine = remembered.unwrap_or(Engine::Postgres);
    let mut corrected = false;
    let (issued, secret) = loop {
        let (secret, known) = Secret::make(engine, broker.iterations()?).await?;
        let (verifier, public_key) = match known {
            Known::Verifier(verifier) => (Some(verifier), None),
            Known::PublicKey(key) => (None, Some(key)),
        };
        let request = OrderRequest {
            target: target.clone(),
            ttl: order.ttl,
            rules: order.rules.clone(),
            reason: order.reason.clone(),
            verifier,
            public_key,
            profile: Some(profile.clone()),
            owner_proof: proof.as_ref().map(OwnerProof::hash),
        };
        match place(broker, &request, order.patience()).await {
            Ok(issued) => break (issued, secret),
            // Nothing was booked. What the broker says is remembered, so that the next order is right at once.
            Err(NotPlaced::OtherEngine(other)) if other != engine && !corrected => {
                engine = other;
                corrected = true;
                private::write_json(&memory, &engine)?;
            }
            Err(NotPlaced::OtherEngine(_)) => {
                return Err(Failure::new(
                    Code::Failed,
                    "the broker contradicts itself on the target's engine",
                ));
            }
            Err(NotPlaced::Failed(failure)) => return Err(failure),
        }
    };
    if let Err(failure) = check(&issued, engine, &target, &profile, settings) {
        // Not to be used, so not to be left behind either; if this fails it ends by itself.
        let _ = broker.revoke(issued.lease.id, proof.as_ref()).await;
        return Err(failure);
    }
    Ok(Lease {
        view: issued.lease,
        target,
        connection: issued.connection,
        profile,
        proof,
        secret,
    })
}

/// Where the engine of a target is remembered.
fn engine_file(settings: &Settings, broker: &Broker, target: &TargetName) -> Outcome<std::path::PathBuf> {
    let name = crate::login::file_name(&[broker.url.as_str(), target.as_str()]);
    settings.state_file("engines", &format!("{name}.json"))
}

/// Why there is no lease.
enum NotPlaced {
    /// The target is on this engine, which takes another kind of credential.
    OtherEngine(Engine),
    Failed(Failure),
}

impl From<CallError> for NotPlaced {
    fn from(error: CallError) -> Self {
        if let CallError::Refused { problem, .. } = &error
            && error.code() == Some(ProblemCode::WrongCredential)
        {
            let engines = [Engine::Postgres, Engine::Snowflake];
            let named = engines
                .into_iter()
                .find(|engine| problem.reason.as_deref() == Some(engine.as_str()));
            if let Some(engine) = named {
                return Self::OtherEngine(engine);
            }
        }
        Self::Failed(error.into())
    }
}

/// Sends the order until there is an answer to stay with.
async fn place(broker: &Broker, request: &OrderRequest, patience: Duration) -> Result<IssuedView, NotPlaced> {
    let key = private::random_hex();
    let give_up = Instant::now() + patience;
    let mut resends = 0;
    loop {
        let error = match broker.order(request, &key).await {
            Ok(issued) => return Ok(issued),
            Err(error) => error,
        };
        let pause = match &error {
            CallError::Failed { sent: true, .. } if resends < RESENDS => {
                resends += 1;
                Duration::from_millis(500)
            }
            CallError::Failed { .. } => return Err(error.into()),
            CallError::Refused { retry_after, .. } => {
                let pause = retry_after
                    .unwrap_or(Duration::from_secs(5))
                    .clamp(Duration::from_secs(1), Duration::from_mins(1));
                match error.code() {
                    Some(ProblemCode::RequestInProgress) if resends < 30 => resends += 1,
                    Some(code) if may_pass(code) && Instant::now() + pause <= give_up => {}
                    Some(code) if may_pass(code) && patience.is_zero() => {
                        let failure = Failure::from(error);
                        return Err(NotPlaced::Failed(match failure.hint {
                            Some(_) => failure,
                            None => failure.hint("--wait 10m tries again for ten minutes"),
                        }));
                    }
                    _ => return Err(error.into()),
                }
                pause
            }
        };
        if let CallError::Refused { problem, .. } = &error {
            let text = problem.detail.as_deref().unwrap_or(&problem.title);
            broker
                .settings()
                .output
                .note(&format!("{}; trying again in {}", clean(text), span(pause)));
        }
        tokio::time::sleep(pause).await;
    }
}

/// Refusals that time may cure.
pub(crate) fn may_pass(code: ProblemCode) -> bool {
    use ProblemCode as P;
    [
        P::LimitReached,
        P::WarehouseDown,
        P::IssuingStopped,
        P::PolicyNotLoaded,
        P::StoreDown,
        P::Unavailable,
    ]
    .contains(&code)
}

/// Holds the answer to what was asked and to what dbt may be told (names were checked as they were read).
fn check(
    issued: &IssuedView,
    engine: Engine,
    target: &TargetName,
    profile: &ProfileName,
    settings: &Settings,
) -> Outcome<()> {
    if issued.lease.target.as_ref() != Some(target) {
        return Err(wrong("it is for another target than was asked for"));
    }
    if issued.connection.engine() != engine {
        return Err(wrong("it is for another engine than the credential that was sent"));
    }
    profile::render(profile, target, &issued.connection, SecretForm::Variable, None)
        .map_err(|error| wrong(&error.to_string()))?;
    match &issued.connection {
        Connection::Postgres(connection) if issued.lease.user == connection.user => {
            check_postgres(connection, settings)
        }
        Connection::Snowflake(connection) if SnowflakeUsername::from(&issued.lease.user) == connection.user => {
            check_snowflake(connection, settings)
        }
        Connection::Postgres(_) | Connection::Snowflake(_) => Err(wrong("it is for another user than it says")),
    }
}

fn wrong(what: &str) -> Failure {
    Failure::new(Code::Failed, format!("the broker's answer is refused: {what}"))
}

fn check_postgres(connection: &PostgresConnection, settings: &Settings) -> Outcome<()> {
    let weak = connection.sslmode != SslMode::VerifyFull;
    if weak && !is_local(&connection.host) && !settings.allow_insecure {
        return Err(wrong(&format!(
            "sslmode `{}` would show the data, and maybe the secret, to the network",
            connection.sslmode.as_str()
        ))
        .hint("ask the broker's operator to set up TLS; --allow-insecure accepts it as it is"));
    }
    if let Some(pem) = &connection.ca_pem {
        let certificates = reqwest::Certificate::from_pem_bundle(pem.as_bytes());
        let good = certificates.is_ok_and(|found| !found.is_empty());
        if pem.len() > MAX_CA_BYTES || pem.contains("PRIVATE KEY") || !good {
            return Err(wrong("its certificate authority is no PEM certificate"));
        }
    }
    Ok(())
}

fn check_snowflake(connection: &SnowflakeConnection, settings: &Settings) -> Outcome<()> {
    let plain = connection.address.as_ref().filter(|address| address.plain);
    match plain {
        Some(address) if !is_local(&address.host) && !settings.allow_insecure => {
            Err(wrong("plain http would show the data to the network")
                .hint("ask the broker's operator for an https address; --allow-insecure accepts it as it is"))
        }
        Some(_) | None => Ok(()),
    }
}

fn is_local(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The target to ask for: what was named, else the only one there is.
pub(crate) async fn choose_target(broker: &Broker, named: Option<TargetName>) -> Outcome<TargetName> {
    if let Some(target) = named {
        return Ok(target);
    }
    let list = broker.targets().await?;
    let mut targets = list.targets.into_iter().map(|view| view.target);
    match (targets.next(), targets.next()) {
        (Some(only), None) => Ok(only),
        (None, _) => Err(Failure::new(Code::Denied, "the policy gives you no target")
            .hint("`kdbt-client whoami` shows who you are to the broker; ask a DBA for a role")),
        (Some(first), Some(second)) => {
            let all: Vec<String> = [first, second]
                .into_iter()
                .chain(targets)
                .map(|target| target.to_string())
                .collect();
            Err(Failure::new(Code::Usage, "more than one target is open to you")
                .hint(format!("--target, one of: {}", all.join(", "))))
        }
    }
}

/// An owner proof that outlives its command, so that a later one can renew and revoke.
#[derive(Serialize, Deserialize)]
struct StoredProof {
    proof: String,
}

/// Keeps the proof of a lease that stays when this command ends.
pub(crate) fn keep_proof(settings: &Settings, lease: &Lease) -> Outcome<()> {
    let Some(proof) = &lease.proof else { return Ok(()) };
    let stored = StoredProof {
        proof: proof.secret().expose_secret().to_owned(),
    };
    let path = settings.state_file("proofs", &format!("{}.json", lease.view.id))?;
    private::write_json(&path, &stored)
}

/// The proof of a lease that an earlier command took.
pub(crate) fn kept_proof(settings: &Settings, id: LeaseId) -> Outcome<Option<OwnerProof>> {
    let path = settings.state_file("proofs", &format!("{id}.json"))?;
    let stored: Option<StoredProof> = private::read_json(&path)?;
    Ok(stored.map(|stored| OwnerProof::from_secret(stored.proof.into())))
}
