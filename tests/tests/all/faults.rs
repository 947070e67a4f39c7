//! The broker dies, freezes, is told to stop, loses its store, its server or its network, under load: nothing is left that
//! nobody knows of.

#[path = "faults/freezes.rs"]
mod freezes;
#[path = "faults/kills.rs"]
mod kills;
#[path = "faults/names.rs"]
mod names;
#[path = "faults/stops.rs"]
mod stops;
#[path = "faults/stores.rs"]
mod stores;
#[path = "faults/wires.rs"]
mod wires;

use kdbt_broker::failpoint::Point;
use kdbt_e2e::binaries::Binaries;

/// What nobody may find in a release.
fn testkit_words() -> impl Iterator<Item = &'static str> {
    let names = Point::ALL.iter().map(|point| point.name());
    names.chain(["KDBT_TESTKIT_FAILPOINTS", "KDBT_TESTKIT_CLOCK_OFFSET_FILE"])
}

fn contains(bytes: &[u8], word: &str) -> bool {
    bytes.windows(word.len()).any(|window| window == word.as_bytes())
}

#[test]
fn a_release_has_no_failpoints() {
    let tested = std::fs::read(&Binaries::shared().broker).unwrap();
    for word in testkit_words() {
        assert!(contains(&tested, word), "the search does not find {word} where it is");
    }
    // A release takes minutes to build.
    if std::env::var_os("KDBT_LONG").is_none() {
        return;
    }
    let release = std::fs::read(&Binaries::build_release().unwrap().broker).unwrap();
    for word in testkit_words() {
        assert!(!contains(&release, word), "the release holds {word}");
    }
}
