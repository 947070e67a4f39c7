//! The contract of [`LeaseStore`]: one function per promise, each on an empty store of its own.

pub mod promises;

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use kdbt_api::lease::{Engine, LeaseId, TtlRange};
use kdbt_api::name::{ServerName, Slug};
use kdbt_api::{Timestamp, Ttl};
use kdbt_broker::audit::{Actor, AuditEvent};
use kdbt_broker::grant::{AccessTemplate, Grant, PolicyHash, ProfileTemplate, SchemaTemplate, Session, Target};
use kdbt_broker::lease::{EndReason, EngineId, Holder, Lease, LeaseEvent};
use kdbt_broker::store::{Booked, Booking, Change, Claimed, Due, Idempotency, LeaseStore, Limits};
use uuid::Uuid;

/// A store that can be closed and opened again.
#[async_trait]
pub trait StoreUnderTest: Send + Sync {
    /// Opens it; whatever was opened before is dropped by then.
    async fn open(&self) -> Box<dyn LeaseStore>;

    /// All audit events, oldest first.
    async fn audit(&self) -> Vec<AuditEvent>;

    /// Makes the row of a lease unreadable, as a hand or a disk does; its key, user and state stay.
    async fn damage(&self, lease: LeaseId);
}

/// Makes one test of every promise: `store_contract!(make)`, where `make()` gives a new [`StoreUnderTest`].
#[macro_export]
macro_rules! store_contract {
    ($make:path) => {
        $crate::store_contract!($make:
            a_lease_gets_the_lowest_free_slot
            a_slug_belongs_to_one_person_for_ever
            a_booking_that_is_refused_leaves_nothing_behind
            every_limit_counts_live_leases_only
            a_repeated_request_gets_the_same_lease
            a_failed_issue_frees_its_key
            an_end_asked_twice_is_one_audit_row
            created_while_ending_keeps_the_engine_id
            a_stale_claim_is_lost
            only_due_leases_are_claimed_and_soonest_first
            next_due_is_exact
            a_quarantined_lease_keeps_its_name_and_is_retried
            a_name_rests_and_blocks_nobody
            an_adopted_lease_brings_its_slug_home
            pages_are_newest_first_and_complete
            a_row_that_cannot_be_read_is_named_and_hides_no_other
            the_last_scan_of_a_database_is_the_one_noted_last
            health_counts_live_leases_and_names_the_head
            a_reopened_store_knows_all_it_knew
            bookers_at_once_share_no_name_and_pass_no_limit
        );
    };
    ($make:path: $($promise:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                $crate::contract::store::promises::$promise(&$make()).await;
            }
        )*
    };
}

/// The start of time in these tests.
pub const T0: i64 = 1_767_600_000;

const PROVISIONING_FOR: Duration = Duration::from_mins(1);

/// So many seconds after the start.
#[must_use]
pub fn at(seconds: i64) -> Timestamp {
    Timestamp::from_unix(T0 + seconds)
}

/// The one server of these tests.
#[must_use]
pub fn server() -> ServerName {
    "dwh".parse().unwrap()
}

/// A person.
#[must_use]
pub fn holder(name: &str) -> Holder {
    Holder {
        issuer: "https://sso.example/realms/data".into(),
        subject: format!("sub-{name}"),
        session: Some("sid".into()),
        display_name: name.into(),
        azp: "kdbt-cli".into(),
    }
}

fn grant(name: &str) -> Grant {
    let ttl = Ttl::from_secs(3600).unwrap();
    Grant {
        target: Target {
            name: "prod".parse().unwrap(),
            server: server(),
            engine: Engine::Postgres,
            database: "analytics".parse().unwrap(),
            tier: "prod".into(),
        },
        rules: vec!["analysts".parse().unwrap(), "marts".parse().unwrap()],
        policy: PolicyHash("ab".repeat(32)),
        access: AccessTemplate::Personal {
            schemas: vec![SchemaTemplate("dbt_{{username}}".into())],
            create_schemas: false,
            groups: BTreeSet::from(["reporting".parse().unwrap()]),
        },
        session: Session {
            connection_limit: 10,
            statement_timeout: Some(ttl),
            lock_timeout: None,
            idle_in_transaction_session_timeout: None,
            read_only: false,
            query_tag: None,
        },
        profile: ProfileTemplate {
            threads: 4,
            schema: SchemaTemplate("dbt_{{username}}".into()),
            search_path: Vec::new(),
            keepalives_idle: None,
            connect_timeout: Some(10),
            retries: None,
            warehouse: None,
        },
        ttl_range: TtlRange {
            min: ttl,
            default: ttl,
            max: ttl,
        },
        ttl,
        not_after: None,
        slug: Slug::from_name(name),
    }
}

/// An order of this person at this second, for an hour.
#[must_use]
pub fn booking(name: &str, seconds: i64) -> Booking {
    Booking {
        id: LeaseId::new(Uuid::now_v7()),
        holder: holder(name),
        grant: grant(name),
        now: at(seconds),
        ends_at: at(seconds + 3600),
        max_ends_at: at(seconds + 7200),
        reason: Some("to look".into()),
        owner_proof: None,
        limits: Limits {
            per_person: 4,
            per_rule: 1000,
            per_target: 1000,
        },
        idempotency: None,
    }
}

fn with_key(mut booking: Booking, key: &str, body: u8) -> Booking {
    booking.idempotency = Some(Idempotency {
        key: key.into(),
        body: [body; 32],
    });
    booking
}

/// Books a new lease.
pub async fn book(store: &dyn LeaseStore, booking: Booking) -> Lease {
    match store.book(booking).await.unwrap() {
        Booked::New(lease) => lease,
        Booked::Replay(lease) => panic!("{} is a replay", lease.id),
    }
}

fn change(lease: &Lease, event: LeaseEvent, seconds: i64) -> Change {
    Change::new(lease, event, Actor::Broker, at(seconds))
}

/// The end is asked for.
#[must_use]
pub fn end_due(reason: EndReason) -> LeaseEvent {
    LeaseEvent::EndDue { reason }
}

/// The user was made.
#[must_use]
pub fn created(oid: u32) -> LeaseEvent {
    LeaseEvent::Created {
        engine_id: EngineId::Oid(oid),
    }
}

async fn active(store: &dyn LeaseStore, booking: Booking) -> Lease {
    let seconds = booking.now.as_unix() - T0;
    let lease = book(store, booking).await;
    store.record(change(&lease, created(1), seconds)).await.unwrap()
}

async fn end(store: &dyn LeaseStore, lease: &Lease, reason: EndReason, seconds: i64) -> Lease {
    store.record(change(lease, end_due(reason), seconds)).await.unwrap();
    let dropped = LeaseEvent::Dropped { at: at(seconds) };
    store.record(change(lease, dropped, seconds)).await.unwrap()
}

async fn claim(store: &dyn LeaseStore, seconds: i64, limit: usize) -> Vec<Claimed> {
    let due = Due {
        server: &server(),
        now: at(seconds),
        limit,
        hold: Duration::from_secs(30),
        provisioning_for: PROVISIONING_FOR,
    };
    store.claim_due(due).await.unwrap()
}

async fn next_due(store: &dyn LeaseStore) -> Option<Timestamp> {
    store.next_due(&server(), PROVISIONING_FOR).await.unwrap()
}

/// What happened, but for the chain's own rows.
async fn actions(under: &dyn StoreUnderTest) -> Vec<String> {
    let events = under.audit().await;
    events
        .into_iter()
        .map(|event| event.action)
        .filter(|action| action != kdbt_broker::audit::chain::OPENED)
        .collect()
}
