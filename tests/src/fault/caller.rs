//! The API as its callers use it while it may die under them: no answer is an outcome like any other.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::check;
use crate::stack::{DATABASE, Stack};

/// Somebody with a token.
#[derive(Debug, Clone)]
pub struct Caller {
    http: reqwest::Client,
    url: String,
    /// What they show.
    pub token: String,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The JSON, or null.
    pub body: Value,
}

/// A lease with its secret.
#[derive(Debug, Clone)]
pub struct Held {
    /// Its id.
    pub id: String,
    /// Its user on the server.
    pub user: String,
    /// The password, if the broker made it.
    pub password: String,
}

impl Caller {
    /// With this token, at this broker.
    pub fn new(url: String, token: String) -> Result<Self> {
        // A connection of a broker that was killed must not be tried again.
        let http = reqwest::Client::builder()
            .pool_max_idle_per_host(0)
            .timeout(Duration::from_secs(40));
        Ok(Self {
            http: http.build()?,
            url,
            token,
        })
    }

    /// A person of the played realm.
    pub fn person(stack: &Stack, name: &str) -> Result<Self> {
        Self::new(stack.broker.url(), stack.identity.played().token_for(name))
    }

    /// Sends a request; an error is that nobody answered.
    pub async fn post(&self, path: &str, body: &Value) -> reqwest::Result<Answer> {
        self.send(self.http.post(format!("{}{path}", self.url)).json(body))
            .await
    }

    /// Looks at something.
    pub async fn get(&self, path: &str) -> reqwest::Result<Answer> {
        self.send(self.http.get(format!("{}{path}", self.url))).await
    }

    /// Asks for a lease.
    pub async fn order(&self, body: &Value) -> reqwest::Result<Answer> {
        self.post("/v1/leases", body).await
    }

    /// Asks for a lease that the broker makes the password of, and must get it.
    pub async fn take(&self, target: &str, ttl: &str) -> Result<Held> {
        self.order(&json!({ "target": target, "ttl": ttl })).await?.held()
    }

    /// Gives a lease back.
    pub async fn revoke(&self, id: &str) -> reqwest::Result<Answer> {
        self.send(self.http.delete(format!("{}/v1/leases/{id}", self.url)))
            .await
    }

    /// Asks for a later end.
    pub async fn renew(&self, id: &str, ttl: &str) -> reqwest::Result<Answer> {
        self.post(&format!("/v1/leases/{id}/renew"), &json!({ "ttl": ttl }))
            .await
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> reqwest::Result<Answer> {
        let answer = request.bearer_auth(&self.token).send().await?;
        Ok(Answer {
            status: answer.status().as_u16(),
            body: serde_json::from_str(&answer.text().await?).unwrap_or_default(),
        })
    }
}

impl Answer {
    /// The lease in it.
    pub fn held(&self) -> Result<Held> {
        ensure!(matches!(self.status, 200 | 201), "no lease: {self:?}");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(Held {
            id: text(&self.body["lease"]["id"]),
            user: text(&self.body["lease"]["user"]),
            password: text(&self.body["secret"]["password"]),
        })
    }
}

impl Held {
    /// Logs in as its user.
    pub async fn connect(&self, stack: &Stack) -> Result<tokio_postgres::Client> {
        let connected = stack.postgres.connect_as(DATABASE, &self.user, &self.password).await;
        connected.with_context(|| format!("log in as {}", self.user))
    }
}

/// An admin ends every lease.
pub async fn revoke_all(stack: &Stack) -> Result<()> {
    let admin = Caller::person(stack, "adm")?;
    for target in ["team", "dev"] {
        let answer = admin.post("/v1/revocations", &json!({ "target": target })).await?;
        ensure!(answer.status == 200, "an admin could not end the leases: {answer:?}");
    }
    // Those that were adopted have no target.
    for (id, lease) in check::leases(stack)? {
        if lease.state == "active" {
            let answer = admin.revoke(&id).await?;
            ensure!(answer.status < 300, "an admin could not end {id}: {answer:?}");
        }
    }
    Ok(())
}
