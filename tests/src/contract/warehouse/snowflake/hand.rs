//! The SQL API as an administrator or a lease's holder calls it. It shares nothing with the driver but the spelling of
//! the account.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair;
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use kdbt_api::Timestamp;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use url::Url;

use super::live::Live;
use crate::contract::warehouse::OpenSession;
use crate::snowflake::token::fingerprint;

/// A busy account is asked so often, once a second.
const TRIES: u32 = 20;

/// A row by its columns' names; what is NULL is left out.
type Row = BTreeMap<String, String>;

/// The way to an account, and the broker's own user on it.
#[derive(Clone)]
pub(super) struct Hand {
    http: reqwest::Client,
    base: Url,
    account: String,
    user: String,
    key: String,
    role: String,
}

/// A user's token. It is good for a minute, and is what stands for a session: the SQL API has no other.
pub(super) struct Session {
    hand: Hand,
    token: String,
}

/// A no.
struct Refusal {
    status: u16,
    body: Value,
}

impl Hand {
    pub(super) fn new(account: &Live) -> Self {
        let base = account.base_url.clone();
        let http = reqwest::Client::builder()
            .user_agent("kdbt-tests")
            .timeout(Duration::from_mins(1));
        let http = if base.is_some() { http.no_proxy() } else { http };
        Self {
            http: http.build().unwrap(),
            base: base.unwrap_or_else(|| format!("https://{}/", account.account.host()).parse().unwrap()),
            account: account.account.in_jwt(),
            user: account.user.to_uppercase(),
            key: account.private_key.expose_secret().to_owned(),
            role: account.role.clone(),
        }
    }

    /// Signs in as a user with its key.
    pub(super) fn of(&self, user: &str, key: &str) -> Session {
        Session {
            hand: self.clone(),
            token: self.token(user, key),
        }
    }

    /// A statement of the broker's own user in its role, which must succeed.
    pub(super) async fn manage(&self, statement: &str) -> Vec<Row> {
        let order = json!({"statement": statement, "role": self.role, "timeout": 60});
        match self.ask(&self.token(&self.user, &self.key), &order).await {
            Ok((body, _)) => rows(&body),
            Err(Refusal { status, body }) => panic!("{statement}: {status} {body}"),
        }
    }

    /// The account's clock, in whole seconds.
    pub(super) async fn clock(&self) -> Timestamp {
        let order = json!({"statement": "SELECT CURRENT_ROLE()", "role": self.role});
        let Ok((_, date)) = self.ask(&self.token(&self.user, &self.key), &order).await else {
            panic!("no clock")
        };
        jiff::fmt::rfc2822::parse(&date).unwrap().timestamp().into()
    }

    /// The body and the date of a success.
    async fn ask(&self, token: &str, order: &Value) -> Result<(Value, String), Refusal> {
        let mut request = self.http.post(self.base.join("api/v2/statements").unwrap()).json(order);
        for _ in 0..TRIES {
            let answer = request.bearer_auth(token).header("accept", "application/json");
            let answer = answer.send().await.unwrap();
            let status = answer.status().as_u16();
            let date = answer
                .headers()
                .get("date")
                .map(|date| date.to_str().unwrap().to_owned());
            let body: Value = answer.json().await.unwrap_or_default();
            let pause = match status {
                200 => return Ok((body, date.unwrap_or_default())),
                202 | 429 | 503 => tokio::time::sleep(Duration::from_secs(1)),
                _ => return Err(Refusal { status, body }),
            };
            pause.await;
            request = match body["statementStatusUrl"].as_str() {
                Some(path) if status == 202 => self.http.get(self.base.join(path).unwrap()),
                _ => self.http.post(self.base.join("api/v2/statements").unwrap()).json(order),
            };
        }
        panic!("the account stays busy: {order}")
    }

    /// As the vendor's page on key pairs has it.
    fn token(&self, user: &str, key: &str) -> String {
        let der: String = key.lines().filter(|line| !line.starts_with('-')).collect();
        let pair = KeyPair::from_pkcs8(&STANDARD.decode(der).unwrap()).unwrap();
        let spki: PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
        let fingerprint = fingerprint(&STANDARD.encode(spki.as_ref())).unwrap();
        let subject = format!("{}.{user}", self.account);
        let now = jiff::Timestamp::now().as_second();
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
        .unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

impl Session {
    /// The one value of a query, in the role that the user has by default; `None` if the token is refused.
    async fn value(&self, query: &str) -> Option<String> {
        let order = json!({"statement": query, "timeout": 60});
        match self.hand.ask(&self.token, &order).await {
            Ok((body, _)) => body["data"][0][0].as_str().map(str::to_owned),
            Err(Refusal { status: 401, .. }) => None,
            Err(Refusal { status, body }) => panic!("neither in nor refused: {status} {body}"),
        }
    }
}

#[async_trait]
impl OpenSession for Session {
    async fn who(&self) -> (String, String) {
        let user = self.value("SELECT CURRENT_USER()").await.unwrap();
        (user.to_lowercase(), self.value("SELECT CURRENT_ROLE()").await.unwrap())
    }

    async fn goes_on(&self) -> bool {
        self.value("SELECT CURRENT_ROLE()").await.is_some()
    }
}

fn rows(body: &Value) -> Vec<Row> {
    let texts = |value: &Value| value.as_array().unwrap().clone();
    let parts = texts(&body["resultSetMetaData"]["partitionInfo"]);
    assert_eq!(parts.len(), 1, "more rows than one answer holds");
    let columns = texts(&body["resultSetMetaData"]["rowType"]);
    let row = |row: &Value| {
        let cells = columns.iter().zip(texts(row));
        cells
            .filter_map(|(column, cell)| Some((column["name"].as_str()?.to_owned(), cell.as_str()?.to_owned())))
            .collect()
    };
    texts(&body["data"]).iter().map(row).collect()
}
