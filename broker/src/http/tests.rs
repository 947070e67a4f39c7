//! The HTTP side as callers meet it, over real sockets, in front of a fake [`Service`](crate::service::Service).

mod calls;
mod document;
mod fake;
mod limits;
mod log;
mod sockets;
mod tls;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kdbt_api::problem::Problem;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::fake::{FakeService, Tokens};
use super::{Http, Limits, Parts, Server, Tls, TrustedProxies};
use crate::identity::Reason;
use crate::metrics::Metrics;

/// Longer than anything takes here; a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// A broker on a free port.
struct Broker {
    http: Http,
    service: Arc<FakeService>,
    address: SocketAddr,
    stop: CancellationToken,
    serving: TaskTracker,
}

impl Broker {
    async fn start() -> Self {
        Self::with(Limits::default()).await
    }

    async fn with(limits: Limits) -> Self {
        Self::with_tls(None, limits).await
    }

    async fn with_tls(tls: Option<Arc<Tls>>, limits: Limits) -> Self {
        let service = Arc::new(FakeService::default());
        let http = Http::new(Parts {
            service: service.clone(),
            authenticator: Arc::new(Tokens),
            metrics: Arc::new(Metrics::new("0.0.0")),
            tasks: TaskTracker::new(),
            public_url: "https://kdbt.acme.example/".parse().unwrap(),
            trusted_proxies: TrustedProxies::default(),
            limits: limits.clone(),
        });
        Self::serve(http.clone(), http.router(), service, tls, limits).await
    }

    /// The management address of the same broker.
    async fn management(&self) -> Self {
        let router = self.http.management_router();
        Self::serve(self.http.clone(), router, self.service.clone(), None, Limits::default()).await
    }

    async fn serve(
        http: Http,
        router: axum::Router,
        service: Arc<FakeService>,
        tls: Option<Arc<Tls>>,
        limits: Limits,
    ) -> Self {
        let server = Server::bind(([127, 0, 0, 1], 0).into(), router, tls, limits)
            .await
            .unwrap();
        let address = server.local_addr().unwrap();
        let (stop, serving) = (CancellationToken::new(), TaskTracker::new());
        serving.spawn(server.serve(stop.clone()));
        serving.close();
        Self {
            http,
            service,
            address,
            stop,
            serving,
        }
    }

    /// Stops the server and waits until it has.
    async fn stop(&self) {
        self.stop.cancel();
        soon(self.serving.wait()).await;
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends these bytes and reads until the broker closes, however much it has to say.
    async fn raw(&self, request: impl AsRef<[u8]>) -> String {
        let mut stream = self.connect().await;
        // The broker may answer and close before it has read all.
        let _ = stream.write_all(request.as_ref()).await;
        read_to_end(&mut stream).await
    }

    /// A request with a good token, on a connection of its own.
    async fn call(&self, method: &str, path: &str, body: Option<&str>) -> Answer {
        self.send(method, path, &["Authorization: Bearer alice"], body).await
    }

    async fn send(&self, method: &str, path: &str, headers: &[&str], body: Option<&str>) -> Answer {
        let mut text = format!("{method} {path} HTTP/1.1\r\nHost: kdbt\r\nConnection: close\r\n");
        for header in headers {
            let _ = write!(text, "{header}\r\n");
        }
        if let Some(body) = body {
            let _ = write!(
                text,
                "Content-Type: application/json\r\nContent-Length: {}\r\n",
                body.len()
            );
        }
        text += "\r\n";
        text += body.unwrap_or_default();
        Answer::parse(&self.raw(text).await)
    }
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it happens soon")
}

async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let read = async {
        let mut chunk = vec![0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut chunk).await {
            bytes.extend_from_slice(&chunk[..count]);
        }
    };
    soon(read).await;
    String::from_utf8(bytes).unwrap()
}

/// One answer, taken apart.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

impl Answer {
    fn parse(text: &str) -> Self {
        let (head, body) = text
            .split_once("\r\n\r\n")
            .unwrap_or_else(|| panic!("no answer in {text:?}"));
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let pair = |line: &str| {
            line.split_once(": ")
                .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        };
        Self {
            status,
            headers: lines.filter_map(pair).collect(),
            body: body.to_owned(),
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    fn problem(&self) -> Problem {
        assert_eq!(
            self.header("content-type"),
            Some("application/problem+json"),
            "{self:?}"
        );
        let problem: Problem = serde_json::from_str(&self.body).unwrap();
        assert_eq!(problem.status, self.status);
        assert_eq!(problem.request_id.as_deref(), self.header("x-request-id"));
        problem
    }

    /// Status and code of a problem.
    fn failure(&self) -> (u16, String) {
        (self.status, self.problem().code)
    }
}
