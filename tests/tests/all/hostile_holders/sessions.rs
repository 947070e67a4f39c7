//! Sessions that do not want to end, and connections that come in meanwhile.

use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::SinkExt;
use kdbt_e2e::stack::DATABASE;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_postgres::NoTls;

use super::attack::Act::{Does, Fails, LeftRunning, Plays, Refused, Tries};
use super::attack::{Attack, Played, attack};
use super::holder::Holder;

pub(super) const ATTACKS: &[Attack] = &[
    attack("sleeps", &[LeftRunning("SELECT pg_sleep(1000)")]).expiring(),
    attack(
        "swallows every error in a loop",
        &[
            LeftRunning("DO $$ BEGIN LOOP BEGIN PERFORM pg_sleep(1); EXCEPTION WHEN OTHERS OR query_canceled OR assert_failure THEN NULL; END; END LOOP; END $$"),
            LeftRunning("DO $$ DECLARE i int := 0; BEGIN LOOP BEGIN i := i / 0; EXCEPTION WHEN OTHERS THEN i := 1; END; END LOOP; END $$"),
        ],
    ),
    attack(
        "computes without an end",
        &[
            LeftRunning("WITH RECURSIVE t AS (SELECT 1 UNION ALL SELECT 1 FROM t) SELECT count(*) FROM t"),
            LeftRunning("SELECT count(*) FROM generate_series(1, 1000000) a, generate_series(1, 1000000) b"),
        ],
    ),
    attack(
        "computes in parallel workers",
        &[LeftRunning(
            "SET max_parallel_workers_per_gather = 2; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0; \
             SELECT count(*) FROM durable.ledger a, durable.ledger b, durable.ledger c, durable.ledger d",
        )],
    ),
    attack(
        "matches an expression that never comes to an end",
        &[LeftRunning("SELECT repeat('a', 100000) ~ '(a*)*(b|a*)*c', pg_sleep(1000)")],
    ),
    attack(
        "switches every time limit of its session off and waits in a transaction",
        &[Does(
            "SET statement_timeout = 0; SET lock_timeout = 0; SET idle_in_transaction_session_timeout = 0; SET idle_session_timeout = 0; \
             SET tcp_keepalives_idle = 7200; SET client_connection_check_interval = 0; BEGIN; SELECT count(*) FROM durable.ledger",
        )],
    )
    .expiring(),
    attack(
        "waits in a transaction that has failed",
        &[Does("BEGIN"), Fails("22012", "SELECT 1 / 0")],
    ),
    attack(
        "holds cursors past their transaction",
        &[Does(
            "BEGIN; DECLARE held CURSOR WITH HOLD FOR SELECT generate_series(1, 50000); COMMIT; BEGIN; DECLARE open SCROLL CURSOR FOR SELECT * FROM durable.ledger; FETCH 10 FROM open",
        )],
    ),
    attack(
        "listens and notifies without measure",
        &[
            Does("LISTEN kdbt; LISTEN \"kdbt__broker\"; DO $$ BEGIN FOR i IN 1..20000 LOOP PERFORM pg_notify('kdbt', repeat('x', 100) || i); END LOOP; END $$"),
            Does("BEGIN; NOTIFY kdbt, 'not yet'"),
        ],
    ),
    attack(
        "keeps an old snapshot and a transaction id",
        &[Does("BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT pg_current_xact_id(), pg_export_snapshot(); SELECT count(*) FROM durable.ledger")],
    ),
    attack(
        "holds five hundred advisory locks and waits for one more",
        &[
            Does("SELECT count(pg_advisory_lock(g)) FROM generate_series(1, 500) g; SELECT pg_advisory_lock({n}, 1)"),
            LeftRunning("SELECT pg_advisory_lock({n}, 1)"),
        ],
    ),
    attack(
        "locks every shared catalog that it may read",
        &[
            Does("BEGIN; LOCK TABLE pg_auth_members, pg_database, pg_shdepend, pg_shdescription, pg_db_role_setting, pg_tablespace IN ACCESS SHARE MODE"),
            Does("SAVEPOINT s"),
            Refused("LOCK TABLE pg_authid IN ACCESS SHARE MODE"),
            Does("ROLLBACK TO s"),
            Refused("LOCK TABLE pg_shdepend IN SHARE MODE"),
            Does("ROLLBACK TO s"),
            Refused("LOCK TABLE pg_auth_members IN ACCESS EXCLUSIVE MODE"),
            Does("ROLLBACK TO s"),
        ],
    ),
    attack(
        "ends, cancels and spies on the sessions of others",
        &[
            Refused("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{other}'"),
            Refused("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE usename = '{other}'"),
            Refused("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'kdbt__login_1'"),
            Refused("SELECT pg_log_backend_memory_contexts(pid) FROM pg_stat_activity WHERE usename = '{other}'"),
            Does("DO $$ BEGIN IF EXISTS (SELECT FROM pg_stat_activity WHERE usename IN ('{other}', 'kdbt__login_1') AND query NOT LIKE '<insufficient%') THEN RAISE 'it is told'; END IF; END $$"),
        ],
    ),
    attack(
        "reaches for the server's files, programs and log",
        &[
            Refused("COPY (SELECT 1) TO PROGRAM 'true'"),
            Refused("COPY (SELECT 1) TO '/tmp/kdbt-canary'"),
            Refused("SELECT pg_read_file('postgresql.conf')"),
            Refused("SELECT pg_ls_dir('.')"),
            Refused("SELECT lo_import('/etc/passwd')"),
            Refused("SELECT pg_reload_conf()"),
            Refused("SELECT pg_rotate_logfile()"),
            Refused("SELECT pg_switch_wal()"),
            Refused("SELECT pg_stat_reset()"),
            Refused("LOAD '/tmp/canary.so'"),
            Tries("VACUUM FULL pg_catalog.pg_shdepend; REINDEX SYSTEM analytics"),
        ],
    ),
    attack("opens all the connections that it has", &[Plays(fills_its_connections)]),
    attack("leaves a big result unread", &[Plays(reads_nothing)]),
    attack("sends a table and never its end", &[Plays(copies_for_ever)]),
    attack("closes one half of its connections", &[Plays(half_closes)]),
    attack("connects again and again during its end", &[Plays(storms)]),
    attack("connects again and again while it expires", &[Plays(storms)]).expiring(),
    attack("changes its password again and again during its end", &[Plays(hammers)]),
    attack("cancels by guessing others' keys", &[Plays(guesses_keys)]),
    attack("connects with options that hide it", &[Plays(hides)]),
    attack("asks for a replication connection", &[Plays(replicates)]),
];

