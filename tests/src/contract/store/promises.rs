//! The promises of a lease store, one function each.

use std::collections::BTreeSet;
use std::time::Duration;

use kdbt_api::lease::{LeaseId, LeaseStatus};
use kdbt_api::name::{DbUsername, ServerName};
use kdbt_broker::audit::{Actor, AuditEvent};
use kdbt_broker::grant::SchemaTemplate;
use kdbt_broker::lease::{EndReason, EngineId, LeaseEvent, LeaseState};
use kdbt_broker::mark::Mark;
use kdbt_broker::residue::{Difference, Kind, Residue};
use kdbt_broker::store::{
    Adopted, BookError, Booked, Claimed, Due, LeaseFilter, LeaseStore, Limits, Page, Scan, StoreError,
};
use kdbt_broker::warehouse::MarkedUser;
use uuid::Uuid;

use super::{
    PROVISIONING_FOR, StoreUnderTest, actions, active, at, book, booking, change, claim, created, end, end_due, holder,
    next_due, server, with_key,
};

pub async fn a_lease_gets_the_lowest_free_slot(under: &dyn StoreUnderTest) {
    let store = under.open().await;
    let mut leases = Vec::new();
    for _ in 0..3 {
        leases.push(book(&*store, booking("Ada", 0)).await);
    }
    let names: Vec<_> = leases.iter().map(|lease| lease.username.to_string()).collect();
    assert_eq!(names, ["kdbt_ada_0", "kdbt_ada_1", "kdbt_ada_2"]);
    end(&*store, &leases[1], EndReason::Revoked, 1).await;
    let again = book(&*store, booking("Ada", 2)).await;
    assert_eq!(again.username.as_str(), "kdbt_ada_1");
    assert_eq!(again.state, LeaseState::Provisioning);
    let schemas = &again.issue().unwrap().grant.profile.schema;
    assert_eq!(schemas.as_str(), "dbt_ada", "the grant is rendered with the slug");
}

pub async fn a_slug_belongs_to_one_person_for_ever(under: &dyn StoreUnderTest) {
    let store = under.open().await;
    let first = book(&*store, booking("ada", 0)).await;
    end(&*store, &first, EndReason::Revoked, 1).await;
    let mut other = booking("ada", 2);
    other.holder.subject = "another ada".into();
    let second = book(&*store, other.clone()).await;
    let suffix = &second.subject_hash().as_str()[..6].to_owned();
    assert_eq!(second.username.as_str(), format!("kdbt_ada_{suffix}_0"));
    drop(store);
    let store = under.open().await;
    assert_eq!(book(&*store, booking("ada", 3)).await.username.as_str(), "kdbt_ada_0");
    other.id = LeaseId::new(Uuid::now_v7());
    assert_eq!(book(&*store, other).await.username.slug(), second.username.slug());
    // Who changes their name keeps the slug.
    let mut renamed = booking("Lovelace", 4);
    renamed.holder = holder("ada");
    assert_eq!(book(&*store, renamed).await.username.slug().as_str(), "ada");
    let registered = actions(under).await;
    assert_eq!(
        registered.iter().filter(|action| *action == "slug-registered").count(),
        2
    );
}

pub async fn a_booking_that_is_refused_leaves_nothing_behind(under: &dyn StoreUnderTest) {
    let store = under.open().await;
    let mut invalid = with_key(booking("ada", 0), "k", 1);
    invalid.grant.profile.schema = SchemaTemplate("pg_{{username}}".into());
    assert!(matches!(store.book(invalid.clone()).await, Err(BookError::Name(_))));
    assert_eq!(actions(under).await, [""; 0]);
    assert!(matches!(store.lease(invalid.id).await, Err(StoreError::NotFound(id)) if id == invalid.id));
    // Neither slug nor key is taken.
    let mut other = with_key(booking("ada", 0), "k", 2);
    other.holder.subject = "another ada".into();
    assert_eq!(book(&*store, other).await.username.as_str(), "kdbt_ada_0");
    book(&*store, with_key(booking("ada", 0), "k", 2)).await;
    assert_eq!(actions(under).await.len(), 4, "two slugs and two leases");
}

