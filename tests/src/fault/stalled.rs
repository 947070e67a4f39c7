//! A client that has the server's challenge and keeps its proof to itself until it is told to go on.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_postgres::{Config, NoTls};

/// Longer than any server here waits for a login.
const PATIENCE: Duration = Duration::from_mins(2);

/// What the server says when a session has begun, and never before.
const READY: &[u8] = b"Z\0\0\0\x05I";

/// A login between the server's challenge and the client's proof.
#[derive(Debug)]
pub struct Stalled {
    server: TcpStream,
    proof: Vec<u8>,
}

impl Stalled {
    /// Begins a login and stops in the middle of it.
    pub async fn login(port: u16, database: &str, user: &str, password: &str) -> Result<Self> {
        let (near, mut far) = tokio::io::duplex(1 << 16);
        let mut config = Config::new();
        config.user(user).password(password).dbname(database);
        let client = tokio::spawn(async move { config.connect_raw(near, NoTls).await.map(drop) });
        let mut server = TcpStream::connect(("127.0.0.1", port)).await?;
        let mut buffer = [0; 4096];
        // Startup, request for SCRAM, first message, challenge.
        for _ in 0..2 {
            let read = far.read(&mut buffer).await?;
            server.write_all(&buffer[..read]).await?;
            let read = server.read(&mut buffer).await?;
            far.write_all(&buffer[..read]).await?;
        }
        let read = far.read(&mut buffer).await?;
        client.abort();
        ensure!(read > 0 && buffer[0] == b'p', "this is no proof");
        Ok(Self {
            server,
            proof: buffer[..read].to_vec(),
        })
    }

    /// Sends the proof at last. Whether a session begins.
    pub async fn gets_in(mut self) -> Result<bool> {
        // It may be cut off already.
        let _ = self.server.write_all(&self.proof).await;
        let mut said = Vec::new();
        let answer = async {
            let mut chunk = [0; 4096];
            while let Ok(length @ 1..) = self.server.read(&mut chunk).await {
                said.extend_from_slice(&chunk[..length]);
                if said.windows(READY.len()).any(|window| window == READY) {
                    return true;
                }
            }
            false
        };
        let answered = tokio::time::timeout(PATIENCE, answer).await;
        answered.context("the server neither lets it in nor turns it away")
    }
}