fn fills_its_connections<'a>(holder: &'a Holder<'a>) -> Played<'a> {
    Box::pin(async move {
        for _ in 0..50 {
            match holder.connect(DATABASE).await {
                Ok(session) => holder.keep(session),
                Err(_full) => return Ok(()),
            }
        }
        anyhow::bail!("fifty connections and no limit")
    })
}

/// A session whose connection nobody reads from any more.
fn reads_nothing<'a>(holder: &'a Holder<'a>) -> Played<'a> {
    Box::pin(async move {
        let (client, mut connection) = holder.config().connect(NoTls).await?;
        let big = "SELECT repeat('x', 1000) FROM generate_series(1, 1000000)";
        let for_a_moment = async {
            tokio::select! {
                _ = &mut connection => {}
                _ = client.batch_execute(big) => {}
                () = tokio::time::sleep(Duration::from_millis(60)) => {}
            }
        };
        for_a_moment.await;
        // Both stay, and nothing is read; in the end the server has cut it.
        holder.keep_running(tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            drop(client);
            drop(connection);
        }));
        Ok(())
    })
}

fn copies_for_ever<'a>(holder: &'a Holder<'a>) -> Played<'a> {
    Box::pin(async move {
        let session = holder.connect(DATABASE).await?;
        let table = format!("CREATE SCHEMA c{0}; CREATE TABLE c{0}.t (line text)", holder.number);
        session.batch_execute(&table).await?;
        let sink = session
            .copy_in(&format!("COPY c{}.t FROM STDIN", holder.number))
            .await?;
        holder.keep_running(tokio::spawn(async move {
            let mut sink = std::pin::pin!(sink);
            while sink.send(&b"one more line\n"[..]).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            drop(session);
        }));
        Ok(())
    })
}

fn half_closes<'a>(holder: &'a Holder<'a>) -> Played<'a> {
    Box::pin(async move {
        for _ in 0..3 {
            let mut stream = TcpStream::connect(("127.0.0.1", holder.scene.stack.postgres.port())).await?;
            stream.write_all(&startup(&holder.lease.user)).await?;
            let mut first = [0];
            stream
                .read_exact(&mut first)
                .await
                .context("the server asks for a password")?;
            stream.shutdown().await?;
            holder.keep_running(tokio::spawn(async move {
                let _ = stream.read_to_end(&mut Vec::new()).await;
            }));
        }
        Ok(())
    })
}

