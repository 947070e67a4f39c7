//! A simulated Snowflake account with a real broker on it, and people who ask that broker for leases.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair;
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use kdbt_api::credential::PrivateKey;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

use crate::broker::{Broker, BrokerOptions};
use crate::identity::IdentityProvider;
use crate::process::Finished;
use crate::snowflake::Simulator;
use crate::snowflake::account::Account;
use crate::snowflake::token::fingerprint;

/// One rule: everybody builds as the role `OWNER`, behind the wrapper `KDBT_ENT_OWNER`.
const POLICY: &str = r#"kdbt: 1
targets:
  lake: { server: sf, engine: snowflake, database: ANALYTICS, tier: dev, warehouses: [BI] }
rules:
  - id: builders
    why: Everybody of the test builds.
    everyone: true
    targets: [lake]
    create_as: { snowflake: { grant_role: KDBT_ENT_OWNER, session_role: OWNER } }
    ttl: { min: 1s, default: 1h, max: 2h }
    profile: { threads: 4, schema: "dbt_{{username}}", warehouse: BI }
"#;

/// What a lake is made of.
#[derive(Debug, Clone)]
pub struct LakeOptions {
    /// The account as the broker's configuration has it.
    pub account: String,
    /// The name that the account itself goes by.
    pub name: String,
    /// More entries of the account in the configuration, with their indentation.
    pub more: String,
    /// More lines of the configuration.
    pub rest: String,
    /// The broker's key: a fresh one, if none is given.
    pub key: Option<String>,
    /// `RUST_LOG`.
    pub log: String,
}

impl Default for LakeOptions {
    fn default() -> Self {
        Self {
            account: "myorg-myacct".to_owned(),
            name: "MYORG-MYACCT".to_owned(),
            more: String::new(),
            rest: String::new(),
            key: None,
            log: "info".to_owned(),
        }
    }
}

/// The account, the broker, and where people log in.
pub struct Lake {
    /// The broker. It does not run before it is started.
    pub broker: Broker,
    /// Where people log in.
    pub identity: IdentityProvider,
    /// The account.
    pub simulator: Simulator,
    /// The broker's own key: base64 of PKCS#8.
    pub key: String,
    http: reqwest::Client,
}

impl Lake {
    /// With the account that the broker's own bootstrap has made ready, and a broker that runs.
    pub async fn start() -> Result<Self> {
        let mut lake = Self::ready(&LakeOptions::default()).await?;
        lake.broker.start().await?;
        Ok(lake)
    }

    /// The same before the broker runs.
    pub async fn ready(options: &LakeOptions) -> Result<Self> {
        let lake = Self::bare(options).await?;
        let script = lake
            .finished(&["doctor", "lake", "--bootstrap"])
            .await?
            .expect(0)?
            .stdout;
        lake.as_dba(&script)?;
        Ok(lake)
    }

    /// An account that knows no broker, and the configuration of one.
    pub async fn bare(options: &LakeOptions) -> Result<Self> {
        let simulator = Simulator::start(&options.name).await?;
        let policies = tempfile::tempdir()?;
        std::fs::write(policies.path().join("policy.yaml"), POLICY)?;
        let key = match &options.key {
            Some(key) => key.clone(),
            None => PrivateKey::generate()?.0.secret().expose_secret().to_owned(),
        };
        let mut broker = BrokerOptions::new(policies.path());
        broker.servers = format!(
            "  sf:\n    engine: snowflake\n    connect:\n      account: {}\n      user: KDBT_SVC\n      role: KDBT_BROKER\n      \
             private_key: {{ file: sf.p8 }}\n      base_url: \"{}\"\n{}",
            options.account,
            simulator.url(),
            options.more
        );
        broker.files = vec![("sf.p8".to_owned(), key.clone())];
        broker.more.clone_from(&options.rest);
        broker.log.clone_from(&options.log);
        let identity = IdentityProvider::play()?;
        let lake = Self {
            broker: Broker::prepare_alone(&broker, &identity.issuer())?,
            identity,
            simulator,
            key,
            http: reqwest::Client::builder().timeout(Duration::from_mins(1)).build()?,
        };
        lake.as_dba("USE ROLE SECURITYADMIN; CREATE ROLE OWNER")?;
        Ok(lake)
    }

    /// Runs a script in a worksheet of the account.
    pub fn as_dba(&self, script: &str) -> Result<()> {
        let run = self.simulator.run_script(script);
        run.map_err(|(statement, refusal)| anyhow::anyhow!("{statement}: {} {}", refusal.code, refusal.message))
    }