pub async fn every_limit_counts_live_leases_only(under: &dyn StoreUnderTest) {
    let store = under.open().await;
    let limited = |per_person, per_rule, per_target| {
        let mut booking = booking("ada", 0);
        booking.limits = Limits {
            per_person,
            per_rule,
            per_target,
        };
        booking
    };
    let lease = active(&*store, booking("ada", 0)).await;
    let refused = store.book(limited(1, 9, 9)).await;
    assert!(matches!(refused, Err(BookError::PersonLimit(1))), "{refused:?}");
    let refused = store.book(limited(9, 1, 9)).await;
    assert!(matches!(&refused, Err(BookError::RuleLimit(rule)) if rule.as_str() == "analysts"));
    let refused = store.book(limited(9, 9, 1)).await;
    assert!(matches!(refused, Err(BookError::TargetLimit)), "{refused:?}");
    let other = book(&*store, booking("grace", 0)).await;
    end(&*store, &other, EndReason::Revoked, 1).await;
    end(&*store, &lease, EndReason::Revoked, 1).await;
    book(&*store, limited(1, 1, 1)).await;
}

pub async fn a_repeated_request_gets_the_same_lease(under: &dyn StoreUnderTest) {
    let store = under.open().await;
    let lease = active(&*store, with_key(booking("ada", 0), "k", 1)).await;
    let rows = actions(under).await.len();
    let again = store.book(with_key(booking("ada", 1), "k", 1)).await.unwrap();
    assert!(
        matches!(again, Booked::Replay(same) if same == lease),
        "as it stands by now"
    );
    let other = store.book(with_key(booking("ada", 1), "k", 2)).await;
    assert!(matches!(other, Err(BookError::KeyReused)));
    assert_eq!(actions(under).await.len(), rows);
    // Another client of the same person has keys of its own.
    let mut other = with_key(booking("ada", 1), "k", 2);
    other.holder.azp = "kdbt-ci".into();
    book(&*store, other).await;
    end(&*store, &lease, EndReason::Revoked, 10).await;
    let day = 24 * 3600;
    let kept = store.book(with_key(booking("ada", 9 + day), "k", 1)).await.unwrap();
    assert!(matches!(kept, Booked::Replay(same) if same.id == lease.id));
    let fresh = book(&*store, with_key(booking("ada", 10 + day), "k", 2)).await;
    assert_ne!(fresh.id, lease.id);
}

pub async fn a_failed_issue_frees_its_key(under: &dyn StoreUnderTest) {
    let store = under.open().await;
    for event in [
        end_due(EndReason::IssueFailed),
        end_due(EndReason::PolicyChanged),
        LeaseEvent::NameTaken { at: at(1) },
    ] {
        let lease = book(&*store, with_key(booking("ada", 0), "k", 1)).await;
        store.record(change(&lease, event, 1)).await.unwrap();
    }
    // Seen after the user was there, but before anybody was told of it.
    let lease = active(&*store, with_key(booking("ada", 0), "k", 1)).await;
    end(&*store, &lease, EndReason::PolicyChanged, 1).await;
    let lease = active(&*store, with_key(booking("ada", 0), "k", 1)).await;
    end(&*store, &lease, EndReason::Revoked, 1).await;
    let again = store.book(with_key(booking("ada", 2), "k", 1)).await.unwrap();
    assert!(matches!(again, Booked::Replay(_)), "it was delivered before it ended");
}

