//! Connections: how many, how long, how slow. HTTP/1.1 alone, since a broker's answers gain nothing from HTTP/2 and
//! each of its streams, windows and resets would want a limit of its own.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use futures_util::future::{Either, select};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use super::Limits;
use super::request::Peer;
use super::tls::Tls;

/// Room for the longest token, the other headers and the first line. What does not fit is answered by `hyper`
/// itself: 431, without a body.
const HEAD_BUFFER: usize = 96 * 1024;

/// How long to wait when the process has no file descriptor left for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A bound address and what it serves.
pub struct Server {
    listener: TcpListener,
    router: Router,
    tls: Option<Arc<Tls>>,
    limits: Limits,
}

impl Server {
    /// Binds the address; port 0 takes a free one.
    pub async fn bind(address: SocketAddr, router: Router, tls: Option<Arc<Tls>>, limits: Limits) -> io::Result<Self> {
        Ok(Self {
            listener: TcpListener::bind(address).await?,
            router,
            tls,
            limits,
        })
    }

    /// The address that was bound.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop`, then takes no new connections, lets requests under way finish for as long as
    /// [`Limits::drain_time`], and cuts what is left. Returns when no connection is open.
    pub async fn serve(self, stop: CancellationToken) {
        let Self {
            listener,
            router,
            tls,
            limits,
        } = self;
        let connections = TaskTracker::new();
        let slots = Arc::new(Semaphore::new(limits.connections));
        let cut = CancellationToken::new();
        let limits = Arc::new(limits);
        let accepting = async {
            // A full house waits here: the kernel's queue holds who comes next.
            while let Ok(slot) = Arc::clone(&slots).acquire_owned().await {
                let (stream, peer) = accept(&listener).await;
                let connection = Connection {
                    router: router.clone(),
                    peer,
                    limits: Arc::clone(&limits),
                    stop: stop.clone(),
                };
                let (tls, cut) = (tls.clone(), cut.clone());
                connections.spawn(async move {
                    let _slot = slot;
                    cut.run_until_cancelled(connection.open(stream, tls.as_deref())).await;
                });
            }
        };
        stop.run_until_cancelled(accepting).await;
        drop(listener);
        connections.close();
        if tokio::time::timeout(limits.drain_time, connections.wait())
            .await
            .is_err()
        {
            tracing::warn!(
                connections = connections.len(),
                "cutting connections that did not finish in time"
            );
            cut.cancel();
            connections.wait().await;
        }
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("listener", &self.listener)
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

/// The next connection. Failures to accept are about one peer, or about our descriptors; neither ends the server.
async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

struct Connection {
    router: Router,
    peer: SocketAddr,
    limits: Arc<Limits>,
    stop: CancellationToken,
}

impl Connection {
    async fn open(self, stream: TcpStream, tls: Option<&Tls>) {
        // Answers are one small write each; waiting to fill a packet only adds latency.
        let _ = stream.set_nodelay(true);
        let Some(tls) = tls else {
            return self.serve(stream).await;
        };
        let handshake = tls.acceptor().accept(stream);
        match tokio::time::timeout(self.limits.handshake_time, handshake).await {
            Ok(Ok(stream)) => self.serve(stream).await,
            Ok(Err(error)) => tracing::debug!(peer = %self.peer, %error, "a TLS handshake failed"),
            Err(_) => tracing::debug!(peer = %self.peer, "a TLS handshake took too long"),
        }
    }

    async fn serve(self, stream: impl AsyncRead + AsyncWrite + Unpin) {
        let Self {
            router,
            peer,
            limits,
            stop,
        } = self;
        let service = service_fn(move |request: hyper::Request<Incoming>| answer(router.clone(), peer, request));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.header_time)
            .max_buf_size(HEAD_BUFFER)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let leave = std::pin::pin!(tokio::time::timeout(limits.connection_time, stop.cancelled()));
        let outcome = match select(connection.as_mut(), leave).await {
            Either::Left((outcome, _)) => outcome,
            Either::Right(_) => {
                // No new request on this connection; the one under way is finished, if its peer still reads.
                connection.as_mut().graceful_shutdown();
                let last = limits.request_time.saturating_add(limits.header_time);
                tokio::time::timeout(last, connection).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = outcome {
            tracing::debug!(%peer, %error, "a connection failed");
        }
    }
}

async fn answer(router: Router, peer: SocketAddr, request: hyper::Request<Incoming>) -> Result<Response, Infallible> {
    let mut request = request.map(Body::new);
    request.extensions_mut().insert(Peer(peer));
    router.oneshot(request).await
}
