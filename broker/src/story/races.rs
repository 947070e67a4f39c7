//! Races that once went wrong, or that must not begin to.

use std::time::Duration;

use kdbt_api::Ttl;
use kdbt_api::lease::{LeaseStatus, RevocationRequest};
use kdbt_api::problem::ProblemCode;

use super::world::{Fault, POLICY, Role, World, order, person, policy};
use crate::audit::Actor;
use crate::end::request_end;
use crate::lease::{EndReason, EngineId};
use crate::server::Stop;
use crate::service::{Service as _, UseCaseError};
use crate::store::sqlite::{AuditFilter, audit_rows};
use crate::store::{LeaseFilter, Page};

fn code(error: &UseCaseError) -> Option<ProblemCode> {
    ProblemCode::from_code(&error.problem.code)
}

fn hours(count: u64) -> Ttl {
    format!("{count}h").parse().unwrap()
}

async fn world() -> World {
    let world = World::new();
    world.sweep().await.unwrap();
    world
}

fn everyone() -> Page {
    Page {
        after: None,
        limit: 500,
    }
}

#[tokio::test]
async fn who_says_stop_while_a_name_is_taken_gets_no_lease_under_the_next_name() {
    let world = world().await;
    world.warehouse.add(Role {
        name: "kdbt_ada_0".into(),
        comment: None,
        valid_until: None,
        can_login: true,
        sessions: 0,
        powerless: false,
    });
    let (broker, server) = (world.broker(), world.server());
    let stop = async move {
        let page = broker.store.leases(&LeaseFilter::default(), everyone()).await.unwrap();
        for lease in page.leases {
            let by_admin = EndReason::RevokedByAdmin;
            request_end(broker.store.as_ref(), &server, &lease, by_admin, Actor::Broker)
                .await
                .unwrap();
        }
    };
    world.warehouse.catalog.lock().unwrap().before_create = Some(Box::pin(stop));
    let ada = person("ada", &["dev"]);
    let error = world.issue(&ada).await.unwrap_err();
    assert_eq!(code(&error), Some(ProblemCode::Stopped));
    assert_eq!(world.roles().len(), 1, "the foreign role and no other");
}

#[tokio::test]
async fn a_key_is_free_again_when_the_policy_changed_during_its_issue() {
    let world = world().await;
    let broker = world.broker();
    let swap = async move {
        let narrower = policy(&POLICY.replace("grants: [raw]", "grants: [other]"));
        broker.policies.store(Some(narrower));
    };
    world.warehouse.catalog.lock().unwrap().before_create = Some(Box::pin(swap));
    let mut order = order();
    order.idempotency_key = Some("k".into());
    order.request.verifier = Some(verifier());
    let ada = person("ada", &["dev"]);
    let error = world.broker().issue(&ada, order.clone()).await.unwrap_err();
    assert_eq!(code(&error), Some(ProblemCode::Stopped));
    world.pass().await;
    let again = world.broker().issue(&ada, order).await.unwrap();
    assert!(!again.replay, "the same key never hands out the lease that was stopped");
    assert_eq!(again.view.lease.state, LeaseStatus::Active);
}

#[tokio::test]
async fn a_policy_that_was_replaced_makes_no_lease_active_not_even_for_a_moment() {
    let world = world().await;
    let broker = world.broker();
    let swap = async move {
        let narrower = policy(&POLICY.replace("grants: [raw]", "grants: [other]"));
        broker.policies.store(Some(narrower));
    };
    world.warehouse.catalog.lock().unwrap().before_create = Some(Box::pin(swap));
    let error = world.issue(&person("ada", &["dev"])).await.unwrap_err();
    assert_eq!(code(&error), Some(ProblemCode::Stopped));
    let path = world.path();
    let rows = audit_rows(&path, AuditFilter::default()).unwrap();
    let moves: Vec<String> = rows
        .filter_map(|row| Some(row.unwrap().1.details.get("to")?.as_str()?.to_owned()))
        .collect();
    assert_eq!(moves, ["ending"]);
    world.pass().await;
    assert_eq!(world.roles().len(), 0);
}