pub async fn an_end_asked_twice_is_one_audit_row(under: &dyn StoreUnderTest) {
    let store = under.open().await;
    let lease = active(&*store, booking("ada", 0)).await;
    let once = store
        .record(change(&lease, end_due(EndReason::Revoked), 1))
        .await
        .unwrap();
    let twice = store
        .record(change(&lease, end_due(EndReason::RevokedByAdmin), 2))
        .await
        .unwrap();
    assert_eq!(once, twice);
    assert_eq!(twice.end_reason, Some(EndReason::Revoked), "the first reason stays");
    let ended = end(&*store, &lease, EndReason::Expired, 3).await;
    assert_eq!(ended.state, LeaseState::Ended { at: at(3) });
    end(&*store, &lease, EndReason::Expired, 4).await;
    let booked = [
        "slug-registered",
        "lease-booked",
        "lease-created",
        "lease-end-due",
        "lease-dropped",
    ];
    assert_eq!(actions(under).await, booked);
    let illegal = store
        .record(change(&lease, LeaseEvent::Extended { ends_at: at(9) }, 5))
        .await;
    assert!(matches!(illegal, Err(StoreError::Illegal(_))));
    assert_eq!(actions(under).await, booked, "what is refused is not written");
}

pub async fn created_while_ending_keeps_the_engine_id(under: &dyn StoreUnderTest) {
    let store = under.open().await;
    let lease = book(&*store, booking("ada", 0)).await;
    store
        .record(change(&lease, end_due(EndReason::RevokedByAdmin), 1))
        .await
        .unwrap();
    let late = store.record(change(&lease, created(42), 2)).await.unwrap();
    assert_eq!(late.state, LeaseState::Ending { attempts: 0 });
    assert_eq!(late.engine_id, Some(EngineId::Oid(42)));
    assert_eq!(store.lease(lease.id).await.unwrap(), late);
    store
        .record(change(&lease, LeaseEvent::Dropped { at: at(3) }, 3))
        .await
        .unwrap();
    let too_late = store.record(change(&lease, created(43), 4)).await;
    assert!(matches!(too_late, Err(StoreError::Illegal(_))));
}

pub async fn a_stale_claim_is_lost(under: &dyn StoreUnderTest) {
    let store = under.open().await;
    let lease = active(&*store, booking("ada", 0)).await;
    let first = claim(&*store, 3600, 9).await.remove(0);
    assert!(claim(&*store, 3629, 9).await.is_empty(), "it is held");
    let second = claim(&*store, 3630, 9).await.remove(0);
    let outcome = |claimed: &Claimed| {
        let mut change = change(&lease, LeaseEvent::Dropped { at: at(3631) }, 3631);
        change.claim = Some(claimed.claim);
        change
    };
    assert!(matches!(
        store.record(outcome(&first)).await,
        Err(StoreError::ClaimLost)
    ));
    assert!(store.lease(lease.id).await.unwrap().state.is_live());
    store.record(outcome(&second)).await.unwrap();
    assert!(matches!(
        store.record(outcome(&second)).await,
        Err(StoreError::ClaimLost)
    ));
}

pub async fn only_due_leases_are_claimed_and_soonest_first(under: &dyn StoreUnderTest) {
    let store = under.open().await;
    let late = active(&*store, booking("ada", 100)).await;
    let soon = active(&*store, booking("grace", 50)).await;
    let stuck = book(&*store, booking("alan", 3600)).await;
    let asked = active(&*store, booking("kurt", 3610)).await;
    store
        .record(change(&asked, end_due(EndReason::Revoked), 3620))
        .await
        .unwrap();
    let far = active(&*store, booking("emmy", 3611)).await;
    assert!(claim(&*store, 3619, 9).await.is_empty());
    let claimed = claim(&*store, 3700, 2).await;
    let ids: Vec<_> = claimed.iter().map(|claimed| claimed.lease.id).collect();
    assert_eq!(ids, [asked.id, soon.id], "no more than asked");
    let rest = claim(&*store, 3700, 9).await;
    let ids: Vec<_> = rest.iter().map(|claimed| claimed.lease.id).collect();
    assert_eq!(ids, [stuck.id, late.id]);
    for (lease, reason) in [
        (&claimed[0].lease, EndReason::Revoked),
        (&claimed[1].lease, EndReason::Expired),
        (&rest[0].lease, EndReason::IssueAbandoned),
        (&rest[1].lease, EndReason::Expired),
    ] {
        assert_eq!(lease.state, LeaseState::Ending { attempts: 0 });
        assert_eq!(lease.end_reason, Some(reason));
        assert_eq!(&store.lease(lease.id).await.unwrap(), lease);
    }
    let other: ServerName = "other".parse().unwrap();
    let due = Due {
        server: &other,
        now: at(9999),
        limit: 9,
        hold: Duration::ZERO,
        provisioning_for: PROVISIONING_FOR,
    };
    assert!(store.claim_due(due).await.unwrap().is_empty());
    assert_eq!(store.lease(far.id).await.unwrap().state, LeaseState::Active);
}

