//! Random stories: orders, renewals, revocations, faults, deaths, lost stores, people who drop roles by hand. However
//! it goes, in the end no user of ours is left, and until then nobody lost a lease without a reason.

use std::collections::BTreeMap;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use kdbt_api::Timestamp;
use kdbt_api::lease::{LeaseId, RevocationRequest};
use proptest::prelude::*;

use super::world::{Fault, POLICY, Role, World, person, policy};
use crate::clock::Clock as _;
use crate::lease::LeaseState;
use crate::service::Service as _;
use crate::store::{LeaseFilter, Page};

#[derive(Debug, Clone)]
enum Step {
    Issue { who: u8, dies_after: Option<u8> },
    Renew { which: usize, dies_after: Option<u8> },
    Revoke { which: usize, dies_after: Option<u8> },
    RevokeAll { who: u8, dies_after: Option<u8> },
    Pass { dies_after: Option<u8> },
    Sweep { dies_after: Option<u8> },
    TimePasses { minutes: u64 },
    Faults(Vec<Fault>),
    StoreLost,
    PolicySwapped,
    DroppedByHand { which: usize },
    RenamedByHand { which: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let dies = || prop_oneof![3 => Just(None), 2 => (0_u8..14).prop_map(Some)];
    let fault = prop_oneof![
        Just(Fault::LostBefore),
        Just(Fault::LostAfter),
        Just(Fault::Refused),
        Just(Fault::Blocked)
    ];
    let step = prop_oneof![
        6 => (0_u8..3, dies()).prop_map(|(who, dies_after)| Step::Issue { who, dies_after }),
        3 => (0_usize..8, dies()).prop_map(|(which, dies_after)| Step::Renew { which, dies_after }),
        3 => (0_usize..8, dies()).prop_map(|(which, dies_after)| Step::Revoke { which, dies_after }),
        1 => (0_u8..3, dies()).prop_map(|(who, dies_after)| Step::RevokeAll { who, dies_after }),
        3 => dies().prop_map(|dies_after| Step::Pass { dies_after }),
        3 => dies().prop_map(|dies_after| Step::Sweep { dies_after }),
        4 => prop_oneof![Just(0), Just(1), Just(2), 0_u64..90].prop_map(|minutes| Step::TimePasses { minutes }),
        3 => prop::collection::vec(fault, 1..3).prop_map(Step::Faults),
        1 => Just(Step::StoreLost),
        1 => Just(Step::PolicySwapped),
        1 => (0_usize..8).prop_map(|which| Step::DroppedByHand { which }),
        1 => (0_usize..8).prop_map(|which| Step::RenamedByHand { which }),
    ];
    prop::collection::vec(step, 1..30)
}

/// Polls a use case so many times and drops it then, as a death between two of its awaits does.
async fn dying<T>(work: impl Future<Output = T>, after: Option<u8>) -> Option<T> {
    let mut work = pin!(work);
    let mut left = after;
    std::future::poll_fn(|context| {
        if left == Some(0) {
            return Poll::Ready(None);
        }
        left = left.map(|left| left - 1);
        let polled = work.as_mut().poll(context).map(Some);
        if left == Some(0) && polled.is_pending() {
            return Poll::Ready(None);
        }
        polled
    })
    .await
}

struct Story {
    world: World,
    /// Leases that were handed out and have no reason to end before this.
    promised: BTreeMap<LeaseId, Timestamp>,
    /// All that were ever handed out, and to whom.
    known: Vec<(LeaseId, u8)>,
    wide: bool,
}

impl Story {
    #[expect(clippy::too_many_lines, reason = "one arm per step")]
    async fn step(&mut self, step: Step) {
        let world = &self.world;
        let broker = world.broker();
        let mut died = false;
        match step {
            Step::Issue { who, dies_after } => {
                let identity = person(["ada", "bob", "eve"][usize::from(who)], &["dev"]);
                match dying(world.issue(&identity), dies_after).await {
                    Some(Ok(issued)) => {
                        let lease = issued.view.lease;
                        self.promised.insert(lease.id, lease.ends_at);
                        self.known.push((lease.id, who));
                    }
                    Some(Err(_)) => {}
                    None => died = true,
                }
            }
            Step::Renew { which, dies_after } => {
                if let Some((id, who)) = self.known.get(which).copied() {
                    let identity = person(["ada", "bob", "eve"][usize::from(who)], &["dev"]);
                    let work = broker.renew(&identity, id, None, None);
                    match dying(work, dies_after).await {
                        Some(Ok(lease)) => {
                            if let Some(promised) = self.promised.get_mut(&id) {
                                assert!(lease.ends_at >= *promised, "a renewal moved the end back");
                                *promised = lease.ends_at;
                            }
                        }
                        Some(Err(_)) => {}
                        None => died = true,
                    }
                }
            }
            Step::Revoke { which, dies_after } => {
                if let Some((id, who)) = self.known.get(which).copied() {
                    let identity = person(["ada", "bob", "eve"][usize::from(who)], &["dev"]);
                    self.promised.remove(&id);
                    let reaper = async {
                        world.server().rung().await;
                        world.pass().await;
                        std::future::pending::<()>().await;
                    };
                    let work = tokio::time::timeout(Duration::from_millis(20), async {
                        tokio::select! {
                            _ = broker.revoke(&identity, id, None) => {}
                            () = reaper => {}
                        }
                    });
                    died = dying(work, dies_after).await.is_none();
                }
            }
            Step::RevokeAll { who, dies_after } => {
                let subject = ["ada", "bob", "eve"][usize::from(who)];
                let request = RevocationRequest {
                    subject: Some(subject.into()),
                    ..RevocationRequest::default()
                };
                let theirs = self.known.iter().filter(|(_, holder)| *holder == who);
                for (id, _) in theirs {
                    self.promised.remove(id);
                }
                let admin = person("root", &["admin"]);
                died = dying(broker.revoke_many(&admin, request), dies_after).await.is_none();
            }
            Step::Pass { dies_after } => died = dying(world.pass(), dies_after).await.is_none(),
            Step::Sweep { dies_after } => died = dying(world.sweep(), dies_after).await.is_none(),
            Step::TimePasses { minutes } => world.clock.advance(Duration::from_secs(minutes * 60 + 1)),
            Step::Faults(faults) => world.warehouse.catalog.lock().unwrap().faults.extend(faults),
            Step::StoreLost => {
                drop(broker);
                self.world.lose_store();
                return;
            }
            Step::PolicySwapped => {
                self.wide = !self.wide;
                let other = POLICY.replace("grants: [raw]", "grants: [other]");
                let text = if self.wide { POLICY } else { &other };
                broker.policies.store(Some(policy(text)));
            }
            Step::DroppedByHand { which } => {
                if let Some((id, _)) = self.known.get(which) {
                    let mut catalog = world.warehouse.catalog.lock().unwrap();
                    catalog.roles.retain(|_, role| role.lease() != Some(*id));
                    self.promised.remove(id);
                }
            }
            Step::RenamedByHand { which } => {
                if let Some((id, _)) = self.known.get(which) {
                    let mut catalog = world.warehouse.catalog.lock().unwrap();
                    let role = catalog.roles.values_mut().find(|role| role.lease() == Some(*id));
                    if let Some(role) = role {
                        role.name = format!("renamed_{}", role.name);
                    }
                    // A lost store cannot adopt what has no lease's name.
                    self.promised.remove(id);
                }
            }
        }
        if died {
            drop(broker);
            self.world.restart();
        }
    }

