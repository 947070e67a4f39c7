//! A lease on Snowflake beside the two calls that it cannot do without, on the simulated account; every call takes 100 ms.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures_util::future::try_join_all;
use kdbt_api::credential::PrivateKey;
use serde_json::{Value, json};

use super::report::{Report, millis, percentile};
use crate::lake::{Lake, LakeOptions, login_token};

/// What the network and the account take for a call.
const PER_CALL: Duration = Duration::from_millis(100);
/// Leases of one client, each beside two bare calls.
const ALONE: usize = 40;
/// Orders at the same moment.
const AT_ONCE: usize = 64;
/// Users that end together.
const ENDING: usize = 500;
/// At one client, over the two calls.
const MORE_MILLIS: f64 = 10.0;
/// The last of those at once, in leases of one client.
const TIMES: f64 = 2.0;
/// For all users that end together.
const ENDED_WITHIN: Duration = Duration::from_secs(15);

pub(super) async fn measure(report: &mut Report) -> Result<()> {
    let options = LakeOptions {
        rest: "limits: { leases_per_person: 20000, leases_per_rule: 20000, leases_per_target: 20000 }\n".to_owned(),
        ..LakeOptions::default()
    };
    let mut lake = Lake::ready(&options).await?;
    lake.broker.start().await?;
    let people = People::of(&lake)?;
    // Slugs are registered, connections are warm.
    people.order(0..AT_ONCE).await?;
    people.give_back().await?;
    lake.simulator.latency(PER_CALL);

    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for turn in 0..ALONE {
        bare.push(people.two_calls().await?);
        ours.extend(people.order(turn..=turn).await?);
    }
    ours.sort_unstable();
    bare.sort_unstable();
    let p50 = |sorted: &[Duration]| millis(percentile(sorted, 0.5));
    let (alone, calls) = (p50(&ours), p50(&bare));
    let worst = millis(percentile(&ours, 1.0));
    report.line(format!(
        "\nSnowflake, simulated, {} ms per call\n  one client: p50 {alone:.1} ms, worst {worst:.1} ms;   two bare calls: p50 {calls:.1} ms",
        PER_CALL.as_millis()
    ));
    let more = alone - calls;
    report.judge(
        more <= MORE_MILLIS,
        &format!("Snowflake: p50 is two bare calls + {more:.2} ms at 1 client (at most {MORE_MILLIS})"),
    );
    people.give_back().await?;

    let mut together = people.order(0..AT_ONCE).await?;
    together.sort_unstable();
    let last = millis(percentile(&together, 1.0));
    report.line(format!(
        "  {AT_ONCE} at once: first {:.0} ms, p50 {:.0} ms, last {last:.0} ms",
        millis(percentile(&together, 0.0)),
        p50(&together)
    ));
    let times = last / alone;
    report.judge(
        times <= TIMES,
        &format!(
            "Snowflake: the last of {AT_ONCE} at once took {times:.2} times as long as one alone (at most {TIMES})"
        ),
    );

    for batch in (AT_ONCE..ENDING).step_by(AT_ONCE) {
        people.order(batch..ENDING.min(batch + AT_ONCE)).await?;
    }
    ensure!(
        lake.lease_users().len() == ENDING,
        "{} users live",
        lake.lease_users().len()
    );
    let took = people.give_back().await?;
    report.line(format!("  {ENDING} users ended in {:.1} s", took.as_secs_f64()));
    report.judge(
        took < ENDED_WITHIN,
        &format!(
            "Snowflake: {ENDING} users ended in {:.1} s (under {})",
            took.as_secs_f64(),
            ENDED_WITHIN.as_secs()
        ),
    );
    Ok(())
}

/// Those who ask, each with a token of their own.
struct People<'a> {
    lake: &'a Lake,
    http: reqwest::Client,
    tokens: Vec<String>,
    /// What every order brings. The same key for all: an account cannot tell, and making it is the client's work.
    order: Value,
}

impl<'a> People<'a> {
    fn of(lake: &'a Lake) -> Result<Self> {
        let person = |number: usize| {
            let name = format!("bench{number}");
            let token = lake.identity.played().forge("ada").claim("sub", format!("sub-{name}"));
            token.claim("preferred_username", name).token()
        };
        let (_, public) = PrivateKey::generate()?;
        Ok(Self {
            lake,
            http: reqwest::Client::builder().user_agent("bench/1").no_proxy().build()?,
            tokens: (0..AT_ONCE).map(person).collect(),
            order: json!({"target": "lake", "public_key": public.to_snowflake()}),
        })
    }

    /// All of them at the same moment; how long each waited.
    async fn order(&self, turns: impl IntoIterator<Item = usize>) -> Result<Vec<Duration>> {
        let one = |turn: usize| async move {
            let asked = Instant::now();
            let token = &self.tokens[turn % self.tokens.len()];
            let (status, answer) = self.lake.call_with(token, "POST", "leases", &self.order).await?;
            ensure!(status == 201, "no lease: {status}: {answer}");
            Ok(asked.elapsed())
        };
        try_join_all(turns.into_iter().map(one)).await
    }

    /// What any driver would take: two statements, one after the other, on a connection that stands.
    async fn two_calls(&self) -> Result<Duration> {
        let token = login_token(&self.lake.simulator, "KDBT_SVC", &self.lake.key)?;
        let url = format!("{}/api/v2/statements", self.lake.simulator.url());
        let asked = Instant::now();
        for _ in 0..2 {
            let call = self
                .http
                .post(&url)
                .bearer_auth(&token)
                .header("accept", "application/json");
            let statement = json!({"statement": "SELECT CURRENT_ROLE()", "role": "KDBT_BROKER"});
            call.json(&statement).send().await?.error_for_status()?.bytes().await?;
        }
        Ok(asked.elapsed())
    }

    /// Everybody gives back what they hold; how long it took until all users were gone.
    async fn give_back(&self) -> Result<Duration> {
        let started = Instant::now();
        let all = json!({"mine": true});
        let each = self
            .tokens
            .iter()
            .map(|token| self.lake.call_with(token, "POST", "revocations", &all));
        for (status, answer) in try_join_all(each).await? {
            ensure!(status < 300, "not given back: {status}: {answer}");
        }
        self.lake
            .until("all users are gone", async |lake| lake.lease_users().is_empty())
            .await?;
        Ok(started.elapsed())
    }
}
