//! The contract of [`Warehouse`]: one function per promise, each on ground of its own, whatever the engine.

pub mod postgres;
pub mod promises;
pub mod snowflake;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt as _;
use kdbt_api::Timestamp;
use kdbt_api::lease::LeaseId;
use kdbt_api::name::{DatabaseName, DbUsername, InstallationName, SchemaName, Slug};
use kdbt_broker::grant::{Access, Profile, Session};
use kdbt_broker::lease::{EngineId, SubjectHash, UserRef};
use kdbt_broker::mark::{self, Mark};
use kdbt_broker::warehouse::{Credential, Needs, NewUser, Warehouse};

/// What a promise needs of an engine, and nothing that only one engine has.
///
/// An installation of its own, on a server that others may use too. Names belong to the test alone.
#[async_trait]
pub trait Ground: Send + Sync {
    /// The driver under test.
    fn warehouse(&self) -> Arc<dyn Warehouse>;

    /// Whose users are ours.
    fn installation(&self) -> &InstallationName;

    /// A broker more on the same server.
    fn broker_of(&self, installation: &InstallationName) -> Arc<dyn Warehouse>;

    /// A broker more of ours, that does not hear what the server says to its first order; `None` if that cannot be had.
    async fn hard_of_hearing(&self) -> Option<HardOfHearing>;

    /// What a policy needs here, all of which is there.
    fn needs(&self) -> Needs;

    /// An order for one slot of a person, with a secret of its own. Not all slots have the same rights.
    fn order(&self, person: &str, slot: u16) -> Order;

    /// The same with a role that nobody has made.
    fn order_without_a_role(&self, person: &str) -> Order;

    /// Logs in as a lease's holder does; `None` if that is refused.
    async fn log_in(&self, user: &DbUsername, secret: &str) -> Option<Box<dyn OpenSession>>;

    /// Every user of this test, as its DBA sees it.
    async fn users(&self) -> BTreeMap<DbUsername, Standing>;

    /// The roles that a user was granted, as its DBA sees it.
    async fn roles_of(&self, user: &DbUsername) -> BTreeSet<String>;

    /// What the server's clock shows; some tell no less than seconds.
    async fn clock(&self) -> Timestamp;

    /// The DBA makes a user.
    async fn make_by_hand(&self, user: &DbUsername, mark: &str);

    /// The DBA writes another mark on a user; an empty one is none.
    async fn write_mark(&self, user: &DbUsername, mark: &str);

    /// The DBA gives a user another name.
    async fn rename_by_hand(&self, user: &DbUsername, to: &DbUsername);

    /// The DBA drops a user.
    async fn drop_by_hand(&self, user: &DbUsername);

    /// From now on a user cannot be dropped: what says so, in words that an operator gets to read; `None` if the engine
    /// knows no such thing.
    async fn obstruct(&self, user: &DbUsername) -> Option<String>;

    /// It can again.
    async fn unblock(&self, user: &DbUsername);

    /// Takes away what the test has left, however it went.
    async fn clear(&self);
}

/// A broker that misses an answer.
pub struct HardOfHearing {
    /// The driver.
    pub warehouse: Arc<dyn Warehouse>,
    /// Whether it has missed one by now.
    pub missed: Box<dyn Fn() -> bool + Send + Sync>,
}

/// What a lease's holder has open.
#[async_trait]
pub trait OpenSession: Send + Sync {
    /// The user that logged in, and the role that it acts as.
    async fn who(&self) -> (String, String);

    /// Whether it is still good for anything.
    async fn goes_on(&self) -> bool;
}

/// A user as its DBA sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// What stands where our marks stand.
    pub mark: String,
    /// All else that a touch would change.
    pub rest: String,
}

/// A user to be made, and what it must turn out to be.
#[derive(Debug, Clone)]
pub struct Order {
    /// What is ordered.
    pub user: NewUser,
    /// What its holder logs in with.
    pub secret: String,
    /// What it acts as.
    pub acts_as: String,
    /// What it is granted, and no more.
    pub roles: BTreeSet<String>,
}

impl Order {
    /// The name.
    pub fn name(&self) -> &DbUsername {
        &self.user.username
    }

    /// How the store would refer to it.
    pub fn at(&self, engine_id: Option<EngineId>) -> UserRef {
        user_ref(&self.user, engine_id)
    }

    /// The mark that an installation would write on it.
    pub fn mark(&self, installation: &str) -> String {
        let mark = Mark {
            installation: installation.parse().unwrap(),
            lease: self.user.lease,
            max_ends_at: self.user.max_ends_at,
            subject: self.user.subject.clone(),
            owner: self.user.access.owner(),
            ends_at: None,
        };
        mark.to_string()
    }
}