pub async fn next_due_is_exact(under: &dyn StoreUnderTest) {
    let store = under.open().await;
    assert_eq!(next_due(&*store).await, None);
    let lease = book(&*store, booking("ada", 0)).await;
    assert_eq!(next_due(&*store).await, Some(at(60)), "abandoned then");
    store.record(change(&lease, created(1), 1)).await.unwrap();
    assert_eq!(next_due(&*store).await, Some(at(3600)));
    let longer = LeaseEvent::Extended { ends_at: at(5000) };
    store.record(change(&lease, longer, 2)).await.unwrap();
    assert_eq!(next_due(&*store).await, Some(at(5000)));
    let claimed = claim(&*store, 5000, 1).await.remove(0);
    assert_eq!(next_due(&*store).await, Some(at(5030)), "when the claim runs out");
    let mut failed = change(&lease, LeaseEvent::EndFailed { code: "55P03".into() }, 5001);
    failed.claim = Some(claimed.claim);
    failed.not_before = Some(at(5010));
    let failed = store.record(failed).await.unwrap();
    assert_eq!(failed.state, LeaseState::Ending { attempts: 1 });
    assert_eq!(failed.last_error.as_deref(), Some("55P03"));
    assert_eq!(next_due(&*store).await, Some(at(5010)));
    store
        .record(change(&lease, end_due(EndReason::Revoked), 5002))
        .await
        .unwrap();
    assert_eq!(next_due(&*store).await, Some(at(5010)), "asking again moves nothing");
    store
        .record(change(&lease, LeaseEvent::Dropped { at: at(5003) }, 5003))
        .await
        .unwrap();
    assert_eq!(next_due(&*store).await, None);
}

pub async fn a_quarantined_lease_keeps_its_name_and_is_retried(under: &dyn StoreUnderTest) {
    let store = under.open().await;
    let lease = active(&*store, booking("ada", 0)).await;
    let claimed = claim(&*store, 3600, 1).await.remove(0);
    let objects = vec!["table analytics.x".to_owned()];
    let mut blocked = change(
        &lease,
        LeaseEvent::Blocked {
            objects: objects.clone(),
        },
        3601,
    );
    blocked.claim = Some(claimed.claim);
    blocked.not_before = Some(at(3700));
    let blocked = store.record(blocked).await.unwrap();
    assert_eq!(
        blocked.state,
        LeaseState::Quarantined {
            attempts: 1,
            blocked_by: objects
        }
    );
    assert_eq!(store.lease(lease.id).await.unwrap(), blocked);
    assert_eq!(
        active(&*store, booking("ada", 3602)).await.username.as_str(),
        "kdbt_ada_1"
    );
    assert!(claim(&*store, 3661, 9).await.is_empty());
    let retried = claim(&*store, 3700, 1).await.remove(0);
    assert_eq!(retried.lease.id, lease.id);
    assert_eq!(retried.lease.state, LeaseState::Ending { attempts: 1 });
}