#[tokio::test]
async fn a_policy_that_was_replaced_renews_no_lease() {
    let world = world().await;
    let ada = person("ada", &["dev"]);
    let first = world.issue(&ada).await.unwrap().view.lease;
    world.clock.advance(Duration::from_mins(50));
    world.sweep().await.unwrap();
    let broker = world.broker();
    let swap = async move {
        let gone = policy(&POLICY.replace("realm_roles: [dev]", "realm_roles: [nobody]"));
        broker.policies.store(Some(gone));
    };
    let before_extend = |swap| world.warehouse.catalog.lock().unwrap().before_extend.push_back(swap);
    before_extend(Box::pin(swap));
    let error = world
        .broker()
        .renew(&ada, first.id, None, Some(hours(3)))
        .await
        .unwrap_err();
    assert_eq!(code(&error), Some(ProblemCode::PolicyDenied));
    assert_eq!(world.state(first.id).await.ends_at, first.ends_at);
}

fn verifier() -> kdbt_api::credential::ScramVerifier {
    kdbt_api::credential::ScramVerifier::derive(b"x", &[1; 16], kdbt_api::credential::Iterations::One)
}

#[tokio::test]
async fn of_two_renewals_at_once_none_moves_the_end_back() {
    let world = world().await;
    let ada = person("ada", &["dev"]);
    let id = world.issue(&ada).await.unwrap().view.lease.id;
    world.clock.advance(Duration::from_mins(50));
    world.sweep().await.unwrap();
    // The short one has decided, and stands before the server, while the long one comes and goes.
    let (broker, other) = (world.broker(), ada.clone());
    let ended = std::sync::Arc::new(std::sync::Mutex::new(None));
    let told = ended.clone();
    let long = async move {
        let answer = broker.renew(&other, id, None, Some(hours(3))).await;
        *told.lock().unwrap() = answer.ok().map(|lease| lease.ends_at);
    };
    world
        .warehouse
        .catalog
        .lock()
        .unwrap()
        .before_extend
        .push_back(Box::pin(long));
    world.broker().renew(&ada, id, None, Some(hours(1))).await.unwrap();
    let lease = world.state(id).await;
    let native = world.roles().first().unwrap().valid_until;
    assert_eq!(native, Some(lease.ends_at), "server and store agree");
    let promised = *ended.lock().unwrap();
    assert!(
        promised.is_none_or(|end| end <= lease.ends_at),
        "{promised:?} was promised"
    );
    let renewed = world.broker().renew(&ada, id, None, Some(hours(3))).await.unwrap();
    assert!(renewed.ends_at >= lease.ends_at);
}

#[tokio::test]
async fn a_revoked_user_that_cannot_be_ended_stops_issuing_long_before_its_own_end() {
    let world = world().await;
    revoked_in_vain(&world).await;
    world.sweep().await.unwrap();
    assert!(world.server().may_issue().is_err(), "it can still log in");
}

/// S3: on PostgreSQL 15 a holder can keep one backend busy for half an hour, and the row that NOLOGIN needs with it.
#[tokio::test]
async fn a_revoked_user_that_has_lost_all_rights_stops_issuing_for_nobody() {
    let world = world().await;
    let oid = revoked_in_vain(&world).await;
    let powerless = |is| {
        let mut catalog = world.warehouse.catalog.lock().unwrap();
        catalog.roles.get_mut(&oid).unwrap().powerless = is;
    };
    powerless(true);
    world.sweep().await.unwrap();
    assert_eq!(world.server().may_issue(), Ok(()));
    powerless(false);
    world.sweep().await.unwrap();
    assert_eq!(world.server().may_issue(), Err(Stop::Overdue(1)));
}

