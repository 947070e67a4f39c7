//! A wire to PostgreSQL that can be cut between any two messages, in either direction.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// Whose messages are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The broker's.
    ToServer,
    /// The server's.
    ToBroker,
}

/// Where the wire is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Whose messages are counted.
    pub way: Way,
    /// At which of them, from 1.
    pub at: usize,
    /// Whether that one still arrives. Nothing does after it, on any connection.
    pub arrives: bool,
}

/// Listens on loopback until it is dropped.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    stop: CancellationToken,
}

#[derive(Debug)]
struct Shared {
    server: AtomicU16,
    wire: Mutex<Wire>,
}

#[derive(Debug, Default)]
struct Wire {
    plan: Option<Cut>,
    passed: usize,
    /// Of all connections that stand now.
    cut: CancellationToken,
}

impl Proxy {
    /// Listens; nobody gets through before it knows the server.
    pub async fn listen() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            server: AtomicU16::new(0),
            wire: Mutex::default(),
        });
        let stop = CancellationToken::new();
        let (accepting, stopped) = (shared.clone(), stop.clone());
        let serve = async move {
            while let Ok((broker, _)) = listener.accept().await {
                tokio::spawn(connect(broker, accepting.clone()));
            }
        };
        tokio::spawn(async move { stopped.run_until_cancelled(serve).await });
        Ok(Self { port, shared, stop })
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Leads to this port from now on.
    pub fn lead_to(&self, port: u16) {
        self.shared.server.store(port, Ordering::SeqCst);
    }

    /// Counts from now on, and cuts there.
    pub fn cut(&self, cut: Cut) {
        let mut wire = self.shared.wire();
        wire.plan = Some(cut);
        wire.passed = 0;
    }

    /// Lets everything pass again. Whether the wire was cut meanwhile.
    pub fn mend(&self) -> bool {
        let mut wire = self.shared.wire();
        match wire.plan.take() {
            Some(_not_reached) => false,
            None => true,
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.cancel();
        self.shared.wire().cut.cancel();
    }
}

impl Shared {
    fn wire(&self) -> std::sync::MutexGuard<'_, Wire> {
        self.wire.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a message. `Some`: the wire is cut here, and whether this one still arrives.
    fn count(&self, way: Way) -> Option<bool> {
        let mut wire = self.wire();
        let plan = wire.plan.filter(|plan| plan.way == way)?;
        wire.passed += 1;
        if wire.passed < plan.at {
            return None;
        }
        wire.plan = None;
        Some(plan.arrives)
    }

    /// All connections end, and new ones may come.
    fn break_all(&self) {
        std::mem::take(&mut self.wire().cut).cancel();
    }
}

async fn connect(broker: TcpStream, shared: Arc<Shared>) -> Result<()> {
    let cut = shared.wire().cut.clone();
    let port = shared.server.load(Ordering::SeqCst);
    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    broker.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_broker, to_broker) = broker.into_split();
    let (from_server, to_server) = server.into_split();
    let both = async {
        tokio::select! {
            done = pass(Way::ToServer, from_broker, to_server, &shared) => done,
            done = pass(Way::ToBroker, from_server, to_broker, &shared) => done,
        }
    };
    cut.run_until_cancelled(both).await.unwrap_or(Ok(()))
}

/// Passes whole messages on, as PostgreSQL's protocol frames them: the first of a connection has no type.
async fn pass(
    way: Way,
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    shared: &Shared,
) -> Result<()> {
    let mut typed = way == Way::ToBroker;
    loop {
        let mut message = Vec::new();
        if typed {
            message.push(from.read_u8().await?);
        }
        let length = from.read_u32().await?;
        message.extend(length.to_be_bytes());
        let rest = length.checked_sub(4).context("a message shorter than its length")?;
        let start = message.len();
        message.resize(start + rest as usize, 0);
        from.read_exact(&mut message[start..]).await?;
        typed = true;
        let cut = shared.count(way);
        if cut != Some(false) {
            to.write_all(&message).await?;
        }
        if cut.is_some() {
            to.flush().await?;
            shared.break_all();
        }
    }
}