pub async fn a_name_rests_and_blocks_nobody(under: &dyn StoreUnderTest) {
    let store = under.open().await;
    let one = |seconds| {
        let mut booking = booking("ada", seconds);
        booking.limits.per_person = 1;
        booking
    };
    let lease = active(&*store, one(0)).await;
    let mut due = change(&lease, end_due(EndReason::RevokedByAdmin), 10);
    due.rest_until = Some(at(75));
    store.record(due).await.unwrap();
    store
        .record(change(&lease, LeaseEvent::Dropped { at: at(11) }, 11))
        .await
        .unwrap();
    let next = book(&*store, one(74)).await;
    assert_eq!(
        next.username.as_str(),
        "kdbt_ada_1",
        "the first rests, and the limit counts live ones"
    );
    end(&*store, &next, EndReason::Revoked, 74).await;
    assert_eq!(book(&*store, one(75)).await.username.as_str(), "kdbt_ada_0");

    // A foreign role holds the name: the next one is tried.
    let taken = book(&*store, booking("grace", 100)).await;
    let mut event = change(&taken, LeaseEvent::NameTaken { at: at(100) }, 100);
    event.rest_until = Some(at(1000));
    let ended = store.record(event).await.unwrap();
    assert_eq!(
        (ended.state.is_live(), ended.end_reason),
        (false, Some(EndReason::IssueFailed))
    );
    assert_eq!(
        book(&*store, booking("grace", 100)).await.username.as_str(),
        "kdbt_grace_1"
    );
}

pub async fn an_adopted_lease_brings_its_slug_home(under: &dyn StoreUnderTest) {
    let store = under.open().await;
    let username: DbUsername = "kdbt_lovelace_3".parse().unwrap();
    let mark = Mark {
        installation: "acme".parse().unwrap(),
        lease: LeaseId::new(Uuid::now_v7()),
        max_ends_at: at(9000),
        subject: holder("ada").subject_hash(),
        owner: Some("kdbt__own_lovelace".parse().unwrap()),
        ends_at: None,
    };
    let found = MarkedUser {
        username: Some(username.clone()),
        rolname: username.to_string(),
        engine_id: EngineId::Oid(77),
        mark: Ok(mark.clone()),
        native_end: Some(at(500)),
        can_login: true,
        sessions: 1,
        powerless: false,
    };
    let Adopted::New(lease) = store.adopt(&server(), &found, at(500), at(1)).await.unwrap() else {
        panic!("there was no such lease");
    };
    assert_eq!((&lease.username, lease.engine_id), (&username, Some(EngineId::Oid(77))));
    assert_eq!(
        (lease.ends_at, lease.max_ends_at),
        (at(500), at(500)),
        "it cannot be renewed"
    );
    assert_eq!((&lease.target, lease.owner()), (&None, mark.owner.clone()));
    assert_eq!(store.lease(lease.id).await.unwrap(), lease);
    assert_eq!(next_due(&*store).await, Some(at(500)));
    let known = store.adopt(&server(), &found, at(900), at(2)).await.unwrap();
    assert!(matches!(known, Adopted::Known(same) if same == lease));
    assert_eq!(actions(under).await, ["lease-adopted"]);
    // Somebody else does not get the name, and the person does, next to the adopted one, which counts.
    let mut other = booking("lovelace", 3);
    other.holder.subject = "another".into();
    assert_ne!(book(&*store, other).await.username.slug().as_str(), "lovelace");
    assert_eq!(
        book(&*store, booking("ada", 3)).await.username.as_str(),
        "kdbt_lovelace_0"
    );
    let mut third = booking("ada", 4);
    third.limits.per_person = 2;
    assert!(matches!(store.book(third).await, Err(BookError::PersonLimit(2))));
    // Only marks that can be read.
    let mut unread = found;
    unread.mark = Err("the mark's max cannot be read".into());
    assert!(store.adopt(&server(), &unread, at(900), at(2)).await.is_err());
}

