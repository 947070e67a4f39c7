//! A wire to a server on which one answer is lost: to the first message that makes a role.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// What the message has in it.
const ORDER: &[u8] = b"CREATE ROLE";
/// The server's last word on a message: `ReadyForQuery`, outside a transaction.
const READY: &[u8] = b"Z\0\0\0\x05I";

/// Listens on a port of its own, until it is told to stop. The flag says whether the answer is lost by now.
pub(super) async fn wire_to(port: u16, stop: CancellationToken) -> (u16, Arc<AtomicBool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = listener.local_addr().unwrap().port();
    let lost = Arc::new(AtomicBool::new(false));
    let flag = lost.clone();
    tokio::spawn(stop.run_until_cancelled_owned(async move {
        while let Ok((near, _)) = listener.accept().await {
            tokio::spawn(carry(near, port, lost.clone()));
        }
    }));
    (own, flag)
}

/// What breaks on one side breaks on the other.
async fn carry(near: TcpStream, port: u16, lost: Arc<AtomicBool>) -> std::io::Result<()> {
    let far = TcpStream::connect(("127.0.0.1", port)).await?;
    let (mut from_near, mut to_near) = near.into_split();
    let (mut from_far, mut to_far) = far.into_split();
    let (mut said, mut answered) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut is_order = false;
    loop {
        tokio::select! {
            read = from_near.read(&mut said) => match read? {
                0 => return Ok(()),
                length => {
                    let order = said[..length].windows(ORDER.len()).any(|part| part == ORDER);
                    is_order |= order && !lost.swap(true, Ordering::SeqCst);
                    to_far.write_all(&said[..length]).await?;
                }
            },
            read = from_far.read(&mut answered) => match read? {
                0 => return Ok(()),
                length if is_order => {
                    if answered[..length].ends_with(READY) {
                        return Ok(());
                    }
                }
                length => to_near.write_all(&answered[..length]).await?,
            },
        }
    }
}
