//! People who ask for leases over HTTP, as fast as the broker answers.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kdbt_api::credential::{Iterations, Password, ScramVerifier};
use serde_json::{Value, json};

use crate::stack::Stack;

/// How many persons there are. More would be more slugs, and no more work per lease.
const PEOPLE: usize = 64;

/// Everybody, with fresh tokens. Loads of less than the tokens' five minutes are one crowd's.
pub(super) struct Crowd {
    http: reqwest::Client,
    url: String,
    tokens: Vec<String>,
}

/// What a load came to.
#[derive(Debug, Default)]
pub(super) struct Load {
    /// From the first request to the last answer.
    pub(super) took: Duration,
    /// Of each request, sorted.
    pub(super) latencies: Vec<Duration>,
}

impl Crowd {
    /// Sixty-four of them.
    pub(super) fn new(stack: &Stack) -> Result<Self> {
        let issuer = stack.identity.played();
        let person = |number: usize| {
            let name = format!("bench{number}");
            let token = issuer.forge("ada").claim("sub", format!("sub-{name}"));
            token.claim("preferred_username", name).token()
        };
        Self::of(stack, (0..PEOPLE).map(person).collect())
    }

    /// Whoever these tokens are of.
    pub(super) fn of(stack: &Stack, tokens: Vec<String>) -> Result<Self> {
        Ok(Self {
            http: reqwest::Client::builder().timeout(Duration::from_mins(1)).build()?,
            url: stack.broker.url(),
            tokens,
        })
    }

    /// `clients` ask for `leases` together, each for the next as soon as it has the last one.
    pub(super) async fn ask(&self, clients: usize, leases: usize, verifier: &ScramVerifier, ttl: &str) -> Result<Load> {
        let body = json!({ "target": "team", "ttl": ttl, "verifier": verifier.to_postgres() });
        let started = Instant::now();
        let one = |client: usize| {
            let body = &body;
            async move {
                let mut latencies = Vec::new();
                for turn in (client..leases).step_by(clients) {
                    latencies.push(self.order(turn % self.tokens.len(), body).await?);
                }
                Ok::<_, anyhow::Error>(latencies)
            }
        };
        let all = futures_util::future::try_join_all((0..clients).map(one)).await?;
        let took = started.elapsed();
        let mut latencies: Vec<Duration> = all.into_iter().flatten().collect();
        latencies.sort_unstable();
        Ok(Load { took, latencies })
    }

    async fn order(&self, person: usize, body: &Value) -> Result<Duration> {
        let asked = Instant::now();
        let answer = self.http.post(format!("{}/v1/leases", self.url));
        let answer = answer.bearer_auth(&self.tokens[person]).json(body).send().await?;
        let (status, text) = (answer.status(), answer.text().await?);
        let took = asked.elapsed();
        ensure!(status == 201, "no lease: {status}: {text}");
        Ok(took)
    }

    /// Everybody gives back what they hold; how long it took until all users were gone.
    pub(super) async fn give_back(&self, stack: &Stack) -> Result<Duration> {
        let started = Instant::now();
        for token in &self.tokens {
            let answer = self.http.post(format!("{}/v1/revocations", self.url));
            let answer = answer.bearer_auth(token).json(&json!({ "mine": true })).send().await?;
            answer.error_for_status().context("give leases back")?;
        }
        while !stack.lease_users().await?.is_empty() {
            ensure!(
                started.elapsed() < Duration::from_mins(2),
                "the broker does not end all users"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(started.elapsed())
    }
}

/// A verifier of this many iterations. The same for all leases: the server cannot tell, and the clients' own work is not measured.
pub(super) fn verifier(iterations: u32) -> ScramVerifier {
    let iterations = if iterations == 1 {
        Iterations::One
    } else {
        Iterations::Standard
    };
    let mut rng = rand::rng();
    Password::generate(&mut rng).verifier(iterations, &mut rng)
}
