//! Random sequences of operations, with restarts in between, against a model of a few lines.

use std::collections::BTreeMap;

use kdbt_api::lease::LeaseId;
use kdbt_broker::audit::Actor;
use kdbt_broker::lease::{EndReason, Lease, LeaseEvent, LeaseState};
use kdbt_broker::store::{Booked, Change, Due, LeaseStore};
use kdbt_e2e::contract::store::{at, booking, created, end_due, server};
use proptest::prelude::*;

use super::{SqliteFile, audit};

#[derive(Debug, Clone)]
enum Step {
    /// This person asks.
    Book(u8),
    /// Something happens to one of the leases so far.
    Record(usize, LeaseEvent),
    /// The reaper comes by.
    Claim(usize),
    /// Time passes.
    Wait(i64),
    /// The broker restarts.
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let event = prop_oneof![
        Just(created(1)),
        Just(end_due(EndReason::Revoked)),
        Just(end_due(EndReason::IssueFailed)),
        Just(LeaseEvent::NameTaken { at: at(1) }),
        Just(LeaseEvent::Dropped { at: at(2) }),
        Just(LeaseEvent::EndFailed { code: "55P03".into() }),
        Just(LeaseEvent::Blocked {
            objects: vec!["table x".into()]
        }),
        Just(LeaseEvent::Retry),
        Just(LeaseEvent::Extended { ends_at: at(9000) }),
    ];
    let step = prop_oneof![
        6 => (0..3_u8).prop_map(Step::Book),
        12 => (any::<prop::sample::Index>(), event).prop_map(|(lease, event)| Step::Record(lease.index(1 << 16), event)),
        2 => (1..4_usize).prop_map(Step::Claim),
        2 => (1..3000_i64).prop_map(Step::Wait),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..60)
}

/// What must be so, computed from the answers alone.
#[derive(Default)]
struct Model {
    leases: BTreeMap<LeaseId, Lease>,
    moves: usize,
}

impl Model {
    /// Takes an answer in, and says whether the lease changed.
    fn see(&mut self, lease: &Lease) {
        let before = self.leases.insert(lease.id, lease.clone());
        if before.as_ref() != Some(lease) {
            self.moves += 1;
        }
        if let Some(before) = before {
            assert!(before.state.is_live() || before == *lease, "it left `ended`: {lease:?}");
        }
    }

    fn check(&self) {
        let live: Vec<_> = self.leases.values().filter(|lease| lease.state.is_live()).collect();
        let names: std::collections::BTreeSet<_> = live.iter().map(|lease| &lease.username).collect();
        assert_eq!(names.len(), live.len(), "a name is live twice");
    }
}

async fn run(steps: Vec<Step>) {
    let file = SqliteFile::new();
    let mut store = file.store();
    let mut model = Model::default();
    let mut now = 0;
    for step in steps {
        match step {
            Step::Book(person) => match store.book(booking(&format!("p{person}"), now)).await {
                Ok(Booked::New(lease)) => model.see(&lease),
                Ok(Booked::Replay(lease)) => panic!("{} had no key", lease.id),
                Err(_limit) => {}
            },
            Step::Record(index, event) => {
                let Some(lease) = model.leases.values().nth(index % model.leases.len().max(1)).cloned() else {
                    continue;
                };
                let expected = lease.state.clone().transition(&event);
                let change = Change::new(&lease, event, Actor::Broker, at(now));
                match (store.record(change).await, expected) {
                    (Ok(after), Ok(state)) => {
                        assert_eq!(after.state, state);
                        model.see(&after);
                    }
                    (Err(_), Err(_)) => {}
                    (got, expected) => panic!("{got:?} where the pure function says {expected:?}"),
                }
            }
            Step::Claim(limit) => {
                let due = Due {
                    server: &server(),
                    now: at(now),
                    limit,
                    hold: std::time::Duration::from_mins(1),
                    provisioning_for: std::time::Duration::from_mins(1),
                };
                for claimed in store.claim_due(due).await.unwrap() {
                    assert!(matches!(claimed.lease.state, LeaseState::Ending { .. }));
                    model.see(&claimed.lease);
                }
            }
            Step::Wait(seconds) => now += seconds,
            Step::Reopen => {
                drop(store);
                store = file.store();
            }
        }
        model.check();
    }
    for lease in model.leases.values() {
        assert_eq!(&store.lease(lease.id).await.unwrap(), lease);
    }
    let of_leases = audit(&file.path()).iter().filter(|event| event.lease.is_some()).count();
    assert_eq!(of_leases, model.moves, "one audit row per move, none lost, none twice");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_books_a_name_twice_leaves_ended_or_loses_an_audit_row(steps in steps()) {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(run(steps));
    }
}