#[tokio::test]
async fn a_user_that_cannot_be_ended_nor_seen_any_more_stops_issuing_too() {
    let world = world().await;
    let oid = revoked_in_vain(&world).await;
    let mark = world
        .warehouse
        .catalog
        .lock()
        .unwrap()
        .roles
        .get_mut(&oid)
        .unwrap()
        .comment
        .take();
    world.sweep().await.unwrap();
    assert_eq!(world.server().may_issue(), Err(Stop::Overdue(1)));
    world
        .warehouse
        .catalog
        .lock()
        .unwrap()
        .roles
        .get_mut(&oid)
        .unwrap()
        .comment = mark;
    world.pass().await;
    world.sweep().await.unwrap();
    assert_eq!(world.server().may_issue(), Ok(()));
    assert!(world.roles().is_empty());
}

/// A lease whose end is refused ten times; says which role it has.
async fn revoked_in_vain(world: &World) -> u32 {
    let ada = person("ada", &["dev"]);
    let id = world.issue(&ada).await.unwrap().view.lease.id;
    let lease = world.state(id).await;
    let (broker, server) = (world.broker(), world.server());
    request_end(
        broker.store.as_ref(),
        &server,
        &lease,
        EndReason::RevokedByAdmin,
        Actor::Broker,
    )
    .await
    .unwrap();
    for _ in 0..10 {
        world.warehouse.catalog.lock().unwrap().faults.push_back(Fault::Refused);
        world.pass().await;
        world.warehouse.catalog.lock().unwrap().faults.clear();
        world.clock.advance(Duration::from_secs(31));
    }
    lease.engine_id.and_then(EngineId::oid).unwrap()
}

#[tokio::test]
async fn one_lease_on_a_server_that_is_configured_no_more_does_not_save_the_others() {
    let mut world = world().await;
    let ada = person("ada", &["dev"]);
    let first = world.issue(&ada).await.unwrap().view.lease.id;
    // A second server, whose lease is the newest, and which is gone from the config after a restart.
    let lake = POLICY.replace("server: dwh", "server: lake");
    let broker = world.broker();
    broker.policies.store(Some(policy(&lake)));
    let request = RevocationRequest {
        subject: Some("ada".into()),
        ..RevocationRequest::default()
    };
    {
        let server = world.server();
        let mut broker = std::sync::Arc::into_inner(broker_alone(&mut world, broker)).unwrap();
        broker.servers.insert("lake".parse().unwrap(), server);
        world.broker = Some(std::sync::Arc::new(broker));
    }
    let second = world.issue(&ada).await.unwrap().view.lease.id;
    world.restart();
    let admin = person("root", &["admin"]);
    let _ = world.broker().revoke_many(&admin, request).await;
    for id in [first, second] {
        assert!(
            matches!(world.state(id).await.state, crate::lease::LeaseState::Ending { .. }),
            "{id}"
        );
    }
}

/// The broker with no other owner.
fn broker_alone(
    world: &mut World,
    broker: std::sync::Arc<crate::broker::Broker>,
) -> std::sync::Arc<crate::broker::Broker> {
    world.broker = None;
    broker
}

#[tokio::test]
async fn a_lease_with_an_owner_proof_is_touched_by_nobody_without_it() {
    let world = world().await;
    let mut job = person("job", &["dev"]);
    job.session = None;
    let mut order = order();
    let proof = kdbt_api::credential::OwnerProof::from_secret("p".repeat(43).into());
    order.request.owner_proof = Some(proof.hash());
    let id = world.broker().issue(&job, order).await.unwrap().view.lease.id;
    for session in [None, Some("s".to_owned())] {
        job.session = session;
        let error = world.broker().revoke(&job, id, None).await.unwrap_err();
        assert_eq!(code(&error), Some(ProblemCode::NotFound));
    }
    job.session = None;
    assert!(world.broker().renew(&job, id, Some(proof), None).await.is_ok());
}

