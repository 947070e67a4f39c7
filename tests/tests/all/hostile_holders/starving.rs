//! Holders who want the server for themselves: each has its test, with people beside who are served all the while.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kdbt_e2e::postgres::{PgOptions, PgVersion};
use kdbt_e2e::stack::DATABASE;

use super::attack::Remains;
use super::holder::Holder;
use super::scene::{Beside, Scene, eventually, percentile};
use super::was_served;

/// What happens, while somebody beside takes leases and gives them back.
pub(super) async fn meanwhile(scene: &Scene, what: impl Future<Output = Result<()>>) -> Beside {
    let stop = AtomicBool::new(false);
    let what = async {
        let result = what.await;
        stop.store(true, Ordering::Relaxed);
        result
    };
    let (result, beside) = tokio::join!(what, scene.beside(&stop));
    result.unwrap_or_else(|error| panic!("{error:#}"));
    scene.is_unharmed().await.unwrap();
    beside.unwrap_or_else(|error| panic!("{error:#}"))
}

/// S3: on 15 nothing ends such a backend but its own end, which 2³¹ rounds put half an hour ahead; 18 obeys.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_loops_in_its_own_password_s_hash_holds_up_nobody_else() {
    for version in PgVersion::ALL {
        let scene = Scene::on(version, PgOptions::default()).await.unwrap();
        let beside = meanwhile(&scene, async {
            let holder = Holder::new(&scene, 1, "team", "10m").await?;
            holder.leave_running(&format!("SET ROLE NONE; {LOOP}")).await?;
            holder.lease.revoke(&scene).await?;
            if version == PgVersion::Pg18 {
                return holder.is_ended(Remains::Nothing).await;
            }
            holder.waits_for_its_backend("session with pid").await
        });
        was_served(&beside.await);
    }
}

/// S3: it holds the row that NOLOGIN needs as well, so that it could still log in, as long as it likes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_loops_while_it_holds_its_own_row_stops_issuing_for_nobody() {
    if std::env::var_os("KDBT_LONG").is_none() {
        return;
    }
    let scene = Scene::on(PgVersion::Pg15, PgOptions::default()).await.unwrap();
    let beside = meanwhile(&scene, async {
        let holder = Holder::new(&scene, 1, "team", "10m").await?;
        let sql = format!("SET ROLE NONE; BEGIN; ALTER ROLE current_user PASSWORD 'mine'; {LOOP}");
        holder.leave_running(&sql).await?;
        holder.lease.revoke(&scene).await?;
        holder.waits_for_its_backend("").await?;
        // All tries that it takes to count as overdue, and some sweeps on.
        tokio::time::sleep(Duration::from_secs(100)).await;
        ensure!(holder.lease.view(&scene).await?["state"] == "ending", "it has ended");
        Ok(())
    });
    was_served(&beside.await);
}

const LOOP: &str = "ALTER ROLE current_user PASSWORD 'SCRAM-SHA-256$2147483647:YWFhYWFhYWFhYWFhYWFhYQ==$WVNuTgTLsVM7ryMaCtRMDfMfQbSPLV+UHzVcTOBAGNg=:WVNuTgTLsVM7ryMaCtRMDfMfQbSPLV+UHzVcTOBAGNg='";

/// S4: each lease fills the connections that it may have, until the server has none left for anybody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holders_who_fill_the_server_s_connections_are_ended_and_others_still_get_leases() {
    for version in PgVersion::ALL {
        let scene = Scene::on(version, PgOptions::default().set("max_connections", "40"))
            .await
            .unwrap();
        let run = async {
            let mut holders = Vec::new();
            let mut full = false;
            while !full {
                let holder = Holder::new(&scene, holders.len(), "team", "10m").await?;
                let mut own = 0;
                full = loop {
                    match holder.connect(DATABASE).await {
                        Ok(session) => holder.keep(session),
                        Err(error) => {
                            break format!("{error:?}").contains("too many clients")
                                || format!("{error:?}").contains("reserved");
                        }
                    }
                    own += 1;
                    ensure!(own < 12, "a lease may have all connections for itself");
                };
                holders.push(holder);
                ensure!(holders.len() < 40, "the server is never full");
            }
            let other = scene.person("ben", "team").take("team", "10m").await?;
            other.revoke(&scene).await?;
            eventually(Duration::from_secs(5), async || {
                Ok(other.view(&scene).await?["state"] == "ended")
            })
            .await?;
            // One with something to clean up, which takes a connection that the broker does not have yet.
            let (last, rest) = holders.split_last().unwrap();
            for holder in rest {
                holder.lease.revoke(&scene).await?;
                holder.is_ended(Remains::Nothing).await?;
            }
            last.lease.revoke(&scene).await?;
            last.is_ended(Remains::Nothing).await
        };
        let result: Result<()> = run.await;
        result.unwrap_or_else(|error| panic!("{error:#}"));
        scene.is_unharmed().await.unwrap();
    }
}

