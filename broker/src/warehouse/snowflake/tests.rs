//! What the driver's unit tests share: the vendor's vectors and keys, and an account that answers by a script.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use secrecy::SecretString;
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::TaskTracker;
use url::Url;

use super::SnowflakeConfig;

mod lifecycle;

/// What Snowflake's own connector made of an account, a user and a key.
#[derive(Debug, Deserialize)]
pub(super) struct JwtVector {
    pub(super) account: String,
    pub(super) user: String,
    pub(super) host: String,
    pub(super) jwt_account: String,
    pub(super) iss: String,
    pub(super) sub: String,
    pub(super) fingerprint: String,
    /// `a` or `b`.
    pub(super) key: String,
}

/// A file of the fixtures.
pub(super) fn fixture(name: &str) -> String {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/snowflake"));
    std::fs::read_to_string(folder.join(name)).unwrap()
}

pub(super) fn jwt_vectors() -> Vec<JwtVector> {
    serde_json::from_str(&fixture("jwt_vectors.json")).unwrap()
}

/// The key of a vector.
pub(super) fn key(name: &str) -> SecretString {
    fixture(&format!("key_{name}.p8")).into()
}

/// One request as it came.
#[derive(Debug, Clone)]
pub(super) struct Received {
    /// `POST /api/v2/statements?…`
    pub(super) line: String,
    head: String,
    pub(super) body: Value,
}

impl Received {
    /// A header's value, by its name in small letters.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    pub(super) fn query(&self, name: &str) -> Option<&str> {
        let (_, query) = self.line.split(' ').nth(1)?.split_once('?')?;
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(found, _)| *found == name).map(|(_, value)| value)
    }

    /// The claims of its token.
    pub(super) fn claims(&self) -> Value {
        let token = self.header("authorization").unwrap().strip_prefix("Bearer ").unwrap();
        let claims = token.split('.').nth(1).unwrap();
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap()
    }
}

/// What an account does with one request.
pub(super) enum Reply {
    /// Status, further headers, body.
    Answer(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// Closes the connection without a word.
    Hang,
    /// Never answers.
    Silence,
}

impl From<(u16, Value)> for Reply {
    fn from((status, body): (u16, Value)) -> Self {
        Self::Answer(status, Vec::new(), body.to_string().into_bytes())
    }
}

/// An account on this machine that says what it is told to, in order, and then nothing any more.
pub(super) struct Account {
    pub(super) url: Url,
    received: Arc<Mutex<Vec<Received>>>,
    script: Arc<Mutex<VecDeque<Reply>>>,
}

impl Account {
    pub(super) async fn start(script: impl IntoIterator<Item = Reply>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = Url::parse(&format!("http://{}/", listener.local_addr().unwrap())).unwrap();
        let account = Self {
            url,
            received: Arc::default(),
            script: Arc::new(Mutex::new(script.into_iter().collect())),
        };
        let (received, script) = (Arc::clone(&account.received), Arc::clone(&account.script));
        TaskTracker::new().spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                TaskTracker::new().spawn(serve(stream, Arc::clone(&received), Arc::clone(&script)));
            }
        });
        account
    }

    /// All requests so far.
    pub(super) fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    /// The statements so far.
    pub(super) fn statements(&self) -> Vec<String> {
        let received = self.received();
        let texts = received.iter().filter_map(|one| one.body["statement"].as_str());
        texts.map(str::to_owned).collect()
    }

    /// A config that dials it, with short times.
    pub(super) fn config(&self) -> SnowflakeConfig {
        let mut config = SnowflakeConfig::new(
            "snow".parse().unwrap(),
            "acme-prod".parse().unwrap(),
            "myorg-myacct".parse().unwrap(),
            "KDBT_SVC".to_owned(),
            "KDBT_BROKER".to_owned(),
            key("a"),
        );
        config.base_url = Some(self.url.clone());
        config
    }
}

async fn serve(mut stream: TcpStream, received: Arc<Mutex<Vec<Received>>>, script: Arc<Mutex<VecDeque<Reply>>>) {
    let Some(request) = read(&mut stream).await else { return };
    received.lock().unwrap().push(request);
    let reply = script.lock().unwrap().pop_front();
    match reply {
        Some(Reply::Answer(status, headers, body)) => {
            let headers: Vec<String> = headers
                .iter()
                .map(|(name, value)| format!("{name}: {value}\r\n"))
                .collect();
            let headers = headers.concat();
            let length = body.len();
            let head = format!("HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n");
            let _ = stream.write_all(head.as_bytes()).await;
            let _ = stream.write_all(&body).await;
            let _ = stream.shutdown().await;
        }
        Some(Reply::Silence) => std::future::pending().await,
        Some(Reply::Hang) | None => {}
    }
}

async fn read(stream: &mut TcpStream) -> Option<Received> {
    let mut bytes = Vec::new();
    let end = loop {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
    };
    let text = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let (line, head) = text.split_once("\r\n").unwrap();
    let mut request = Received {
        line: line.to_owned(),
        head: head.to_owned(),
        body: Value::Null,
    };
    let length: usize = request
        .header("content-length")
        .map_or(0, |length| length.parse().unwrap());
    while bytes.len() < end + 4 + length {
        stream.read_buf(&mut bytes).await.ok()?;
    }
    if length > 0 {
        request.body = serde_json::from_slice(&bytes[end + 4..]).unwrap();
    }
    Some(request)
}