/// The first message of a client of this name.
fn startup(user: &str) -> Vec<u8> {
    let mut body = 196_608_u32.to_be_bytes().to_vec();
    body.extend(format!("user\0{user}\0database\0{DATABASE}\0\0").bytes());
    let length = u32::try_from(body.len() + 4).unwrap();
    [length.to_be_bytes().to_vec(), body].concat()
}

/// Four that connect as fast as they can, until they are let in no more.
fn storms<'a>(holder: &'a Holder<'a>) -> Played<'a> {
    Box::pin(async move {
        for _ in 0..4 {
            let config = holder.config();
            holder.keep_running(tokio::spawn(async move {
                let mut refused = 0;
                while refused < 5 {
                    match config.connect(NoTls).await {
                        Ok((client, connection)) => {
                            refused = 0;
                            let connection = tokio::spawn(connection);
                            let _ = client.batch_execute("SELECT count(*) FROM durable.ledger").await;
                            connection.abort();
                        }
                        Err(_) => refused += 1,
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }));
        }
        Ok(())
    })
}

fn hammers<'a>(holder: &'a Holder<'a>) -> Played<'a> {
    Box::pin(async move {
        let mut sessions = Vec::new();
        for _ in 0..3 {
            let session = holder.connect(DATABASE).await?;
            session.batch_execute("SET ROLE NONE").await?;
            sessions.push(session);
        }
        for session in sessions {
            holder.keep_running(tokio::spawn(async move {
                let change = "BEGIN; ALTER ROLE current_user PASSWORD 'mine'; ALTER ROLE current_user SET work_mem = '1MB'; COMMIT";
                while !session.is_closed() {
                    if session.batch_execute(change).await.is_err() {
                        let _ = session.batch_execute("ROLLBACK").await;
                    }
                }
            }));
        }
        Ok(())
    })
}

fn guesses_keys<'a>(holder: &'a Holder<'a>) -> Played<'a> {
    Box::pin(async move {
        let pids = holder
            .scene
            .rows("SELECT pid FROM pg_stat_activity WHERE usename = 'kdbt__login_1'");
        for pid in pids.await? {
            for key in 0_u32..20 {
                let words = [16, 80_877_102, pid.parse()?, key];
                let request: Vec<u8> = words.iter().flat_map(|word: &u32| word.to_be_bytes()).collect();
                let mut stream = TcpStream::connect(("127.0.0.1", holder.scene.stack.postgres.port())).await?;
                stream.write_all(&request).await?;
            }
        }
        Ok(())
    })
}

fn hides<'a>(holder: &'a Holder<'a>) -> Played<'a> {
    Box::pin(async move {
        let names = ["kdbt__login_1", "walwriter\n\u{1b}[2J", "' OR true --"];
        for (name, options) in names.into_iter().zip([
            "-c role=none -c search_path=durable",
            "-c statement_timeout=0 -c lock_timeout=0 -c post_auth_delay=0",
            "-c default_transaction_isolation=serializable -c event_source=x",
        ]) {
            let mut config = holder.config();
            config.application_name(name).options(options);
            let Ok((client, connection)) = config.connect(NoTls).await else {
                continue;
            };
            tokio::spawn(connection);
            client.batch_execute("BEGIN; SELECT 1").await?;
            holder.keep(client);
        }
        Ok(())
    })
}

fn replicates<'a>(holder: &'a Holder<'a>) -> Played<'a> {
    Box::pin(async move {
        let mut config = holder.config();
        config.options("-c replication=database");
        ensure!(config.connect(NoTls).await.is_err(), "replication is no setting");
        let mut stream = TcpStream::connect(("127.0.0.1", holder.scene.stack.postgres.port())).await?;
        let mut message = startup(&holder.lease.user);
        message.truncate(message.len() - 1);
        message.extend(b"replication\0true\0\0");
        let length = u32::try_from(message.len())?;
        message[..4].copy_from_slice(&length.to_be_bytes());
        stream.write_all(&message).await?;
        holder.keep_running(tokio::spawn(async move {
            // It is asked for its password, gives none, and is cut when its lease ends or before.
            let _ = tokio::time::timeout(Duration::from_secs(1), stream.read_to_end(&mut Vec::new())).await;
        }));
        Ok(())
    })
}

impl Holder<'_> {
    /// How its programs connect.
    pub(super) fn config(&self) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config
            .host("127.0.0.1")
            .port(self.scene.stack.postgres.port())
            .dbname(DATABASE)
            .user(&self.lease.user)
            .password(&self.lease.password);
        config
    }
}
