//! What every warehouse promises.

use std::time::Duration;

use futures_util::future::join_all;
use kdbt_api::name::DbUsername;
use kdbt_broker::lease::{EngineId, UserRef};
use kdbt_broker::mark::{self, Mark};
use kdbt_broker::warehouse::{CreateError, EndOutcome, MarkedUser, Severity, Warehouse, WarehouseError};

use super::{Ground, Order};

/// Makes the user, and says how to refer to it.
async fn issue(ground: &dyn Ground, order: &Order) -> UserRef {
    let made = ground.warehouse().create_user(order.user.clone()).await;
    order.at(Some(made.unwrap()))
}

async fn end(warehouse: &dyn Warehouse, user: &UserRef) -> EndOutcome {
    let mut outcomes = warehouse.end_users(std::slice::from_ref(user)).await;
    outcomes.pop().unwrap().unwrap()
}

async fn listed(warehouse: &dyn Warehouse) -> Vec<MarkedUser> {
    let mut users = warehouse.marked_users().await.unwrap().users;
    users.sort_by(|one, other| one.rolname.cmp(&other.rolname));
    users
}

/// What the listing says of the one user that there is.
async fn only(warehouse: &dyn Warehouse) -> MarkedUser {
    let mut users = listed(warehouse).await;
    assert_eq!(users.len(), 1, "{users:?}");
    users.remove(0)
}

/// All that can be asked of a user finds nobody that is meant by this.
async fn is_nobody(warehouse: &dyn Warehouse, user: &UserRef) {
    let extended = warehouse.extend_user(user, jiff::Timestamp::now().into()).await;
    assert!(matches!(extended, Err(WarehouseError::Gone)), "{extended:?}");
    let cut = warehouse.end_sessions(user).await;
    assert!(matches!(cut, Err(WarehouseError::Gone)), "{cut:?}");
    assert_eq!(end(warehouse, user).await, EndOutcome::Dropped);
}

pub async fn a_user_logs_in_with_its_own_secret_only_and_has_its_roles_only(ground: &dyn Ground) {
    let orders = [ground.order("ada", 0), ground.order("ada", 1)];
    for order in &orders {
        issue(ground, order).await;
    }
    let [first, second] = &orders;
    for (order, other) in [(first, second), (second, first)] {
        let session = ground
            .log_in(order.name(), &order.secret)
            .await
            .expect("its own secret");
        let who = (order.name().to_string(), order.acts_as.clone());
        assert_eq!(session.who().await, who);
        assert_eq!(ground.roles_of(order.name()).await, order.roles);
        let stranger = ground.log_in(order.name(), &other.secret).await;
        assert!(stranger.is_none(), "the other's secret opens {}", order.name());
    }
    for order in &orders {
        assert_eq!(end(&*ground.warehouse(), &order.at(None)).await, EndOutcome::Dropped);
    }
}

pub async fn a_user_stands_in_the_listing_with_its_lease_its_mark_and_its_end(ground: &dyn Ground) {
    let order = ground.order("lis", 0);
    let at = issue(ground, &order).await;
    let warehouse = ground.warehouse();
    let before = ground.clock().await;
    let sweep = warehouse.marked_users().await.unwrap();
    let after = ground.clock().await;
    let [found] = &sweep.users[..] else {
        panic!("{:?}", sweep.users)
    };
    assert_eq!(found.username.as_ref(), Some(order.name()));
    assert_eq!(found.rolname.to_lowercase(), order.name().as_str());
    assert_eq!(Some(found.engine_id), at.engine_id);
    assert_eq!(found.native_end, Some(order.user.ends_at));
    assert!(found.can_login);
    assert_eq!(found.sessions, 0);
    let mark = found.mark.as_ref().unwrap();
    assert_eq!(mark.installation, *ground.installation());
    assert_eq!(mark.lease, order.user.lease);
    assert_eq!(mark.subject, order.user.subject);
    assert_eq!(mark.max_ends_at, order.user.max_ends_at);
    assert_eq!(mark.owner, order.user.access.owner());
    // It is read off the user, and made up nowhere.
    assert_eq!(ground.users().await[order.name()].mark, mark.to_string());
    // A clock that shows seconds may be a whole one behind.
    let second = Duration::from_secs(1);
    let millis = sweep.server_time.as_unix_millis();
    assert!(
        before.as_unix_millis() - 1000 <= millis && sweep.server_time <= after + second,
        "{millis} is not the server's time"
    );
    assert_eq!(end(&*warehouse, &at).await, EndOutcome::Dropped);
}

