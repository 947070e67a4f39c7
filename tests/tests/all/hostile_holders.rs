//! Hostile holders: attacks by those who hold a lease of the running broker, during its life, at its end and after it.
//!
//! After each, nothing of the user is left, or it is locked out and what stands in the way is named; durable data and
//! roles and a bystander's session are what they were; and people beside have got and given back leases all the while.

#[path = "hostile_holders/against.rs"]
mod against;
#[path = "hostile_holders/attack.rs"]
mod attack;
#[path = "hostile_holders/deaf.rs"]
mod deaf;
#[path = "hostile_holders/grants.rs"]
mod grants;
#[path = "hostile_holders/holder.rs"]
mod holder;
#[path = "hostile_holders/itself.rs"]
mod itself;
#[path = "hostile_holders/objects.rs"]
mod objects;
#[path = "hostile_holders/scene.rs"]
mod scene;
#[path = "hostile_holders/sessions.rs"]
mod sessions;
#[path = "hostile_holders/starving.rs"]
mod starving;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use kdbt_e2e::postgres::{PgOptions, PgVersion};

use self::attack::Attack;
use self::holder::Holder;
use self::scene::{Beside, Scene, percentile};

/// How many holders attack at once.
const AT_ONCE: usize = 8;

fn attacks() -> impl Iterator<Item = &'static Attack> {
    let all = [itself::ATTACKS, grants::ATTACKS, objects::ATTACKS, sessions::ATTACKS];
    all.into_iter().flatten()
}

#[test]
fn there_are_sixty_attacks_and_more_each_with_a_sentence_of_its_own() {
    let mut sentences: Vec<&str> = attacks().map(|attack| attack.holder).collect();
    let count = sentences.len();
    sentences.sort_unstable();
    sentences.dedup();
    assert!(
        count >= 60 && sentences.len() == count,
        "{} of {count}",
        sentences.len()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_attack_of_a_holder_outlives_its_lease_or_harms_another_on_15() {
    survive_all(PgVersion::Pg15).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_attack_of_a_holder_outlives_its_lease_or_harms_another_on_18() {
    survive_all(PgVersion::Pg18).await;
}

async fn survive_all(version: PgVersion) {
    let settings = PgOptions::default().set("max_prepared_transactions", "20");
    let scene = Scene::on(version, settings.set("wal_level", "logical")).await.unwrap();
    let stop = AtomicBool::new(false);
    let all = async {
        let only = std::env::var("KDBT_TEST_ATTACK").unwrap_or_default();
        let runs: Vec<_> = attacks()
            .enumerate()
            .filter(|(_, attack)| attack.holder.contains(&only))
            .map(|(number, attack)| {
                let scene = &scene;
                async move {
                    let result = Holder::attacks(scene, number, attack).await;
                    result
                        .err()
                        .map(|error| format!("{number} the holder {}: {error:#}", attack.holder))
                }
            })
            .collect();
        let failed: Vec<Option<String>> = futures_util::stream::iter(runs)
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        stop.store(true, Ordering::Relaxed);
        failed.into_iter().flatten().collect::<Vec<_>>()
    };
    let (failed, beside) = tokio::join!(all, scene.beside(&stop));
    let unharmed = scene.is_unharmed().await;
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    unharmed.unwrap();
    was_served(&beside.unwrap());
}

/// Somebody beside was served all the time, and never had to wait for long.
#[track_caller]
fn was_served(beside: &Beside) {
    let (issue, end) = (percentile(&beside.issues, 99), percentile(&beside.ends, 99));
    eprintln!(
        "{} leases beside: p99 of issue {issue:?}, of end {end:?}",
        beside.issues.len()
    );
    assert!(beside.issues.len() >= 6, "{beside:?}");
    assert!(
        issue < Duration::from_secs(5) && end < Duration::from_secs(15),
        "{beside:?}"
    );
}