/// S4: it renews without a pause and holds the row that its renewal needs, fills the lock table as far as it lets others
/// in, and names roles that others get.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_who_renews_and_locks_itself_in_a_loop_leaves_the_issues_of_others_as_they_are() {
    let loops = [
        "BEGIN; SET LOCAL ROLE NONE; ALTER ROLE current_user PASSWORD 'mine'; SELECT pg_sleep(0.2); COMMIT",
        "SELECT count(pg_advisory_lock(g)) FROM generate_series(1, 2000) g; SELECT pg_sleep(0.05); SELECT pg_advisory_unlock_all()",
        "BEGIN; ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO grp_raw_ro; NOTIFY kdbt; SELECT pg_sleep(0.02); ROLLBACK",
    ];
    for version in PgVersion::ALL {
        let scene = Scene::on(version, PgOptions::default()).await.unwrap();
        let holder = Holder::new(&scene, 1, "team", "10m").await.unwrap();
        let for_a_while = || async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            Ok(())
        };
        let alone = meanwhile(&scene, for_a_while()).await;
        let mut sessions = Vec::new();
        for _ in loops {
            sessions.push(holder.connect(DATABASE).await.unwrap());
        }
        let at_work = async {
            let locks = sessions
                .iter()
                .zip(loops)
                .map(|(session, sql)| async move { while session.batch_execute(sql).await.is_ok() {} });
            let renews = (0..2).map(|_| async {
                while holder.lease.renew(&scene, "10m").await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            });
            tokio::select! {
                _ = futures_util::future::join_all(locks) => anyhow::bail!("a session is over"),
                _ = futures_util::future::join_all(renews) => anyhow::bail!("the broker is gone"),
                done = for_a_while() => done,
            }
        };
        let beside = meanwhile(&scene, at_work).await;
        was_served(&beside);
        let (before, now) = (percentile(&alone.issues, 99), percentile(&beside.issues, 99));
        // As good as the same, on a machine that does other things too.
        assert!(
            now < before * 3 + Duration::from_millis(250),
            "{before:?} and then {now:?}"
        );
        drop(sessions);
        holder.lease.revoke(&scene).await.unwrap();
        holder.is_ended(Remains::Nothing).await.unwrap();
    }
}

/// S10.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_large_objects_goes_with_its_lease_and_nobody_runs_out_of_locks() {
    let count = 100_000;
    for version in PgVersion::ALL {
        let scene = Scene::on(version, PgOptions::default()).await.unwrap();
        let beside = meanwhile(&scene, async {
            let holder = Holder::new(&scene, 1, "team", "10m").await?;
            let session = holder.connect(DATABASE).await?;
            let make = format!("SET ROLE NONE; SELECT lo_create(0) FROM generate_series(1, {count})");
            session.batch_execute(&make).await?;
            holder.keep(session);
            let start = Instant::now();
            holder.lease.revoke(&scene).await?;
            eventually(Duration::from_mins(4), async || {
                Ok(holder.lease.view(&scene).await?["state"] == "ended")
            })
            .await?;
            eprintln!("{count} large objects were gone after {:?}", start.elapsed());
            holder.is_ended(Remains::Nothing).await
        });
        let beside = beside.await;
        assert!(
            beside.ends.iter().all(|end| *end < Duration::from_secs(10)),
            "{beside:?}"
        );
        let log = scene.stack.postgres.log().unwrap();
        assert!(!log.contains("out of shared memory"), "somebody ran out of locks");
        assert!(log.len() < 2_000_000, "the server wrote {} bytes about them", log.len());
    }
}