    fn nobody_lost_a_lease_without_a_reason(&self) {
        let now = self.world.clock.now();
        let roles = self.world.roles();
        for (id, ends_at) in self.promised.iter().filter(|(_, ends_at)| **ends_at > now) {
            let alive = roles.iter().any(|role| {
                role.lease() == Some(*id) && role.can_login && role.valid_until.is_some_and(|until| until >= *ends_at)
            });
            assert!(alive, "{id} was promised until {ends_at}, it is {now}");
        }
    }

    /// After a sweep and a pass without faults, who can log in has a lease that says so.
    async fn who_can_log_in_has_a_lease(&self) {
        self.world.warehouse.catalog.lock().unwrap().faults.clear();
        self.world.sweep().await.unwrap();
        self.world.pass().await;
        self.world.sweep().await.unwrap();
        let now = self.world.clock.now();
        for role in self.world.roles() {
            let Some(id) = role.lease() else { continue };
            let until = role.valid_until.unwrap();
            let lease = self.world.broker().store.lease(id).await;
            let explained = lease.is_ok_and(|lease| lease.state.is_live());
            assert!(explained, "{} can log in until {until}, it is {now}", role.name);
        }
    }

    async fn everything_ends(&self) {
        for _ in 0..40 {
            self.world.clock.advance(Duration::from_hours(1));
            self.world.sweep().await.unwrap();
            self.world.pass().await;
        }
        let left = self.world.roles();
        assert!(left.iter().all(|role| role.lease().is_none()), "{left:?}");
        assert_eq!(left.len(), 2, "foreign roles were touched");
        let page = Page {
            after: None,
            limit: 500,
        };
        let leases = self.world.broker().store.leases(&LeaseFilter::default(), page).await;
        for lease in leases.unwrap().leases {
            assert!(matches!(lease.state, LeaseState::Ended { .. }), "{lease:?}");
        }
        assert_eq!(self.world.server().may_issue(), Ok(()));
    }
}

async fn tell(steps: Vec<Step>) {
    let mut story = Story {
        world: World::new(),
        promised: BTreeMap::new(),
        known: Vec::new(),
        wide: true,
    };
    for (name, comment) in [
        ("kdbt_ada_0", None),
        ("kdbt_bob_1", Some("kdbt/1 other mark".to_owned())),
    ] {
        story.world.warehouse.add(Role {
            name: name.into(),
            comment,
            valid_until: None,
            can_login: true,
            sessions: 1,
            powerless: false,
        });
    }
    story.world.sweep().await.unwrap();
    for step in steps {
        story.step(step).await;
        story.nobody_lost_a_lease_without_a_reason();
    }
    story.who_can_log_in_has_a_lease().await;
    story.nobody_lost_a_lease_without_a_reason();
    story.everything_ends().await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_user_ends_and_none_too_early_whatever_happens(steps in steps()) {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(tell(steps));
    }
}