/// How the store would refer to it.
pub fn user_ref(user: &NewUser, engine_id: Option<EngineId>) -> UserRef {
    UserRef {
        lease: user.lease,
        username: user.username.clone(),
        engine_id,
        owner: user.access.owner(),
        database: Some(user.database.clone()),
    }
}

/// A user of an hour that may be extended to two.
fn new_user(
    slug: &Slug,
    slot: u16,
    credential: Credential,
    access: Access,
    database: DatabaseName,
    schema: SchemaName,
) -> NewUser {
    let now = jiff::Timestamp::now().into();
    let later = |secs| Timestamp::whole_second(now) + Duration::from_secs(secs);
    NewUser {
        lease: LeaseId::new(uuid::Uuid::now_v7()),
        subject: SubjectHash::of("https://sso.test", slug.as_str()),
        username: DbUsername::new(slug, slot),
        credential,
        database,
        access,
        session: Session {
            connection_limit: 8,
            statement_timeout: None,
            lock_timeout: None,
            idle_in_transaction_session_timeout: None,
            read_only: false,
            query_tag: None,
        },
        profile: Profile {
            threads: 4,
            schema,
            search_path: vec![],
            keepalives_idle: None,
            connect_timeout: None,
            retries: None,
            warehouse: None,
        },
        ends_at: later(3600),
        max_ends_at: later(7200),
        deadline: tokio::time::Instant::now() + Duration::from_secs(20),
    }
}

/// Holds a driver to one promise. Afterwards no user bears our mark, whoever looks; and the ground is left as it was.
pub async fn hold(ground: &dyn Ground, promise: impl Future<Output = ()>) {
    let kept = AssertUnwindSafe(async {
        promise.await;
        let found = ground.warehouse().marked_users().await.unwrap();
        assert!(found.users.is_empty(), "left behind: {:?}", found.users);
        let ours = mark::prefix(ground.installation());
        let left = ground.users().await;
        assert!(
            left.values().all(|user| !user.mark.starts_with(&ours)),
            "left behind, and not listed: {left:?}"
        );
    });
    let kept = kept.catch_unwind().await;
    ground.clear().await;
    if let Err(broken) = kept {
        resume_unwind(broken);
    }
}

/// Makes one test of every promise: `warehouse_contract!(make)`, where `make().await` gives a new [`Ground`]. With
/// `warehouse_contract!(make, "…")` the tests are run only when they are asked for, for that reason.
#[macro_export]
macro_rules! warehouse_contract {
    ($make:path) => { $crate::warehouse_contract!(of $make, []); };
    ($make:path, $reason:literal) => { $crate::warehouse_contract!(of $make, [#[ignore = $reason]]); };
    (of $make:path, $attributes:tt) => {
        $crate::warehouse_contract!(each $make, $attributes:
            a_user_logs_in_with_its_own_secret_only_and_has_its_roles_only
            a_user_stands_in_the_listing_with_its_lease_its_mark_and_its_end
            two_brokers_of_one_installation_see_and_end_the_same_users
            a_taken_name_leaves_the_user_of_others_untouched
            of_two_orders_for_one_name_one_is_made_and_the_other_is_told_that_it_is_taken
            a_create_whose_answer_is_lost_makes_one_user_or_says_that_it_may_have
            a_user_whose_role_does_not_exist_is_not_left_behind
            a_late_order_is_refused_before_anything_is_sent
            an_extension_moves_the_end_that_every_broker_reads
            ending_sessions_leaves_the_login_working
            an_ended_user_has_no_session_and_its_secret_opens_nothing
            an_end_can_be_asked_for_again_and_by_two_at_once
            an_end_that_is_blocked_locks_out_and_succeeds_once_the_way_is_free
            marks_of_others_and_stripped_and_forged_marks_are_neither_listed_nor_touched
            a_reused_name_is_never_touched_by_the_end_of_the_older_lease
            a_renamed_user_is_ended_and_who_got_its_name_is_not
            a_user_without_an_engine_id_is_ended_by_its_mark_only
            a_damaged_mark_is_ended_only_while_the_user_bears_it
            looking_finds_nothing_wrong_and_changes_nothing
            forty_two_leases_at_once_come_and_go
        );
    };
    (each $make:path, $attributes:tt: $($promise:ident)*) => {
        $( $crate::warehouse_contract!(one $make, $attributes, $promise); )*
    };
    (one $make:path, [$($attribute:tt)*], $promise:ident) => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        $($attribute)*
        async fn $promise() {
            use $crate::contract::warehouse::{hold, promises};
            let ground = $make().await;
            hold(&ground, promises::$promise(&ground)).await;
        }
    };
}
