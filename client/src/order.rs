//! Getting a lease: the password is made here, the broker gets its verifier, and its answer is checked
//! again, because a lying broker must not reach into dbt.

use std::net::IpAddr;
use std::time::Duration;

use kdbt_api::credential::{OwnerProof, Password};
use kdbt_api::lease::{Connection, IssuedView, LeaseId, LeaseView, OrderRequest, PostgresConnection, SslMode};
use kdbt_api::name::{ProfileName, TargetName};
use kdbt_api::problem::ProblemCode;
use kdbt_api::profile::{self, SecretForm};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::broker::{Broker, CallError};
use crate::cli::Order;
use crate::exit::{Code, Failure, Outcome};
use crate::output::{clean, span};
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
    pub(crate) connection: PostgresConnection,
    /// The profile's name.
    pub(crate) profile: ProfileName,
    /// Shows that the lease is ours, where the token does not.
    pub(crate) proof: Option<OwnerProof>,
    password: Password,
}

impl Lease {
    /// The secret, for the places that hand it to its user.
    pub(crate) fn password(&self) -> &SecretString {
        self.password.secret()
    }

    /// What goes into an environment besides the secret: for a committed template, and for dbt's artifacts.
    pub(crate) fn variables(&self) -> Vec<(&'static str, String)> {
        let connection = &self.connection;
        vec![
            ("KDBT_HOST", connection.host.clone()),
            ("KDBT_PORT", connection.port.to_string()),
            ("KDBT_USER", connection.user.to_string()),
            ("KDBT_DBNAME", connection.database.to_string()),
            ("KDBT_SCHEMA", connection.schema.to_string()),
            ("DBT_ENV_CUSTOM_ENV_KDBT_LEASE", self.view.id.to_string()),
        ]
    }

    /// The dbt profile, with the secret in it or in a variable.
    pub(crate) fn render(&self, literal: bool, ca_file: Option<&str>) -> Outcome<SecretString> {
        let secret = if literal {
            SecretForm::Literal(self.password())
        } else {
            SecretForm::Variable
        };
        let connection = Connection::Postgres(self.connection.clone());
        profile::render(&self.profile, &self.target, &connection, secret, ca_file).map_err(|error| {
            Failure::new(
                Code::Failed,
                format!("this connection cannot be a dbt profile: {error}"),
            )
        })
    }
}

/// Orders a lease, waiting as long as the order says for room or a warehouse.
pub(crate) async fn order(broker: &Broker, target: TargetName, order: &Order, profile: ProfileName) -> Outcome<Lease> {
    let password = Password::generate(&mut rng());
    let verifier = password.verifier(broker.iterations()?, &mut rng());
    // A caller without a session shares its subject with every other run of the same client.
    let proof = match broker.claims().await?.sid {
        Some(_) => None,
        None => Some(OwnerProof::generate(&mut rng())),
    };
    let request = OrderRequest {
        target: target.clone(),
        ttl: order.ttl,
        rules: order.rules.clone(),
        reason: order.reason.clone(),
        verifier: Some(verifier),
        public_key: None,
        profile: Some(profile.clone()),
        owner_proof: proof.as_ref().map(OwnerProof::hash),
    };
    let issued = place(broker, &request, order.patience()).await?;
    let connection = match check(&issued, &target, &profile, broker.settings()) {
        Ok(connection) => connection.clone(),
        Err(failure) => {
            // Not to be used, so not to be left behind either; if this fails it ends by itself.
            let _ = broker.revoke(issued.lease.id, proof.as_ref()).await;
            return Err(failure);
        }
    };
    Ok(Lease {
        view: issued.lease,
        target,
        connection,
        profile,
        proof,
        password,
    })
}

/// Sends the order until there is an answer to stay with.
async fn place(broker: &Broker, request: &OrderRequest, patience: Duration) -> Outcome<IssuedView> {
    let key = crate::private::random_hex();
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
                        return Err(match failure.hint {
                            Some(_) => failure,
                            None => failure.hint("--wait 10m tries again for ten minutes"),
                        });
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
fn check<'a>(
    issued: &'a IssuedView,
    target: &TargetName,
    profile: &ProfileName,
    settings: &Settings,
) -> Outcome<&'a PostgresConnection> {
    let wrong = |what: String| Failure::new(Code::Failed, format!("the broker's answer is refused: {what}"));
    let Connection::Postgres(connection) = &issued.connection else {
        return Err(wrong("it is for Snowflake, and the order was not".into()));
    };
    if issued.lease.target.as_ref() != Some(target) || issued.lease.user != connection.user {
        return Err(wrong("it is for another target or user than it says".into()));
    }
    profile::render(profile, target, &issued.connection, SecretForm::Variable, None)
        .map_err(|error| wrong(error.to_string()))?;
    let weak = connection.sslmode != SslMode::VerifyFull;
    if weak && !is_local(&connection.host) && !settings.allow_insecure {
        return Err(wrong(format!(
            "sslmode `{}` would show the data, and maybe the secret, to the network",
            connection.sslmode.as_str()
        ))
        .hint("ask the broker's operator to set up TLS; --allow-insecure accepts it as it is"));
    }
    if let Some(pem) = &connection.ca_pem {
        let certificates = reqwest::Certificate::from_pem_bundle(pem.as_bytes());
        let good = certificates.is_ok_and(|found| !found.is_empty());
        if pem.len() > MAX_CA_BYTES || pem.contains("PRIVATE KEY") || !good {
            return Err(wrong("its certificate authority is no PEM certificate".into()));
        }
    }
    Ok(connection)
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
    crate::private::write_json(&path, &stored)
}

/// The proof of a lease that an earlier command took.
pub(crate) fn kept_proof(settings: &Settings, id: LeaseId) -> Outcome<Option<OwnerProof>> {
    let path = settings.state_file("proofs", &format!("{id}.json"))?;
    let stored: Option<StoredProof> = crate::private::read_json(&path)?;
    Ok(stored.map(|stored| OwnerProof::from_secret(stored.proof.into())))
}
