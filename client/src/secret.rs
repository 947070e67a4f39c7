//! The secret of a lease, which never leaves this machine: a password for PostgreSQL, a private key for Snowflake.

use kdbt_api::credential::{Iterations, Password, PrivateKey, PublicKey, ScramVerifier};
use kdbt_api::lease::Engine;
use secrecy::SecretString;

use crate::exit::{Code, Failure, Outcome};
use crate::settings::rng;

/// What opens a lease.
#[derive(Debug)]
pub(crate) enum Secret {
    /// For PostgreSQL.
    Password(Password),
    /// For Snowflake.
    PrivateKey(PrivateKey),
}

/// What the broker is told of it.
#[derive(Debug, Clone)]
pub(crate) enum Known {
    /// Of a password.
    Verifier(ScramVerifier),
    /// Of a private key.
    PublicKey(PublicKey),
}

impl Secret {
    /// A fresh one. A key pair takes a moment of one core, so it is made beside the async threads.
    pub(crate) async fn make(engine: Engine, iterations: Iterations) -> Outcome<(Self, Known)> {
        match engine {
            Engine::Postgres => {
                let password = Password::generate(&mut rng());
                let verifier = password.verifier(iterations, &mut rng());
                Ok((Self::Password(password), Known::Verifier(verifier)))
            }
            Engine::Snowflake => {
                let failed = |why: String| Failure::new(Code::Failed, format!("cannot make a key pair: {why}"));
                let made = tokio::task::spawn_blocking(PrivateKey::generate).await;
                let made = made.map_err(|error| failed(error.to_string()))?;
                let (private, public) = made.map_err(|error| failed(error.to_string()))?;
                Ok((Self::PrivateKey(private), Known::PublicKey(public)))
            }
        }
    }

    /// The text that dbt gets.
    pub(crate) fn text(&self) -> &SecretString {
        match self {
            Self::Password(password) => password.secret(),
            Self::PrivateKey(key) => key.secret(),
        }
    }

    /// What it is called in JSON.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Password(_) => "password",
            Self::PrivateKey(_) => "private_key",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn signals_and_answers_are_served_while_a_key_is_made() {
        let mut made = std::pin::pin!(Secret::make(Engine::Snowflake, Iterations::One));
        let mut turns = 0_u64;
        loop {
            tokio::select! {
                biased;
                secret = &mut made => {
                    secret.unwrap();
                    break;
                }
                () = tokio::task::yield_now() => turns += 1,
            }
        }
        assert!(turns > 0, "nothing else ran on the async thread");
    }

    #[tokio::test]
    async fn a_secret_is_not_told_by_what_describes_it() {
        for engine in [Engine::Postgres, Engine::Snowflake] {
            let (secret, known) = Secret::make(engine, Iterations::One).await.unwrap();
            let said = format!("{secret:?} {known:?}");
            assert!(
                !said.contains(secrecy::ExposeSecret::expose_secret(secret.text())),
                "{}",
                secret.kind()
            );
        }
    }
}