pub async fn two_brokers_of_one_installation_see_and_end_the_same_users(ground: &dyn Ground) {
    let orders = [ground.order("two", 0), ground.order("two", 1)];
    for order in &orders {
        issue(ground, order).await;
    }
    let (one, other) = (ground.warehouse(), ground.broker_of(ground.installation()));
    let seen = listed(&*one).await;
    assert_eq!(seen.len(), 2);
    assert_eq!(seen, listed(&*other).await);
    assert_eq!(end(&*other, &orders[0].at(None)).await, EndOutcome::Dropped);
    assert_eq!(listed(&*one).await, seen[1..]);
    assert_eq!(end(&*one, &orders[1].at(None)).await, EndOutcome::Dropped);
    assert_eq!(listed(&*other).await, []);
}

pub async fn a_taken_name_leaves_the_user_of_others_untouched(ground: &dyn Ground) {
    let (taken, beside) = (ground.order("bob", 0), ground.order("bob", 1));
    ground.make_by_hand(taken.name(), "the DBA's own").await;
    let before = ground.users().await;
    let warehouse = ground.warehouse();
    // Beside one that is fine, in one batch or two.
    let (refused, made) = tokio::join!(
        warehouse.create_user(taken.user.clone()),
        warehouse.create_user(beside.user.clone())
    );
    assert!(matches!(refused, Err(CreateError::NameTaken)), "{refused:?}");
    let beside = beside.at(Some(made.unwrap()));
    assert!(ground.log_in(taken.name(), &taken.secret).await.is_none());
    is_nobody(&*warehouse, &taken.at(None)).await;
    assert_eq!(end(&*warehouse, &beside).await, EndOutcome::Dropped);
    assert_eq!(ground.users().await, before);
}

pub async fn of_two_orders_for_one_name_one_is_made_and_the_other_is_told_that_it_is_taken(ground: &dyn Ground) {
    let (one, other) = (ground.warehouse(), ground.broker_of(ground.installation()));
    let orders = [ground.order("dup", 0), ground.order("dup", 0)];
    let made = tokio::join!(
        one.create_user(orders[0].user.clone()),
        other.create_user(orders[1].user.clone())
    );
    let (winner, loser) = match made {
        (Ok(_), Err(CreateError::NameTaken)) => (&orders[0], &orders[1]),
        (Err(CreateError::NameTaken), Ok(_)) => (&orders[1], &orders[0]),
        both => panic!("{both:?}"),
    };
    assert_eq!(only(&*one).await.mark.unwrap().lease, winner.user.lease);
    assert!(ground.log_in(winner.name(), &winner.secret).await.is_some());
    assert!(ground.log_in(loser.name(), &loser.secret).await.is_none());
    is_nobody(&*other, &loser.at(None)).await;
    assert_eq!(end(&*one, &winner.at(None)).await, EndOutcome::Dropped);
}

pub async fn a_create_whose_answer_is_lost_makes_one_user_or_says_that_it_may_have(ground: &dyn Ground) {
    let Some(broker) = ground.hard_of_hearing().await else {
        return;
    };
    let order = ground.order("lost", 0);
    let made = broker.warehouse.create_user(order.user.clone()).await;
    assert!((broker.missed)(), "it has heard everything: {made:?}");
    let found = only(&*ground.warehouse()).await;
    assert_eq!(found.mark.unwrap().lease, order.user.lease);
    match made {
        Ok(engine_id) => {
            assert_eq!(engine_id, found.engine_id);
            assert!(ground.log_in(order.name(), &order.secret).await.is_some());
            assert_eq!(ground.roles_of(order.name()).await, order.roles);
        }
        Err(error) => assert!(matches!(error, CreateError::Unknown(_)), "{error:?}"),
    }
    assert_eq!(end(&*broker.warehouse, &order.at(None)).await, EndOutcome::Dropped);
    assert!(ground.users().await.is_empty());
}