pub async fn pages_are_newest_first_and_complete(under: &dyn StoreUnderTest) {
    let store = under.open().await;
    let mut ids = Vec::new();
    for n in 0..7 {
        let name = if n % 2 == 0 { "ada" } else { "grace" };
        let mut booking = booking(name, n);
        booking.limits.per_person = 9;
        ids.insert(0, book(&*store, booking).await.id);
    }
    let mut seen = Vec::new();
    let mut after = None;
    loop {
        let page = store
            .leases(&LeaseFilter::default(), Page { after, limit: 3 })
            .await
            .unwrap();
        assert!(page.leases.len() <= 3);
        seen.extend(page.leases.iter().map(|lease| lease.id));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(seen, ids);
    let lease = store.lease(ids[0]).await.unwrap();
    end(&*store, &lease, EndReason::Revoked, 9).await;
    let count = async |filter: LeaseFilter| {
        let page = Page {
            after: None,
            limit: 500,
        };
        store.leases(&filter, page).await.unwrap().leases.len()
    };
    let ada = holder("ada");
    let all = LeaseFilter::default;
    for (filter, expected) in [
        (
            LeaseFilter {
                live_since: Some(at(9)),
                ..all()
            },
            7,
        ),
        (
            LeaseFilter {
                live_since: Some(at(10)),
                ..all()
            },
            6,
        ),
        (
            LeaseFilter {
                holder: Some((ada.issuer, ada.subject.clone())),
                ..all()
            },
            4,
        ),
        (
            LeaseFilter {
                holder: Some(("https://other".into(), ada.subject.clone())),
                ..all()
            },
            0,
        ),
        (
            LeaseFilter {
                subject: Some(ada.subject),
                ..all()
            },
            4,
        ),
        (
            LeaseFilter {
                server: Some(server()),
                ..all()
            },
            7,
        ),
        (
            LeaseFilter {
                server: Some("other".parse().unwrap()),
                ..all()
            },
            0,
        ),
        (
            LeaseFilter {
                target: Some("prod".parse().unwrap()),
                ..all()
            },
            7,
        ),
        (
            LeaseFilter {
                rule: Some("marts".parse().unwrap()),
                ..all()
            },
            7,
        ),
        (
            LeaseFilter {
                rule: Some("none-such".parse().unwrap()),
                ..all()
            },
            0,
        ),
        (
            LeaseFilter {
                states: vec![LeaseStatus::Ended],
                ..all()
            },
            1,
        ),
        (
            LeaseFilter {
                states: vec![LeaseStatus::Provisioning, LeaseStatus::Active],
                server: Some(server()),
                ..all()
            },
            6,
        ),
    ] {
        assert_eq!(count(filter.clone()).await, expected, "{filter:?}");
    }
}

pub async fn a_row_that_cannot_be_read_is_named_and_hides_no_other(under: &dyn StoreUnderTest) {
    let store = under.open().await;
    let mut leases = Vec::new();
    for (n, name) in (0..).zip(["ada", "grace", "eve"]) {
        leases.insert(0, active(&*store, booking(name, n)).await);
    }
    under.damage(leases[1].id).await;
    for limit in 1..=4 {
        let (mut readable, mut unreadable, mut after) = (Vec::new(), Vec::new(), None);
        loop {
            let page = Page { after, limit };
            let page = store.leases(&LeaseFilter::default(), page).await.unwrap();
            assert!(page.leases.len() + page.unreadable.len() <= limit);
            readable.extend(page.leases);
            unreadable.extend(page.unreadable);
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(readable, [leases[0].clone(), leases[2].clone()]);
        let [row] = &unreadable[..] else {
            panic!("{unreadable:?}")
        };
        let known = (row.row.as_str(), &row.username, row.engine_id, row.status);
        let damaged = &leases[1];
        let was = (
            &*damaged.id.to_string(),
            &Some(damaged.username.clone()),
            damaged.engine_id,
            Some(LeaseStatus::Active),
        );
        assert_eq!(known, was);
        assert!(!row.what.is_empty());
    }
    let error = store.lease(leases[1].id).await.unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
    // Its name is not given away, and everybody else's leases go on.
    assert_ne!(book(&*store, booking("grace", 5)).await.username, leases[1].username);
    end(&*store, &leases[0], EndReason::Revoked, 6).await;
}

pub async fn the_last_scan_of_a_database_is_the_one_noted_last(under: &dyn StoreUnderTest) {
    let store = under.open().await;
    let scan = |database: &str, seconds, name: &str| Scan {
        server: server(),
        database: database.parse().unwrap(),
        at: at(seconds),
        differences: BTreeSet::from([Difference::Lost(Residue {
            kind: Kind::RowPolicy,
            name: name.into(),
            owner: "dbt_finance".into(),
            fingerprint: "ab".into(),
        })]),
    };
    let (first, second, other) = (scan("a", 1, "p"), scan("a", 2, "q \"\u{202e}"), scan("b", 1, "p"));
    assert_eq!(store.last_scan(&server(), &first.database).await.unwrap(), None);
    store.note_scan(first, Vec::new()).await.unwrap();
    store.note_scan(other.clone(), Vec::new()).await.unwrap();
    let found = AuditEvent {
        at: at(2),
        action: "residue-found".into(),
        actor: Actor::Broker,
        lease: None,
        username: None,
        server: Some(server()),
        target: None,
        details: serde_json::Map::new(),
    };
    store.note_scan(second.clone(), vec![found]).await.unwrap();
    drop(store);
    let store = under.open().await;
    for noted in [second, other] {
        let last = store.last_scan(&server(), &noted.database).await.unwrap();
        assert_eq!(last, Some(noted));
    }
    let elsewhere = "elsewhere".parse().unwrap();
    assert_eq!(store.last_scan(&elsewhere, &"a".parse().unwrap()).await.unwrap(), None);
    assert_eq!(actions(under).await, ["residue-found"]);
}

pub async fn health_counts_live_leases_and_names_the_head(under: &dyn StoreUnderTest) {
    let store = under.open().await;
    book(&*store, booking("ada", 0)).await;
    let lease = active(&*store, booking("grace", 0)).await;
    active(&*store, booking("grace", 0)).await;
    let health = store.health().await.unwrap();
    let live = [
        (server(), LeaseStatus::Active, 2),
        (server(), LeaseStatus::Provisioning, 1),
    ];
    assert_eq!(health.live, live);
    let (row, hash) = health.audit_head.unwrap();
    assert_eq!(hash.len(), 64);
    end(&*store, &lease, EndReason::Revoked, 1).await;
    let later = store.health().await.unwrap().audit_head.unwrap();
    assert_eq!(later.0, row + 2, "one row per move");
    assert_ne!(later.1, hash);
}

pub async fn a_reopened_store_knows_all_it_knew(under: &dyn StoreUnderTest) {
    let store = under.open().await;
    let mut with_proof = booking("ada", 0);
    with_proof.owner_proof = Some(kdbt_api::credential::ProofHash::from_bytes([9; 32]));
    with_proof.holder.session = None;
    let lease = active(&*store, with_proof).await;
    let claimed = claim(&*store, 3600, 1).await.remove(0);
    let event = AuditEvent {
        at: at(1),
        action: "policy-activated".into(),
        actor: Actor::Operator,
        lease: None,
        username: None,
        server: None,
        target: None,
        details: serde_json::Map::new(),
    };
    store.audit(event.clone()).await.unwrap();
    drop(store);
    let store = under.open().await;
    assert_eq!(store.lease(lease.id).await.unwrap(), claimed.lease);
    assert!(under.audit().await.contains(&event));
    // Whether the claim outlives its holder is the store's own affair; it runs out in any case.
    let again = claim(&*store, 7200, 1).await.remove(0);
    let mut dropped = change(&lease, LeaseEvent::Dropped { at: at(7201) }, 7201);
    dropped.claim = Some(again.claim);
    store.record(dropped).await.unwrap();
}

pub async fn bookers_at_once_share_no_name_and_pass_no_limit(under: &dyn StoreUnderTest) {
    let store: std::sync::Arc<dyn LeaseStore> = under.open().await.into();
    let mut bookers = tokio::task::JoinSet::new();
    for _ in 0..40 {
        let store = store.clone();
        bookers.spawn(async move { store.book(booking("ada", 0)).await });
    }
    let outcomes = bookers.join_all().await;
    let names: BTreeSet<_> = outcomes
        .iter()
        .filter_map(|outcome| match outcome {
            Ok(Booked::New(lease)) => Some(lease.username.to_string()),
            Ok(Booked::Replay(_)) | Err(_) => None,
        })
        .collect();
    assert_eq!(names.len(), 4);
    let refused = outcomes.iter().filter(|o| matches!(o, Err(BookError::PersonLimit(4))));
    assert_eq!(refused.count(), 36);
}