    /// `kdbt-broker <arguments>` until it has ended.
    pub async fn finished(&self, arguments: &[&str]) -> Result<Finished> {
        Finished::of(self.broker.command(arguments)?).await
    }

    /// A call as this person: status and body.
    pub async fn call(&self, who: &str, method: &str, path: &str, body: &Value) -> Result<(u16, Value)> {
        let token = self.identity.played().token_for(who);
        self.call_with(&token, method, path, body).await
    }

    /// A call with this token: status and body.
    pub async fn call_with(&self, token: &str, method: &str, path: &str, body: &Value) -> Result<(u16, Value)> {
        let url = format!("{}/v1/{path}", self.broker.url());
        let request = self.http.request(method.parse()?, url).bearer_auth(token).json(body);
        let answer = request.send().await?;
        let status = answer.status().as_u16();
        Ok((status, answer.json().await.unwrap_or_default()))
    }

    /// Ada asks for a lease, with more in her order.
    pub async fn order(&self, more: &Value) -> Result<(u16, Value)> {
        let mut order = json!({"target": "lake"});
        if let (Some(order), Some(more)) = (order.as_object_mut(), more.as_object()) {
            order.extend(more.clone());
        }
        self.call("ada", "POST", "leases", &order).await
    }

    /// The lease that Ada is given, as the broker shows it.
    pub async fn lease(&self) -> Result<Value> {
        match self.order(&json!({})).await? {
            (201, issued) => Ok(issued["lease"].clone()),
            (status, problem) => bail!("{status}: {problem}\n{}", self.broker.log_tail(30)),
        }
    }

    /// Ada gives a lease back: the status.
    pub async fn give_back(&self, lease: &Value) -> Result<u16> {
        let id = lease["id"].as_str().context("a lease without an id")?;
        let (status, _) = self
            .call("ada", "DELETE", &format!("leases/{id}"), &Value::Null)
            .await?;
        Ok(status)
    }

    /// The users of leases that the account has.
    pub fn lease_users(&self) -> Vec<String> {
        let names = self.simulator.look(Account::user_names);
        let of_leases = |name: &String| name.starts_with("KDBT_") && name != "KDBT_SVC";
        names.into_iter().filter(of_leases).collect()
    }

    /// What readiness says of the account: whether leases are issued there, and if not, why.
    pub async fn server(&self) -> Option<(bool, String)> {
        let answer = self
            .http
            .get(format!("{}/readyz", self.broker.management_url()))
            .send()
            .await
            .ok()?;
        let detail: Value = answer.json().await.ok()?;
        let checks = detail["checks"].as_array()?;
        let server = checks.iter().find(|check| check["name"] == "server sf")?;
        Some((server["ok"] == true, server["detail"].as_str()?.to_owned()))
    }

    /// Waits for something, for half a minute at most.
    pub async fn until(&self, what: &str, mut holds: impl AsyncFnMut(&Self) -> bool) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !holds(self).await {
            if Instant::now() > deadline {
                bail!("it is not so that {what}. The log:\n{}", self.broker.log_tail(40));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Waits until this stands in the broker's log, which writes `\"` in some of its texts.
    pub async fn until_log_says(&self, text: &str) -> Result<()> {
        self.until(&format!("the log says {text:?}"), async |lake| {
            lake.broker
                .log()
                .is_ok_and(|log| log.replace("\\\"", "\"").contains(text))
        })
        .await
    }
}

/// What a user of the account logs in with now, as the connectors sign it, from its private key: base64 of PKCS#8.
pub fn login_token(simulator: &Simulator, user: &str, key: &str) -> Result<String> {
    let unusable = |what: &'static str| move |_| anyhow::anyhow!(what);
    let pair = KeyPair::from_pkcs8(&STANDARD.decode(key)?).map_err(|error| anyhow::anyhow!("{error}"))?;
    let spki: PublicKeyX509Der<'_> = pair.public_key().as_der().map_err(unusable("no public key"))?;
    let fingerprint = fingerprint(&STANDARD.encode(spki.as_ref())).context("no fingerprint")?;
    let (subject, now) = (format!("MYORG-MYACCT.{user}"), simulator.look(Account::now) / 1000);
    let claims = json!({"iss": format!("{subject}.{fingerprint}"), "sub": subject, "iat": now, "exp": now + 60});
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(&json!({"alg": "RS256", "typ": "JWT"})), part(&claims));
    let mut signature = vec![0; pair.public_modulus_len()];
    pair.sign(
        &RSA_PKCS1_SHA256,
        &SystemRandom::new(),
        signed.as_bytes(),
        &mut signature,
    )
    .map_err(unusable("no signature"))?;
    Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
}
