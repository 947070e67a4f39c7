//! A request as bytes, so that nothing is tidied on its way, and what comes back on the same connection.

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Longer than the broker keeps any of these connections.
const PATIENCE: Duration = Duration::from_secs(25);

/// A request in the making; every part can be made wrong.
#[derive(Debug, Clone)]
pub(super) struct Request {
    /// The token, for edits that put it elsewhere.
    pub(super) token: String,
    line: String,
    headers: Vec<Vec<u8>>,
    body: Vec<u8>,
    line_end: &'static str,
    hang_up: bool,
}

impl Request {
    /// An honest order.
    pub(super) fn order(token: &str) -> Self {
        let bare = Self {
            token: token.to_owned(),
            line: "POST /v1/leases HTTP/1.1".to_owned(),
            headers: Vec::new(),
            body: Vec::new(),
            line_end: "\r\n",
            hang_up: false,
        };
        bare.with("Host", "broker.example")
            .with("Connection", "close")
            .with("Authorization", &format!("Bearer {token}"))
            .with("Content-Type", "application/json")
            .json(r#"{"target": "team"}"#)
    }

    /// Another first line: method, target, version.
    pub(super) fn line(mut self, line: impl Into<String>) -> Self {
        self.line = line.into();
        self
    }

    /// An honest question at this path, without a body.
    pub(super) fn get(self, target: &str) -> Self {
        let bare = self.without("Content-Type").without("Content-Length").body("");
        bare.line(format!("GET {target} HTTP/1.1"))
    }

    /// One more header.
    pub(super) fn with(self, name: &str, value: &str) -> Self {
        self.raw(format!("{name}: {value}"))
    }

    /// One more header line, as it stands.
    pub(super) fn raw(mut self, line: impl AsRef<[u8]>) -> Self {
        self.headers.push(line.as_ref().to_vec());
        self
    }

    /// No header of this name.
    pub(super) fn without(mut self, name: &str) -> Self {
        let prefix = format!("{name}:").into_bytes();
        self.headers.retain(|line| {
            !line
                .get(..prefix.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(&prefix))
        });
        self
    }

    /// This header instead of what stands there.
    pub(super) fn set(self, name: &str, value: &str) -> Self {
        self.without(name).with(name, value)
    }

    /// Another value of `Authorization`, made of the token.
    pub(super) fn authorization(self, value: impl FnOnce(&str) -> String) -> Self {
        let value = value(&self.token);
        self.set("Authorization", &value)
    }

    /// This body with its length.
    pub(super) fn json(self, body: impl AsRef<[u8]>) -> Self {
        let length = body.as_ref().len().to_string();
        self.set("Content-Length", &length).body(body)
    }

    /// This body, whatever the headers say of it.
    pub(super) fn body(mut self, body: impl AsRef<[u8]>) -> Self {
        self.body = body.as_ref().to_vec();
        self
    }

    /// The body in chunks that are written as they stand.
    pub(super) fn chunked(self, chunks: impl AsRef<[u8]>) -> Self {
        self.set("Transfer-Encoding", "chunked")
            .without("Content-Length")
            .body(chunks)
    }

    /// These bytes behind the body, on the same connection, which the first request then leaves open.
    pub(super) fn then(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.body.extend_from_slice(bytes.as_ref());
        self.without("Connection")
    }

    /// Lines that end otherwise.
    pub(super) fn line_end(mut self, end: &'static str) -> Self {
        self.line_end = end;
        self
    }

    /// Says at its end that nothing more will come.
    pub(super) fn hang_up(mut self) -> Self {
        self.hang_up = true;
        self
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let end = self.line_end.as_bytes();
        let mut bytes = [self.line.as_bytes(), end].concat();
        for line in &self.headers {
            bytes.extend_from_slice(line);
            bytes.extend_from_slice(end);
        }
        bytes.extend_from_slice(end);
        bytes.extend_from_slice(&self.body);
        bytes
    }

    /// Sends it on a connection of its own and reads to the end.
    pub(super) async fn send(&self, address: &str) -> Vec<Answer> {
        let mut stream = TcpStream::connect(address).await.expect("the broker listens");
        // It may close before it has read all: what it said before that counts.
        let _ = stream.write_all(&self.bytes()).await;
        if self.hang_up {
            let _ = stream.shutdown().await;
        }
        let mut said = Vec::new();
        let reading = async {
            let mut chunk = vec![0; 16 * 1024];
            while let Ok(length @ 1..) = stream.read(&mut chunk).await {
                said.extend_from_slice(&chunk[..length]);
            }
        };
        let ended = tokio::time::timeout(PATIENCE, reading).await;
        assert!(ended.is_ok(), "the connection stays open after {}", self.line);
        answers(&said, self.line.starts_with("HEAD "))
    }
}

/// One answer.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) status: u16,
    headers: Vec<(String, String)>,
    pub(super) body: String,
}

impl Answer {
    /// The only header of this name.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(known, _)| known == name);
        let value = found.next().map(|(_, value)| value.as_str());
        assert!(found.next().is_none(), "{name} stands twice in {self:?}");
        value
    }

    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or(Value::Null)
    }

    /// All of it, to be searched.
    pub(super) fn text(&self) -> String {
        format!("{:?}\n{}", self.headers, self.body)
    }
}

/// The answers one after the other; whatever does not read as one fails the test.
fn answers(said: &[u8], without_bodies: bool) -> Vec<Answer> {
    let mut rest = String::from_utf8(said.to_vec()).expect("answers are UTF-8");
    let mut answers = Vec::new();
    while !rest.is_empty() {
        let (head, behind) = rest
            .split_once("\r\n\r\n")
            .unwrap_or_else(|| panic!("no answer: {rest}"));
        let mut lines = head.split("\r\n");
        let status = lines
            .next()
            .and_then(|line| line.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok());
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let length = headers.iter().find(|(name, _)| name == "content-length");
        let length = length.map_or(0, |(_, value)| value.parse().unwrap());
        let (body, behind) = behind.split_at(if without_bodies { 0 } else { length });
        answers.push(Answer {
            status: status.unwrap_or_else(|| panic!("no status: {rest}")),
            headers,
            body: body.to_owned(),
        });
        rest = behind.to_owned();
    }
    answers
}