#[tokio::test]
async fn a_stray_that_the_sweep_has_ended_stops_no_issue() {
    let world = world().await;
    let ada = person("ada", &["dev"]);
    let id = world.issue(&ada).await.unwrap().view.lease.id;
    // A copy of the mark on another role.
    let comment = world.roles().first().unwrap().comment.clone();
    world.warehouse.add(Role {
        name: "kdbt_eve_0".into(),
        comment,
        valid_until: None,
        can_login: true,
        sessions: 1,
        powerless: false,
    });
    let report = world.sweep().await.unwrap();
    assert_eq!((report.ended, world.roles().len()), (1, 1));
    assert_eq!(world.server().may_issue(), Ok(()));
    assert_eq!(world.state(id).await.state, crate::lease::LeaseState::Active);
}

/// S14. Read the other way round, its user would be one that no lease explains.
#[tokio::test]
async fn a_lease_issued_between_the_catalog_read_and_the_store_read_is_not_ended() {
    let world = world().await;
    let broker = world.broker();
    let issued = std::sync::Arc::new(std::sync::Mutex::new(None));
    let told = issued.clone();
    let issue = async move {
        let ada = person("ada", &["dev"]);
        let lease = broker.issue(&ada, order()).await.unwrap().view.lease;
        *told.lock().unwrap() = Some(lease.id);
    };
    world.warehouse.catalog.lock().unwrap().after_look = Some(Box::pin(issue));
    let report = world.sweep().await.unwrap();
    assert_eq!((report.ended, report.vanished, report.adopted), (0, 0, 0));
    let id = issued.lock().unwrap().unwrap();
    assert_eq!(world.state(id).await.state, crate::lease::LeaseState::Active);
    let report = world.sweep().await.unwrap();
    assert_eq!((report.users, report.ended, report.vanished), (1, 0, 0));
    assert_eq!(world.roles().len(), 1);
}

/// I8: a person's lease is touched by nobody else, under whatever name; and by callers without a session only where
/// they prove that it is theirs.
#[tokio::test]
async fn a_lease_is_there_for_nobody_but_the_same_subject_of_the_same_issuer() {
    let world = world().await;
    let ada = person("ada", &["dev"]);
    let id = world.issue(&ada).await.unwrap().view.lease.id;
    let mut namesake = person("ada", &["dev"]);
    namesake.subject = "another".parse().unwrap();
    let mut elsewhere = person("ada", &["dev"]);
    elsewhere.issuer = "https://other".into();
    let mut in_capitals = person("ada", &["dev"]);
    in_capitals.subject = "ADA".parse().unwrap();
    let mut without_session = person("ada", &["dev"]);
    without_session.session = None;
    let broker = world.broker();
    for (who, reads) in [
        (namesake, false),
        (elsewhere, false),
        (in_capitals, false),
        (without_session, true),
    ] {
        assert_eq!(broker.lease(&who, id, None).await.is_ok(), reads, "{who:?}");
        for error in [
            broker.renew(&who, id, None, None).await.map(drop).unwrap_err(),
            broker.cancel(&who, id, None).await.map(drop).unwrap_err(),
            broker.revoke(&who, id, None).await.map(drop).unwrap_err(),
        ] {
            assert_eq!(code(&error), Some(ProblemCode::NotFound), "{who:?}");
        }
    }
    assert!(broker.renew(&ada, id, None, None).await.is_ok());
}

/// S26. The holder's own end leaves the name free for dbt's cache; after any other an old secret must have died first.
#[tokio::test]
async fn a_name_rests_after_an_end_for_cause_and_after_one_that_needed_two_tries() {
    let world = world().await;
    let ada = person("ada", &["dev"]);
    let end = async |reason: EndReason, fault: Option<Fault>| {
        let lease = world.state(world.issue(&ada).await.unwrap().view.lease.id).await;
        let store = world.broker().store.clone();
        request_end(store.as_ref(), &world.server(), &lease, reason, Actor::Broker)
            .await
            .unwrap();
        if let Some(fault) = fault {
            world.warehouse.catalog.lock().unwrap().faults.push_back(fault);
            world.pass().await;
            assert_eq!(world.roles().len(), 1);
            world.clock.advance(Duration::from_secs(31));
            world.sweep().await.unwrap();
        }
        world.pass().await;
        assert_eq!(world.roles().len(), 0);
        lease.username.to_string()
    };
    assert_eq!(end(EndReason::Revoked, None).await, "kdbt_ada_0");
    assert_eq!(end(EndReason::Revoked, Some(Fault::LostBefore)).await, "kdbt_ada_0");
    assert_eq!(end(EndReason::Revoked, Some(Fault::Blocked)).await, "kdbt_ada_1");
    assert_eq!(end(EndReason::RevokedByAdmin, None).await, "kdbt_ada_2");
    assert_eq!(end(EndReason::Revoked, None).await, "kdbt_ada_3");
    world.clock.advance(world.server().name_rests());
    world.sweep().await.unwrap();
    assert_eq!(end(EndReason::Revoked, None).await, "kdbt_ada_0");
}

