//! Sessions whose client never reads that a statement failed: the server keeps the locks of the statement until then, and
//! obeys no signal meanwhile, on every version. One such session saves no other, and endangers nobody.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kdbt_e2e::postgres::{PgOptions, PgVersion};
use kdbt_e2e::stack::DATABASE;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls};

use super::holder::Holder;
use super::scene::{Scene, eventually};
use super::starving::meanwhile;
use super::was_served;

const WAIT: Duration = Duration::from_secs(20);

/// A stream that is read no more once it is told so.
struct Deaf {
    stream: TcpStream,
    deaf: Arc<AtomicBool>,
}

impl AsyncRead for Deaf {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.deaf.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for Deaf {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, from: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl Holder<'_> {
    /// Does this, then fails in that, and never reads that it failed.
    async fn fails_unheard(&self, first: &str, failing: &str) -> Result<Unheard> {
        let stream = TcpStream::connect(("127.0.0.1", self.scene.stack.postgres.port())).await?;
        let deaf = Arc::new(AtomicBool::new(false));
        let stream = Deaf {
            stream,
            deaf: Arc::clone(&deaf),
        };
        let (client, connection) = self.config().connect_raw(stream, NoTls).await?;
        let connection = tokio::spawn(async move { drop(connection.await) });
        let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
        client.batch_execute(first).await?;
        deaf.store(true, Ordering::Relaxed);
        // The error quotes the statement, which is more than any buffer takes.
        let fail = format!("DO $$ BEGIN EXECUTE '{failing}' || repeat(' ', 12000000); END $$");
        tokio::spawn(async move { client.batch_execute(&fail).await });
        let stuck = format!("SELECT 1 FROM pg_stat_activity WHERE pid = {pid} AND wait_event = 'ClientWrite'");
        eventually(WAIT, async || Ok(!self.scene.rows(&stuck).await?.is_empty())).await?;
        Ok(Unheard { pid, connection })
    }

    /// It has lost everything but the session that reads nothing, and that one is named.
    async fn is_left_with(&self, unheard: &Unheard, other: &Client) -> Result<()> {
        self.waits_for_its_backend("").await?;
        let oid = self.oid;
        let sessions = format!("SELECT pid FROM pg_stat_activity WHERE usesysid = {oid}");
        let only = vec![unheard.pid.to_string()];
        eventually(WAIT, async || Ok(self.scene.rows(&sessions).await? == only)).await?;
        ensure!(
            other.batch_execute("SELECT 1").await.is_err(),
            "a session still answers"
        );
        let named = format!("session with pid {}", unheard.pid);
        eventually(WAIT, async || {
            let log = self.scene.stack.broker.log()?;
            let about = |line: &str| line.contains(&self.lease.id) && line.contains(&named);
            Ok(log.lines().any(about))
        })
        .await
        .context("the session is not named")?;
        unheard.connection.abort();
        eventually(WAIT, async || Ok(self.scene.rows(&sessions).await?.is_empty())).await
    }
}

/// A session that is in the middle of saying that it failed.
struct Unheard {
    pid: i32,
    connection: JoinHandle<()>,
}

/// S2, S5: what locks its role, as a COMMENT does that is refused, and what holds its row.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_never_hears_of_its_error_saves_no_other() {
    for version in PgVersion::ALL {
        let scene = Scene::on(version, PgOptions::default()).await.unwrap();
        let scene = &scene;
        let row = "BEGIN; SET ROLE NONE; ALTER ROLE current_user PASSWORD 'mine'";
        let attacks = [("SELECT 1", "COMMENT ON ROLE {me} IS NULL"), (row, "SELECT nothing")];
        let all = attacks
            .into_iter()
            .enumerate()
            .map(|(number, (first, failing))| async move {
                let holder = Holder::new(scene, number, "team", "10m").await?;
                let failing = failing.replace("{me}", &holder.lease.user);
                let unheard = holder.fails_unheard(first, &failing).await?;
                let other = holder.connect(DATABASE).await?;
                holder.lease.revoke(scene).await?;
                let left = holder.is_left_with(&unheard, &other).await;
                left.with_context(|| format!("{failing} on {version:?}"))
            });
        let beside = meanwhile(scene, async { futures_util::future::try_join_all(all).await.map(drop) });
        was_served(&beside.await);
    }
}
