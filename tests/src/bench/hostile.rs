//! How long others wait for a lease while one holder does its worst, in turn with how long they wait without it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio_postgres::Client;

use super::load::{Crowd, Load, verifier};
use super::report::{Report, millis, percentile};
use crate::stack::{DATABASE, Stack};

const CLIENTS: usize = 4;
const ROUNDS: usize = 3;
/// Of p99 with the holder at work, over p99 without.
const RATIO: f64 = 2.0;

pub(super) async fn measure(stack: &Stack, leases: usize, report: &mut Report) -> Result<()> {
    let verifier = verifier(1);
    let (mut quiet, mut beside) = (Load::default(), Load::default());
    // Slugs are registered, connections and plans are warm.
    Crowd::new(stack)?.ask(CLIENTS, 64, &verifier, "1h").await?;
    Crowd::new(stack)?.give_back(stack).await?;
    for _ in 0..ROUNDS {
        let crowd = Crowd::new(stack)?;
        quiet.add(crowd.ask(CLIENTS, leases, &verifier, "1h").await?);
        crowd.give_back(stack).await?;
        let crowd = Crowd::new(stack)?;
        let stop = AtomicBool::new(false);
        let asked = async {
            let load = crowd.ask(CLIENTS, leases, &verifier, "1h").await;
            stop.store(true, Ordering::Relaxed);
            load
        };
        let holder = Holder::new(stack).await?;
        let (load, worked) = tokio::join!(asked, holder.work(&stop));
        worked?;
        beside.add(load?);
        holder.give_back().await?;
        crowd.give_back(stack).await?;
    }
    let p = |load: &Load, share| millis(percentile(&load.latencies, share));
    let ratio = p(&beside, 0.99) / p(&quiet, 0.99);
    let major = stack.postgres.version().major();
    report.line(format!(
        "\nPostgreSQL {major}   {CLIENTS} clients, {leases} leases, {ROUNDS} rounds\n  alone: p50 {:.2} ms, p99 {:.2} ms;   beside a hostile holder: p50 {:.2} ms, p99 {:.2} ms",
        p(&quiet, 0.5),
        p(&quiet, 0.99),
        p(&beside, 0.5),
        p(&beside, 0.99),
    ));
    report.judge(
        ratio <= RATIO,
        &format!("PostgreSQL {major}: beside a hostile holder p99 is {ratio:.2} of p99 alone (at most {RATIO})"),
    );
    Ok(())
}

/// Somebody with a lease who holds what its end and its renewal need, fills the lock table as far as it lets others in,
/// and keeps the broker busy with all that.
struct Holder<'a> {
    stack: &'a Stack,
    http: reqwest::Client,
    token: String,
    lease: String,
    sessions: [Client; 3],
}

impl<'a> Holder<'a> {
    async fn new(stack: &'a Stack) -> Result<Self> {
        let http = reqwest::Client::builder().timeout(Duration::from_mins(1)).build()?;
        let token = stack.identity.played().token_for("ada");
        let answer = order(stack, &http, &token).await?;
        let text = |value: &Value| value.as_str().map(str::to_owned).context("a text is missing");
        let (user, password) = (text(&answer["lease"]["user"])?, text(&answer["secret"]["password"])?);
        let connect = || stack.postgres.connect_as(DATABASE, &user, &password);
        let sessions = [connect().await?, connect().await?, connect().await?];
        Ok(Self {
            stack,
            lease: text(&answer["lease"]["id"])?,
            http,
            token,
            sessions,
        })
    }

    async fn work(&self, stop: &AtomicBool) -> Result<()> {
        let [row, locks, names] = &self.sessions;
        let hold =
            "BEGIN; SET LOCAL ROLE NONE; ALTER ROLE current_user SET work_mem = '1MB'; SELECT pg_sleep(0.2); COMMIT";
        let fill = "SELECT count(pg_advisory_lock(g)) FROM generate_series(1, 2000) g; SELECT pg_sleep(0.05); SELECT pg_advisory_unlock_all()";
        let name = "BEGIN; ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO grp_raw_ro; NOTIFY kdbt; SELECT pg_sleep(0.02); ROLLBACK";
        let run = |session, sql| repeat(stop, async move || session_runs(session, sql).await);
        let renew = repeat(stop, async || {
            let renew = self.request(&format!("/v1/leases/{}/renew", self.lease));
            renew.json(&json!({ "ttl": "1h" })).send().await?;
            Ok(())
        });
        let churn = repeat(stop, async || {
            let answer = order(self.stack, &self.http, &self.token).await?;
            let id = answer["lease"]["id"].as_str().context("no id")?;
            let url = format!("{}/v1/leases/{id}", self.stack.broker.url());
            self.http.delete(url).bearer_auth(&self.token).send().await?;
            Ok(())
        });
        tokio::try_join!(run(row, hold), run(locks, fill), run(names, name), renew, churn)?;
        Ok(())
    }

    async fn give_back(&self) -> Result<()> {
        let all = self.request("/v1/revocations").json(&json!({ "mine": true }));
        all.send().await?.error_for_status()?;
        Ok(())
    }

    fn request(&self, path: &str) -> reqwest::RequestBuilder {
        let url = format!("{}{path}", self.stack.broker.url());
        self.http.post(url).bearer_auth(&self.token)
    }
}

async fn order(stack: &Stack, http: &reqwest::Client, token: &str) -> Result<Value> {
    let order = http.post(format!("{}/v1/leases", stack.broker.url()));
    let order = order.bearer_auth(token).json(&json!({ "target": "team", "ttl": "1h" }));
    Ok(order.send().await?.error_for_status()?.json().await?)
}

async fn session_runs(session: &Client, sql: &str) -> Result<()> {
    Ok(session.batch_execute(sql).await?)
}

/// Until told to stop, with a breath between.
async fn repeat(stop: &AtomicBool, mut act: impl AsyncFnMut() -> Result<()>) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        act().await?;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}
