//! People at work: they order, renew, give back, log in, or walk away, and go on when the broker is gone for a moment.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use kdbt_api::credential::{Iterations, Password};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::caller::{Answer, Caller, Held};
use crate::issuer::Issuer;
use crate::leaks::Secrets;
use crate::postgres::Postgres;
use crate::stack::{DATABASE, Stack};

/// How many people there are.
const PEOPLE: usize = 8;

/// A load that runs until it is stopped.
pub struct Load {
    clients: JoinSet<()>,
    stop: CancellationToken,
    shared: Arc<Shared>,
}

/// What a load came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Leases that were handed out.
    pub leases: u32,
    /// Orders that were refused, by the problem's code.
    pub refused: BTreeMap<String, u32>,
    /// Requests of any kind that nobody answered.
    pub unanswered: u32,
    /// Renewals that were granted.
    pub renewed: u32,
    /// Leases given back.
    pub revoked: u32,
    /// Logins with what was handed out.
    pub logins: u32,
}

struct Shared {
    tokens: Mutex<Vec<String>>,
    tally: Mutex<Tally>,
    secrets: Mutex<Secrets>,
}

impl Load {
    /// Starts everybody; the seed decides what each does, not when.
    pub fn start(stack: &Stack, seed: u64) -> Result<Self> {
        let shared = Arc::new(Shared {
            tokens: Mutex::default(),
            tally: Mutex::default(),
            secrets: Mutex::default(),
        });
        let mut load = Self {
            clients: JoinSet::new(),
            stop: CancellationToken::new(),
            shared,
        };
        load.give_tokens(stack.identity.played());
        for number in 0..PEOPLE {
            let client = Client {
                number,
                caller: Caller::new(stack.broker.url(), String::new())?,
                postgres: Postgres::clone(&stack.postgres),
                shared: load.shared.clone(),
                rng: StdRng::seed_from_u64(seed.wrapping_mul(1000).wrapping_add(number as u64)),
                session: None,
            };
            load.clients.spawn(client.run(load.stop.clone()));
        }
        Ok(load)
    }

    /// Gives everybody a fresh token: one lives for five minutes.
    pub fn give_tokens(&mut self, issuer: &Issuer) {
        let token = |number: usize| {
            let name = format!("load{number}");
            let token = issuer.forge("ada").claim("sub", format!("sub-{name}"));
            token.claim("preferred_username", name).token()
        };
        let tokens: Vec<String> = (0..PEOPLE).map(token).collect();
        let mut secrets = self.shared.secrets.lock().unwrap_or_else(PoisonError::into_inner);
        for token in &tokens {
            secrets.add_token(token);
        }
        *self.shared.tokens.lock().unwrap_or_else(PoisonError::into_inner) = tokens;
    }

    /// So far.
    pub fn tally(&self) -> Tally {
        self.shared.tally.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Everybody finishes what they are at; what it came to, and all the secrets that there were.
    pub async fn stop(mut self) -> (Tally, Secrets) {
        self.stop.cancel();
        while self.clients.join_next().await.is_some() {}
        let secrets = std::mem::take(&mut *self.shared.secrets.lock().unwrap_or_else(PoisonError::into_inner));
        (self.tally(), secrets)
    }
}

struct Client {
    number: usize,
    caller: Caller,
    postgres: Postgres,
    shared: Arc<Shared>,
    rng: StdRng,
    /// One that is left open until the next: its user's end has to end it.
    session: Option<tokio_postgres::Client>,
}

impl Client {
    async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let token = self.shared.tokens.lock().unwrap_or_else(PoisonError::into_inner)[self.number].clone();
            self.caller.token = token;
            if !self.one_lease().await {
                // Nobody is there, or nothing is issued for a moment.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            tokio::time::sleep(Duration::from_millis(self.rng.random_range(0..100))).await;
        }
    }

    /// A lease from its order to what its holder does with it. False: there was none.
    async fn one_lease(&mut self) -> bool {
        let order = self.order();
        let Some(answer) = self.told(self.caller.order(&order).await) else {
            return false;
        };
        let Ok(held) = answer.held() else {
            let code = answer.body["code"].as_str().unwrap_or("no JSON").to_owned();
            self.count(|tally| *tally.refused.entry(code).or_default() += 1);
            return false;
        };
        self.count(|tally| tally.leases += 1);
        self.secret(&held.password);
        match self.rng.random_range(0..10) {
            0..4 => {}
            4..7 => {
                let answer = self.told(self.caller.revoke(&held.id).await);
                self.count(|tally| tally.revoked += u32::from(answer.is_some_and(|answer| answer.status < 300)));
            }
            7..9 => {
                let answer = self.told(self.caller.renew(&held.id, "4s").await);
                self.count(|tally| tally.renewed += u32::from(answer.is_some_and(|answer| answer.status < 300)));
            }
            _ if !held.password.is_empty() => self.log_in(&held).await,
            _ => {}
        }
        true
    }

    /// Half bring a verifier, half leave the secret to the broker; ends come within seconds.
    fn order(&mut self) -> Value {
        let ttl = format!("{}s", self.rng.random_range(1..=4));
        let target = ["team", "dev"][self.rng.random_range(0..2)];
        if self.rng.random_bool(0.5) {
            return json!({ "target": target, "ttl": ttl });
        }
        let password = Password::generate(&mut rand::rng());
        let verifier = password.verifier(Iterations::One, &mut rand::rng()).to_postgres();
        self.secret(password.secret().expose_secret());
        // Behind the mechanism and the count of iterations, which are no secret.
        self.secret(verifier.rsplit('$').next().unwrap_or_default());
        json!({ "target": target, "ttl": ttl, "verifier": verifier })
    }

    /// Opens a session, with something of its own in it that has to be cleaned up.
    async fn log_in(&mut self, held: &Held) {
        let connected = self.postgres.connect_as(DATABASE, &held.user, &held.password).await;
        let Ok(session) = connected else { return };
        if session
            .batch_execute("SET ROLE NONE; SELECT lo_create(0)")
            .await
            .is_ok()
        {
            self.count(|tally| tally.logins += 1);
        }
        self.session = Some(session);
    }

    fn told(&self, answer: reqwest::Result<Answer>) -> Option<Answer> {
        if answer.is_err() {
            self.count(|tally| tally.unanswered += 1);
        }
        answer.ok()
    }

    fn count(&self, add: impl FnOnce(&mut Tally)) {
        add(&mut self.shared.tally.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn secret(&self, text: &str) {
        self.shared
            .secrets
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .add(text);
    }
}