/// S11: none of the fifty can be dropped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_quarantined_at_once_hold_up_neither_issue_nor_end_of_others() {
    for version in PgVersion::ALL {
        let scene = Scene::on(version, PgOptions::default()).await.unwrap();
        let beside = meanwhile(&scene, async {
            let mut holders = Vec::new();
            for number in 0..50 {
                let holder = Holder::new(&scene, number, "team", "10m").await?;
                let session = holder.connect(DATABASE).await?;
                let sql = format!(
                    "CREATE SCHEMA q{number}; GRANT ALL ON SCHEMA q{number} TO {}; SET ROLE NONE; \
                     CREATE FUNCTION q{number}.f() RETURNS int LANGUAGE sql RETURN 1; CREATE TABLE q{number}.t (i int DEFAULT q{number}.f())",
                    holder.lease.user
                );
                session.batch_execute(&sql).await?;
                holder.keep(session);
                holders.push(holder);
            }
            let revoked = holders.iter().map(|holder| holder.lease.revoke(&scene));
            futures_util::future::try_join_all(revoked).await?;
            for holder in &holders {
                holder
                    .is_ended(Remains::Quarantine(".f() in database analytics"))
                    .await?;
            }
            Ok(())
        });
        was_served(&beside.await);
    }
}

/// S11: what it says of another's role keeps that role from being dropped, for as long as it has not said it to the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_who_names_another_s_user_in_an_open_transaction_is_named_itself() {
    for version in PgVersion::ALL {
        let scene = Scene::on(version, PgOptions::default()).await.unwrap();
        let beside = meanwhile(&scene, async {
            let (mal, victim) = (
                Holder::new(&scene, 1, "team", "10m").await?,
                Holder::new(&scene, 2, "team", "10m").await?,
            );
            let session = mal.connect(DATABASE).await?;
            let name = format!(
                "SET ROLE NONE; BEGIN; SELECT lo_create(4711); GRANT SELECT ON LARGE OBJECT 4711 TO {}",
                victim.lease.user
            );
            session.batch_execute(&name).await?;
            mal.keep(session);
            victim.lease.revoke(&scene).await?;
            victim.is_ended(Remains::Quarantine(&mal.lease.user)).await?;
            mal.lease.revoke(&scene).await?;
            mal.is_ended(Remains::Nothing).await
        });
        was_served(&beside.await);
    }
}

/// What the server lets a holder do, and what keeps others from a lease until a DBA has removed it, is named to them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_who_stands_in_the_way_of_others_leases_is_seen_at_once() {
    for version in PgVersion::ALL {
        let scene = Scene::on(version, PgOptions::default()).await.unwrap();
        let holder = Holder::new(&scene, 1, "team", "10m").await.unwrap();
        let session = holder.connect(DATABASE).await.unwrap();
        let may = async |name: &str| Ok::<_, anyhow::Error>(scene.person(name, "dev").take("dev", "1m").await.is_ok());
        for (person, name, plant, remove) in [
            (
                "yan",
                "grp_raw_ro in database analytics",
                "CREATE TABLE analytics.fence (i int); CREATE POLICY barrier ON analytics.fence TO grp_raw_ro USING (true)",
                "DROP TABLE analytics.fence",
            ),
            ("zoe", "dbt_zoe", "CREATE SCHEMA dbt_zoe", "DROP SCHEMA dbt_zoe"),
        ] {
            assert!(may("zed").await.unwrap());
            session.batch_execute(plant).await.unwrap();
            assert!(!may(person).await.unwrap(), "{name}");
            let log = scene.stack.broker.log().unwrap();
            assert!(
                log.contains(name),
                "{name} is not in\n{}",
                scene.stack.broker.log_tail(5)
            );
            scene.stack.postgres.execute(DATABASE, remove).await.unwrap();
            assert!(may(person).await.unwrap(), "{name}");
        }
        holder.lease.revoke(&scene).await.unwrap();
        holder.is_ended(Remains::Nothing).await.unwrap();
    }
}