#[tokio::test]
async fn a_lease_whose_row_cannot_be_read_stops_nobody_and_its_user_ends_in_its_own_time() {
    let world = world().await;
    let ada = world.issue(&person("ada", &["dev"])).await.unwrap().view.lease;
    let eve = world.issue(&person("eve", &["dev"])).await.unwrap().view.lease;
    world.damage(ada.id, "access = '{}'");
    world.damage(eve.id, "access = '{}'");
    let names = || -> Vec<String> { world.roles().into_iter().map(|role| role.name).collect() };
    for _ in 0..5 {
        let report = world.sweep().await.unwrap();
        assert_eq!(
            (report.unreadable, report.ended, report.adopted, report.dangerous),
            (2, 0, 0, 0)
        );
        world.clock.advance(Duration::from_mins(10));
    }
    world.sweep().await.unwrap();
    world.issue(&person("grace", &["dev"])).await.unwrap();
    assert_eq!(names(), ["kdbt_ada_0", "kdbt_eve_0", "kdbt_grace_0"]);
    // What the row still says counts: somebody wanted this one ended.
    world.damage(eve.id, "state = 'ending'");
    assert_eq!(world.sweep().await.unwrap().ended, 1);
    assert_eq!(names(), ["kdbt_ada_0", "kdbt_grace_0"]);
    world.clock.advance(Duration::from_mins(11));
    let report = world.sweep().await.unwrap();
    assert_eq!((report.unreadable, report.ended, report.dangerous), (2, 1, 0));
    assert_eq!(names(), ["kdbt_grace_0"]);
}

#[tokio::test]
async fn a_revocation_ends_all_that_can_be_read_and_says_that_there_is_more() {
    let world = world().await;
    let admin = person("adm", &["admin"]);
    let [ada, eve] = ["ada", "eve"].map(|name| person(name, &["dev"]));
    let damaged = world.issue(&ada).await.unwrap().view.lease;
    world.issue(&eve).await.unwrap();
    world.damage(damaged.id, "access = '{}'");
    let request = RevocationRequest {
        target: Some("dev".parse().unwrap()),
        ..RevocationRequest::default()
    };
    let error = world.broker().revoke_many(&admin, request).await.unwrap_err();
    assert_eq!(code(&error), Some(ProblemCode::Internal));
    world.pass().await;
    let left: Vec<String> = world.roles().into_iter().map(|role| role.name).collect();
    assert_eq!(left, ["kdbt_ada_0"]);
}

/// S13
#[tokio::test]
async fn a_second_broker_of_the_installation_is_noticed_by_the_first_and_a_lost_store_is_not_taken_for_one() {
    let mut first = world().await;
    let mut second = World::beside(&first);
    second.sweep().await.unwrap();
    let lease = second.issue(&person("ada", &["dev"])).await.unwrap().view.lease;
    let report = first.sweep().await.unwrap();
    assert_eq!((report.adopted, report.intruding), (1, 1));
    assert_eq!(first.sweep().await.unwrap().intruding, 0, "once each");
    assert_eq!(second.state(lease.id).await.state.status(), LeaseStatus::Active);
    first.lose_store();
    second.lose_store();
    for world in [&first, &second] {
        let report = world.sweep().await.unwrap();
        assert_eq!((report.adopted, report.intruding), (1, 0));
    }
}