pub async fn a_user_whose_role_does_not_exist_is_not_left_behind(ground: &dyn Ground) {
    let order = ground.order_without_a_role("mis");
    let warehouse = ground.warehouse();
    let made = warehouse.create_user(order.user.clone()).await;
    match &made {
        Err(CreateError::Refused(_)) => assert!(ground.users().await.is_empty(), "refused, and made"),
        Err(CreateError::Unknown(_)) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(end(&*warehouse, &order.at(None)).await, EndOutcome::Dropped);
    assert!(ground.users().await.is_empty());
    assert!(ground.log_in(order.name(), &order.secret).await.is_none());
}

pub async fn a_late_order_is_refused_before_anything_is_sent(ground: &dyn Ground) {
    let mut order = ground.order("lat", 0);
    order.user.deadline = tokio::time::Instant::now();
    let refused = ground.warehouse().create_user(order.user.clone()).await;
    assert!(
        matches!(refused, Err(CreateError::Refused(WarehouseError::Unreachable(_)))),
        "{refused:?}"
    );
    assert!(ground.users().await.is_empty());
}

pub async fn an_extension_moves_the_end_that_every_broker_reads(ground: &dyn Ground) {
    let order = ground.order("ext", 0);
    let at = issue(ground, &order).await;
    let (one, other) = (ground.warehouse(), ground.broker_of(ground.installation()));
    let before = only(&*one).await;
    for minutes in [10, 5] {
        let later = order.user.ends_at + Duration::from_mins(minutes);
        one.extend_user(&at, later).await.unwrap();
        let found = only(&*other).await;
        assert_eq!(found.native_end, Some(later));
        let of = |user: &MarkedUser| Mark {
            ends_at: None,
            ..user.mark.clone().unwrap()
        };
        assert_eq!(of(&found), of(&before), "nothing else has moved");
    }
    assert!(ground.log_in(order.name(), &order.secret).await.is_some());
    assert_eq!(end(&*one, &at).await, EndOutcome::Dropped);
    is_nobody(&*one, &at).await;
    is_nobody(&*other, &order.at(None)).await;
}

pub async fn ending_sessions_leaves_the_login_working(ground: &dyn Ground) {
    let order = ground.order("kil", 0);
    let at = issue(ground, &order).await;
    let login = async || ground.log_in(order.name(), &order.secret).await.expect("a login");
    let (first, second) = (login().await, login().await);
    let warehouse = ground.warehouse();
    if let Some(ended) = warehouse.end_sessions(&at).await.unwrap() {
        assert_eq!(ended, 2);
        assert!(!first.goes_on().await && !second.goes_on().await);
    }
    assert!(login().await.goes_on().await);
    assert!(only(&*warehouse).await.can_login);
    assert_eq!(end(&*warehouse, &at).await, EndOutcome::Dropped);
    is_nobody(&*warehouse, &at).await;
}

pub async fn an_ended_user_has_no_session_and_its_secret_opens_nothing(ground: &dyn Ground) {
    for slot in [0, 1] {
        let order = ground.order("ida", slot);
        let at = issue(ground, &order).await;
        let session = ground.log_in(order.name(), &order.secret).await.expect("a login");
        assert!(session.goes_on().await);
        assert_eq!(end(&*ground.warehouse(), &at).await, EndOutcome::Dropped);
        assert!(!session.goes_on().await, "its session has outlived it");
        assert!(ground.log_in(order.name(), &order.secret).await.is_none());
        assert!(ground.users().await.is_empty());
    }
}

pub async fn an_end_can_be_asked_for_again_and_by_two_at_once(ground: &dyn Ground) {
    let (one, other) = (ground.warehouse(), ground.broker_of(ground.installation()));
    let never = ground.order("nil", 7);
    is_nobody(&*one, &never.at(None)).await;
    let orders = [ground.order("nil", 0), ground.order("nil", 1), ground.order("nil", 2)];
    let mut users = vec![never.at(None)];
    for order in &orders {
        users.push(issue(ground, order).await);
    }
    // The first of all is missing, and stops nobody behind it.
    let outcomes = one.end_users(&users[..2]).await;
    assert_eq!(outcomes.len(), 2);
    assert!(
        outcomes
            .iter()
            .all(|outcome| matches!(outcome, Ok(EndOutcome::Dropped)))
    );
    assert_eq!(ground.users().await.len(), 2);
    assert_eq!(end(&*one, &users[1]).await, EndOutcome::Dropped);
    is_nobody(&*other, &users[1]).await;
    // One may lose the race for a lock and say so; asked again it finds nobody.
    let both = tokio::join!(one.end_users(&users), other.end_users(&users));
    for (outcome, again) in both.0.into_iter().zip(both.1) {
        assert!(matches!(outcome, Ok(EndOutcome::Dropped)) || matches!(again, Ok(EndOutcome::Dropped)));
    }
    for user in &users {
        assert_eq!(end(&*other, user).await, EndOutcome::Dropped);
    }
    assert!(ground.users().await.is_empty());
}

pub async fn an_end_that_is_blocked_locks_out_and_succeeds_once_the_way_is_free(ground: &dyn Ground) {
    let order = ground.order("blo", 0);
    let at = issue(ground, &order).await;
    let warehouse = ground.warehouse();
    let session = ground.log_in(order.name(), &order.secret).await.expect("a login");
    if let Some(reason) = ground.obstruct(order.name()).await {
        let outcome = end(&*warehouse, &at).await;
        let EndOutcome::Blocked(objects) = outcome else {
            panic!("{outcome:?}")
        };
        assert!(objects.iter().any(|object| object.contains(&reason)), "{objects:?}");
        assert!(!session.goes_on().await, "it is locked out all the same");
        assert!(ground.log_in(order.name(), &order.secret).await.is_none());
        assert!(!only(&*warehouse).await.can_login);
        ground.unblock(order.name()).await;
    }
    assert_eq!(end(&*warehouse, &at).await, EndOutcome::Dropped);
    assert!(ground.users().await.is_empty());
}

/// S13.
pub async fn marks_of_others_and_stripped_and_forged_marks_are_neither_listed_nor_touched(ground: &dyn Ground) {
    let warehouse = ground.warehouse();
    let own = ground.installation().as_str();
    // A name that begins like ours is another one.
    let longer = format!("{own}-2");
    let other = ground.broker_of(&longer.parse().unwrap());
    let theirs = ground.order("mar", 0);
    let engine_id = other.create_user(theirs.user.clone()).await.unwrap();
    let mut strangers = vec![theirs.at(Some(engine_id)), theirs.at(None)];
    // What an administrator may have written, beside the lease that it would have to be.
    let forms: [fn(&str) -> String; 5] = [
        |_| String::new(),
        |mark| format!(" {mark}"),
        |mark| format!("see {mark}"),
        |mark| mark.to_uppercase(),
        |mark| mark.replace("kdbt/1 ", "kdbt/2 "),
    ];
    for (slot, form) in (1..).zip(forms) {
        let order = ground.order("mar", slot);
        ground.make_by_hand(order.name(), &form(&order.mark(own))).await;
        strangers.push(order.at(None));
    }
    // One of ours, until somebody strips it.
    let stripped = ground.order("mar", 6);
    strangers.push(issue(ground, &stripped).await);
    ground.write_mark(stripped.name(), "").await;

    let before = ground.users().await;
    assert_eq!(before.len(), 7);
    assert_eq!(listed(&*warehouse).await, []);
    for user in &strangers {
        is_nobody(&*warehouse, user).await;
    }
    assert_eq!(ground.users().await, before);
    assert!(ground.log_in(theirs.name(), &theirs.secret).await.is_some());

    // Neither do others touch ours.
    let ours = ground.order("mar", 8);
    let ours_at = issue(ground, &ours).await;
    assert_eq!(only(&*other).await.username.as_ref(), Some(theirs.name()));
    is_nobody(&*other, &ours_at).await;
    assert_eq!(only(&*warehouse).await.username.as_ref(), Some(ours.name()));
    assert_eq!(end(&*other, &strangers[0]).await, EndOutcome::Dropped);
    assert_eq!(end(&*warehouse, &ours_at).await, EndOutcome::Dropped);
}

/// S5.
pub async fn a_reused_name_is_never_touched_by_the_end_of_the_older_lease(ground: &dyn Ground) {
    let (older, newer) = (ground.order("reu", 0), ground.order("reu", 0));
    let older_at = issue(ground, &older).await;
    ground.drop_by_hand(older.name()).await;
    let newer_at = issue(ground, &newer).await;
    let before = ground.users().await;
    let warehouse = ground.warehouse();
    for user in [&older_at, &older.at(None)] {
        is_nobody(&*warehouse, user).await;
    }
    assert_eq!(ground.users().await, before);
    assert!(ground.log_in(newer.name(), &older.secret).await.is_none());
    assert!(ground.log_in(newer.name(), &newer.secret).await.is_some());
    assert_eq!(end(&*warehouse, &newer_at).await, EndOutcome::Dropped);
}

/// S5.
pub async fn a_renamed_user_is_ended_and_who_got_its_name_is_not(ground: &dyn Ground) {
    let (older, newer, another) = (ground.order("ren", 0), ground.order("ren", 0), ground.order("ren", 9));
    let older_at = issue(ground, &older).await;
    let session = ground.log_in(older.name(), &older.secret).await.expect("a login");
    ground.rename_by_hand(older.name(), another.name()).await;
    let warehouse = ground.warehouse();
    let found = only(&*warehouse).await;
    assert_eq!(found.username.as_ref(), Some(another.name()));
    assert_eq!(found.mark.unwrap().lease, older.user.lease);
    let newer_at = issue(ground, &newer).await;
    let mut expected = ground.users().await;
    assert_eq!(end(&*warehouse, &older_at).await, EndOutcome::Dropped);
    expected.remove(another.name());
    assert_eq!(ground.users().await, expected);
    assert!(!session.goes_on().await);
    assert!(ground.log_in(another.name(), &older.secret).await.is_none());
    assert!(ground.log_in(newer.name(), &newer.secret).await.is_some());
    assert_eq!(end(&*warehouse, &newer_at).await, EndOutcome::Dropped);
}

/// S5: the crash between the create and the record of its id.
pub async fn a_user_without_an_engine_id_is_ended_by_its_mark_only(ground: &dyn Ground) {
    let (order, another) = (ground.order("cra", 0), ground.order("cra", 0));
    issue(ground, &order).await;
    let before = ground.users().await;
    let warehouse = ground.warehouse();
    is_nobody(&*warehouse, &another.at(None)).await;
    assert_eq!(ground.users().await, before, "another lease's end touched it");
    assert_eq!(end(&*warehouse, &order.at(None)).await, EndOutcome::Dropped);
    assert!(ground.users().await.is_empty());
}

pub async fn a_damaged_mark_is_ended_only_while_the_user_bears_it(ground: &dyn Ground) {
    let order = ground.order("dam", 0);
    issue(ground, &order).await;
    let damaged = format!("{}what", mark::prefix(ground.installation()));
    ground.write_mark(order.name(), &damaged).await;
    let warehouse = ground.warehouse();
    let found = only(&*warehouse).await;
    assert!(found.mark.is_err(), "{found:?}");
    ground.write_mark(order.name(), "taken over by the DBA").await;
    let before = ground.users().await;
    assert_eq!(warehouse.end_marked(&found).await.unwrap(), EndOutcome::Dropped);
    assert_eq!(ground.users().await, before, "it bore our mark no more");
    ground.write_mark(order.name(), &damaged).await;
    assert_eq!(warehouse.end_marked(&found).await.unwrap(), EndOutcome::Dropped);
    assert!(ground.users().await.is_empty());
    assert_eq!(warehouse.end_marked(&found).await.unwrap(), EndOutcome::Dropped);
}

pub async fn looking_finds_nothing_wrong_and_changes_nothing(ground: &dyn Ground) {
    let order = ground.order("loo", 0);
    let at = issue(ground, &order).await;
    let before = ground.users().await;
    let warehouse = ground.warehouse();
    let findings = warehouse.check(&ground.needs()).await;
    let errors: Vec<_> = findings
        .iter()
        .filter(|finding| finding.severity == Severity::Error)
        .collect();
    assert!(errors.is_empty(), "{errors:#?}");
    assert!(!findings.is_empty(), "it has not looked");
    assert_eq!(ground.users().await, before);
    assert_eq!(ground.roles_of(order.name()).await, order.roles);
    assert_eq!(end(&*warehouse, &at).await, EndOutcome::Dropped);
}

pub async fn forty_two_leases_at_once_come_and_go(ground: &dyn Ground) {
    let warehouse = ground.warehouse();
    let orders: Vec<Order> = (0..42).map(|slot| ground.order("many", slot)).collect();
    let made = join_all(orders.iter().map(|order| warehouse.create_user(order.user.clone()))).await;
    let ids: Vec<EngineId> = made.into_iter().map(Result::unwrap).collect();
    let found = listed(&*warehouse).await;
    let names: Vec<&DbUsername> = found.iter().filter_map(|user| user.username.as_ref()).collect();
    assert_eq!(names.len(), 42);
    assert!(orders.iter().all(|order| names.contains(&order.name())));
    assert!(found.iter().all(|user| user.mark.is_ok() && user.can_login));
    let users: Vec<UserRef> = orders.iter().zip(ids).map(|(order, id)| order.at(Some(id))).collect();
    for outcome in warehouse.end_users(&users).await {
        assert_eq!(outcome.unwrap(), EndOutcome::Dropped);
    }
    assert_eq!(listed(&*warehouse).await, []);
    assert!(ground.users().await.is_empty());
}
