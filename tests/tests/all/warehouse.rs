//! What the PostgreSQL driver does beyond the contract of `Warehouse`: sessions, locks, what a lease owns and what it
//! plants; on the oldest and the newest server that we support.

use std::time::{Duration, Instant};

use kdbt_api::credential::Iterations;
use kdbt_api::name::RoleName;
use kdbt_broker::grant::{Access, Owner};
use kdbt_broker::warehouse::{CreateError, EndOutcome, Severity, Warehouse, WarehouseError};
use kdbt_e2e::contract::warehouse::postgres::{Lease, World, own_role};
use kdbt_e2e::fault::stalled::Stalled;
use kdbt_e2e::postgres::{PgOptions, PgVersion};
use tokio_postgres::Client;

/// Each case once per version.
macro_rules! on_both {
    ($($name:ident: $world:expr;)*) => {
        mod on_15 { $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(&($world)(super::PgVersion::Pg15).await).await; }
        )* }
        mod on_18 { $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(&($world)(super::PgVersion::Pg18).await).await; }
        )* }
    };
}

async fn with_prepared(version: PgVersion) -> World {
    World::own(version, &PgOptions::default().set("max_prepared_transactions", "10")).await
}

mod cases {
    use super::{PgVersion, World, with_prepared};
    pub(super) async fn shared(version: PgVersion) -> World {
        World::shared(version).await
    }
    pub(super) async fn small(version: PgVersion) -> World {
        let options = super::PgOptions::default();
        World::own(
            version,
            &options
                .set("max_connections", "40")
                .set("max_locks_per_transaction", "10"),
        )
        .await
    }
    pub(super) async fn prepared(version: PgVersion) -> World {
        with_prepared(version).await
    }
}

on_both! {
    a_login_acts_as_its_owner_with_either_number_of_iterations: super::cases::shared;
    a_reader_reads_and_cannot_create: super::cases::shared;
    a_person_gets_a_schema_that_outlives_the_lease: super::cases::shared;
    somebody_elses_role_or_schema_is_never_adopted: super::cases::shared;
    an_end_takes_idle_and_open_sessions_with_it: super::cases::shared;
    a_session_that_holds_its_own_row_is_ended: super::cases::shared;
    prepared_transactions_do_not_outlive_the_lease: super::cases::prepared;
    what_is_owned_in_two_databases_goes_to_the_owner_role: super::cases::shared;
    a_hand_over_that_fails_loses_nothing: super::cases::shared;
    a_readers_function_is_dropped_and_never_handed_over: super::cases::shared;
    an_owner_role_renamed_does_not_stop_the_end: super::cases::shared;
    a_login_asleep_after_its_checks_is_ended: super::cases::shared;
    a_login_stalled_in_its_password_exchange_is_refused: super::cases::shared;
    a_full_lock_table_does_not_save_the_lease: super::cases::small;
    a_holder_who_fills_the_lock_table_keeps_nobody_from_a_lease: super::cases::small;
    a_role_made_anew_with_the_same_mark_is_never_touched: super::cases::shared;
    the_broker_has_the_right_to_end_sessions_from_the_start_and_keeps_it: super::cases::shared;
    no_lease_reaches_a_role_that_can_log_in: super::cases::shared;
    a_marked_user_that_nobody_knows_is_ended: super::cases::shared;
    the_doctor_finds_nothing_after_the_bootstrap: super::cases::shared;
    leases_that_could_fill_the_server_together_are_a_warning: super::cases::shared;
    an_owner_role_that_is_a_member_of_a_database_s_owner_is_found: super::cases::shared;
    another_leases_grant_does_not_block_the_end: super::cases::shared;
}

async fn a_login_acts_as_its_owner_with_either_number_of_iterations(world: &World) {
    for (slot, iterations) in [(0, Iterations::One), (1, Iterations::Standard)] {
        let (user, password) = world.user("ada", slot, world.act_as(), iterations);
        let at = world.issue(&user).await;
        let client = world
            .connect_as(&world.database, user.username.as_str(), &password)
            .await
            .unwrap();
        let row = client
            .query_one(
                "SELECT session_user::text, current_user::text, current_setting('search_path')",
                &[],
            )
            .await
            .unwrap();
        assert_eq!(row.get::<_, String>(0), user.username.as_str());
        assert_eq!(row.get::<_, String>(1), world.owner.as_str());
        assert_eq!(row.get::<_, String>(2), "marts");
        client
            .batch_execute("CREATE TABLE marts.made AS SELECT 1; CREATE TEMP TABLE t (i int); DROP TABLE marts.made")
            .await
            .unwrap();
        drop(client);
        assert_eq!(world.end(&at).await, EndOutcome::Dropped);
        assert_eq!(world.left_of(&at).await, 0);
    }
}

async fn a_reader_reads_and_cannot_create(world: &World) {
    let lease = world.lease("rita", world.read()).await;
    let client = lease.login(&world.database).await.unwrap();
    assert_eq!(
        client
            .query_one("SELECT id FROM fruit", &[])
            .await
            .unwrap()
            .get::<_, i32>(0),
        1
    );
    for forbidden in [
        "CREATE TABLE marts.x (i int)",
        "CREATE SCHEMA x",
        "CREATE TEMP TABLE x (i int)",
        "CREATE TABLE public.x (i int)",
    ] {
        let error = client.batch_execute(forbidden).await.unwrap_err();
        assert_eq!(error.code().unwrap().code(), "42501", "{forbidden}");
    }
    assert_eq!(world.end(&lease.at).await, EndOutcome::Dropped);
}

async fn a_person_gets_a_schema_that_outlives_the_lease(world: &World) {
    let access = world.personal("pia");
    let lease = world.lease("pia", access.clone()).await;
    let schema = format!("dbt_pia_{}", world.tag);
    let client = lease.login(&world.database).await.unwrap();
    client
        .batch_execute(&format!(
            "CREATE TABLE {schema}.t AS SELECT * FROM marts.fruit; CREATE TEMP TABLE tmp (i int)"
        ))
        .await
        .unwrap();
    assert!(
        client.batch_execute("CREATE SCHEMA more").await.is_err(),
        "create_schemas was not granted"
    );
    assert_eq!(world.end(&lease.at).await, EndOutcome::Dropped);
    let owner = format!("SELECT tableowner FROM pg_tables WHERE schemaname = '{schema}'");
    assert_eq!(world.value(&world.database, &owner).await, own_role(&access));
    // Once more: found, not made; and its groups follow the policy of today.
    let Access::ActAs(Owner::Personal(mut personal)) = access else {
        panic!()
    };
    personal.groups.clear();
    let (again, password) = world.user("pia", 0, Access::ActAs(Owner::Personal(personal)), Iterations::One);
    world.issue(&again).await;
    let client = world
        .connect_as(&world.database, again.username.as_str(), &password)
        .await
        .unwrap();
    client.batch_execute(&format!("DROP TABLE {schema}.t")).await.unwrap();
    let error = client.batch_execute("SELECT * FROM marts.fruit").await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "42501", "the group was taken away");
}

async fn somebody_elses_role_or_schema_is_never_adopted(world: &World) {
    let access = world.personal("eve");
    let lease = world.lease("eve", access.clone()).await;
    assert_eq!(world.end(&lease.at).await, EndOutcome::Dropped);
    let (mut other, _) = world.user("eve", 0, access.clone(), Iterations::One);
    other.subject = kdbt_broker::lease::SubjectHash::of("https://sso.test", "a newcomer");
    let refused = world.warehouse.create_user(other).await;
    assert!(
        matches!(refused, Err(CreateError::Refused(WarehouseError::Unsafe(_)))),
        "{refused:?}"
    );
    let sql = format!("ALTER SCHEMA dbt_eve_{} OWNER TO {}", world.tag, world.owner);
    world.execute(&world.database, &sql).await.unwrap();
    let (again, _) = world.user("eve", 0, access, Iterations::One);
    let refused = world.warehouse.create_user(again.clone()).await;
    assert!(
        matches!(refused, Err(CreateError::Refused(WarehouseError::Unsafe(_)))),
        "{refused:?}"
    );
    assert_eq!(
        world
            .count(
                "postgres",
                &format!("SELECT 1 FROM pg_roles WHERE rolname = '{}'", again.username)
            )
            .await,
        0
    );
}

async fn an_end_takes_idle_and_open_sessions_with_it(world: &World) {
    let lease = world.lease("ida", world.act_as()).await;
    let idle = lease.login(&world.database).await.unwrap();
    let open = lease.login(&world.database).await.unwrap();
    open.batch_execute("BEGIN; CREATE TABLE marts.open (i int)")
        .await
        .unwrap();
    let elsewhere = lease.login(&world.second).await;
    assert_eq!(
        world.warehouse.marked_users().await.unwrap().users[0].sessions,
        if elsewhere.is_ok() { 3 } else { 2 }
    );
    assert_eq!(world.end(&lease.at).await, EndOutcome::Dropped);
    assert_eq!(world.left_of(&lease.at).await, 0);
    assert!(idle.batch_execute("SELECT 1").await.is_err());
    assert!(open.batch_execute("COMMIT").await.is_err());
}

/// S2: it holds the row that NOLOGIN needs.
async fn a_session_that_holds_its_own_row_is_ended(world: &World) {
    let lease = world.lease("mal", world.act_as()).await;
    let client = lease.login(&world.database).await.unwrap();
    client
        .batch_execute("BEGIN; SET ROLE NONE; ALTER ROLE current_user PASSWORD 'x'")
        .await
        .unwrap();
    let start = Instant::now();
    assert_eq!(world.end(&lease.at).await, EndOutcome::Dropped);
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    assert_eq!(world.left_of(&lease.at).await, 0);
}

/// S2, S25: as the lease, as its owner role, and one that only read.
async fn prepared_transactions_do_not_outlive_the_lease(world: &World) {
    for (slot, sql) in [
        "BEGIN; SET ROLE NONE; ALTER ROLE current_user PASSWORD 'x'; PREPARE TRANSACTION 'p'",
        "BEGIN; SET LOCAL ROLE NONE; ALTER ROLE current_user PASSWORD 'x'; SET LOCAL ROLE DEFAULT_OWNER; PREPARE TRANSACTION 'p'",
        "BEGIN; SET ROLE NONE; SELECT count(*) FROM pg_class; PREPARE TRANSACTION 'p'",
    ]
    .into_iter()
    .enumerate()
    {
        let (user, password) = world.user("prep", u16::try_from(slot).unwrap(), world.act_as(), Iterations::One);
        let at = world.issue(&user).await;
        let client = world.connect_as(&world.database, user.username.as_str(), &password).await.unwrap();
        client.batch_execute(&sql.replace("DEFAULT_OWNER", world.owner.as_str())).await.unwrap();
        drop(client);
        assert_eq!(world.count("postgres", "SELECT 1 FROM pg_prepared_xacts").await, 1, "{sql}");
        assert_eq!(world.end(&at).await, EndOutcome::Dropped, "{sql}");
        assert_eq!(world.left_of(&at).await, 0, "{sql}");
        assert_eq!(world.count("postgres", "SELECT 1 FROM pg_prepared_xacts").await, 0, "{sql}");
    }
}

/// S10, S25: nothing is lost, large objects go, and the role's function is not lent to the owner role.
async fn what_is_owned_in_two_databases_goes_to_the_owner_role(world: &World) {
    let lease = world.lease("own", world.act_as()).await;
    let name = lease.name();
    let open = format!("GRANT CONNECT ON DATABASE {} TO PUBLIC", world.second);
    world.execute("postgres", &open).await.unwrap();
    for database in [&world.database, &world.second] {
        let sql = format!(
            "CREATE SCHEMA by_lease AUTHORIZATION {name}; CREATE TABLE by_lease.kept AS SELECT 7 AS n; ALTER TABLE by_lease.kept OWNER TO {name}; \
             ALTER DEFAULT PRIVILEGES FOR ROLE {name} GRANT SELECT ON TABLES TO PUBLIC; \
             CREATE FUNCTION by_lease.f() RETURNS int LANGUAGE sql SECURITY DEFINER RETURN 1; ALTER FUNCTION by_lease.f() OWNER TO {name}"
        );
        world.execute(database, &sql).await.unwrap();
        let client = lease.login(database).await.unwrap();
        client
            .batch_execute("SET ROLE NONE; SELECT lo_create(0) FROM generate_series(1, 1500)")
            .await
            .unwrap();
    }
    assert_eq!(world.end(&lease.at).await, EndOutcome::Dropped);
    for database in [&world.database, &world.second] {
        assert_eq!(world.value(database, "SELECT n FROM by_lease.kept").await, "7");
        let owner = "SELECT string_agg(DISTINCT o, ',') FROM (SELECT tableowner::text AS o FROM pg_tables WHERE schemaname = 'by_lease' \
             UNION SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'by_lease') s";
        assert_eq!(world.value(database, owner).await, world.owner.as_str());
        assert_eq!(world.count(database, "SELECT 1 FROM pg_largeobject_metadata").await, 0);
        assert_eq!(
            world.count(database, "SELECT 1 FROM pg_proc WHERE proname = 'f'").await,
            0
        );
    }
}

/// S25: the owner role may not create in the schema of the collation, so nothing can be handed over; and nothing is lost.
async fn a_hand_over_that_fails_loses_nothing(world: &World) {
    let lease = world.lease("los", world.act_as()).await;
    let name = lease.name();
    let sql = format!(
        "CREATE SCHEMA closed; CREATE COLLATION closed.sorted (LOCALE = 'C'); ALTER COLLATION closed.sorted OWNER TO {name}; \
         CREATE SCHEMA by_lease AUTHORIZATION {name}; CREATE TABLE by_lease.kept AS SELECT 7 AS n; ALTER TABLE by_lease.kept OWNER TO {name}"
    );
    world.execute(&world.database, &sql).await.unwrap();
    let outcome = world.end(&lease.at).await;
    let EndOutcome::Blocked(objects) = outcome else {
        panic!("{outcome:?}")
    };
    assert!(
        objects.iter().any(|object| object.contains("closed.sorted")),
        "{objects:?}"
    );
    assert_eq!(world.value(&world.database, "SELECT n FROM by_lease.kept").await, "7");
    let sql = format!("GRANT USAGE, CREATE ON SCHEMA closed TO {}", world.owner);
    world.execute(&world.database, &sql).await.unwrap();
    assert_eq!(world.end(&lease.at).await, EndOutcome::Dropped);
    assert_eq!(world.value(&world.database, "SELECT n FROM by_lease.kept").await, "7");
}

/// S8: where PUBLIC may create, a reader makes a function that would run with the rights of whoever inherits it.
async fn a_readers_function_is_dropped_and_never_handed_over(world: &World) {
    let owned = format!(
        "SELECT 1 FROM pg_shdepend WHERE refobjid = '{}'::regrole AND deptype = 'o'",
        world.owner
    );
    let before = world.count(&world.database, &owned).await;
    world
        .execute(&world.database, "GRANT CREATE ON SCHEMA public TO PUBLIC")
        .await
        .unwrap();
    let lease = world.lease("rob", world.read()).await;
    let session = lease.login(&world.database).await.unwrap();
    session
        .batch_execute("CREATE FUNCTION public.trap() RETURNS int LANGUAGE sql SECURITY DEFINER RETURN 1; CREATE TABLE public.bait (i int)")
        .await
        .unwrap();
    assert_eq!(world.end(&lease.at).await, EndOutcome::Dropped);
    let left = "SELECT 1 FROM pg_proc WHERE proname = 'trap' UNION ALL SELECT 1 FROM pg_class WHERE relname = 'bait'";
    assert_eq!(world.count(&world.database, left).await, 0);
    assert_eq!(
        world.count(&world.database, &owned).await,
        before,
        "the owner role owns something new"
    );
}

/// S2: the name of the owner role in any statement of the fence would roll NOLOGIN back.
async fn an_owner_role_renamed_does_not_stop_the_end(world: &World) {
    let lease = world.lease("ren", world.act_as()).await;
    let client = lease.login(&world.database).await.unwrap();
    world
        .execute("postgres", &format!("ALTER ROLE {0} RENAME TO {0}_new", world.owner))
        .await
        .unwrap();
    assert_eq!(world.end(&lease.at).await, EndOutcome::Dropped);
    assert!(client.batch_execute("SELECT 1").await.is_err());
    assert_eq!(world.left_of(&lease.at).await, 0);
}

/// S25: on 15 it stands in no list of sessions, on 18 in one without a role.
async fn a_login_asleep_after_its_checks_is_ended(world: &World) {
    let (lease, other) = (
        world.lease("zzz", world.act_as()).await,
        world.lease("awake", world.act_as()).await,
    );
    let sleeps = |lease: &Lease<'_>, then: &'static str| {
        let mut config = tokio_postgres::Config::new();
        config
            .host("127.0.0.1")
            .port(world.port())
            .dbname(&world.database)
            .user(lease.name())
            .password(&lease.password)
            .options("-c post_auth_delay=6");
        tokio::spawn(async move {
            let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
            tokio::spawn(connection);
            client.batch_execute(then).await
        })
    };
    let login = sleeps(&lease, "CREATE TABLE marts.woken (i int)");
    let others = sleeps(&other, "SELECT 1");
    // They hold a lock and have no row of their role.
    let asleep = format!(
        "SELECT 1 FROM pg_locks l JOIN pg_database d ON d.oid = l.objid AND d.datname = '{}' \
         WHERE NOT EXISTS (SELECT FROM pg_stat_activity a WHERE a.pid = l.pid AND a.usesysid IS NOT NULL)",
        world.database
    );
    let limit = Instant::now() + Duration::from_secs(4);
    while world.count("postgres", &asleep).await < 2 {
        assert!(Instant::now() < limit, "the logins never slept");
    }
    let start = Instant::now();
    assert_eq!(world.end(&lease.at).await, EndOutcome::Dropped);
    assert!(
        start.elapsed() < Duration::from_secs(4),
        "it was waited for, not ended: {:?}",
        start.elapsed()
    );
    assert!(login.await.unwrap().is_err(), "the sleeper woke up inside");
    // The broker could end every lease's, and nobody sees whose is whose.
    others.await.unwrap().expect("the other sleeper was ended too");
    assert_eq!(world.end(&other.at).await, EndOutcome::Dropped);
    assert_eq!(world.left_of(&lease.at).await, 0);
}

/// A client that has the server's challenge and answers only after the end (S26: `faults/names.rs` has the rest).
async fn a_login_stalled_in_its_password_exchange_is_refused(world: &World) {
    let lease = world.lease("sta", world.act_as()).await;
    let stalled = Stalled::login(world.port(), &world.database, lease.name(), &lease.password).await;
    assert_eq!(world.end(&lease.at).await, EndOutcome::Dropped);
    assert!(!stalled.unwrap().gets_in().await.unwrap());
    assert_eq!(world.left_of(&lease.at).await, 0);
}

/// S4: a session of the lease holds so many locks that the server has no room for another.
async fn a_full_lock_table_does_not_save_the_lease(world: &World) {
    let lease = world.lease("loc", world.act_as()).await;
    let _session = fill_the_lock_table(world, &lease).await;
    assert_eq!(world.end(&lease.at).await, EndOutcome::Dropped);
    assert_eq!(world.left_of(&lease.at).await, 0);
}

/// S4: the greedy session goes, its lease stays, and nobody waits for either.
async fn a_holder_who_fills_the_lock_table_keeps_nobody_from_a_lease(world: &World) {
    let lease = world.lease("loc", world.act_as()).await;
    for slot in 1..3 {
        let session = fill_the_lock_table(world, &lease).await;
        let (user, _) = world.user("loc", slot, world.read(), Iterations::One);
        world.issue(&user).await;
        assert!(session.batch_execute("SELECT 1").await.is_err());
    }
    lease.login(&world.database).await.unwrap();
    assert_eq!(world.end(&lease.at).await, EndOutcome::Dropped);
}

/// A session that a sweep has seen, and that has taken every lock there was to take.
async fn fill_the_lock_table(world: &World, lease: &Lease<'_>) -> Client {
    let client = lease.login(&world.database).await.unwrap();
    world.warehouse.marked_users().await.unwrap();
    client
        .batch_execute("BEGIN; SAVEPOINT s; DO $$ BEGIN FOR g IN 1..200000 LOOP PERFORM pg_advisory_lock(g); END LOOP; EXCEPTION WHEN out_of_memory THEN NULL; END $$")
        .await
        .unwrap();
    let full = world
        .execute(
            "postgres",
            "SELECT count(pg_advisory_lock(g)) FROM generate_series(1000001, 1001000) g",
        )
        .await;
    assert!(full.is_err(), "the table is not full");
    client
}

/// S5.
async fn a_role_made_anew_with_the_same_mark_is_never_touched(world: &World) {
    let lease = world.lease("reu", world.read()).await;
    let name = lease.name();
    let comment = world
        .value(
            "postgres",
            &format!("SELECT shobj_description('{name}'::regrole, 'pg_authid')"),
        )
        .await;
    let sql = format!("DROP ROLE {name}; CREATE ROLE {name} LOGIN; COMMENT ON ROLE {name} IS '{comment}'");
    world.execute("postgres", &sql).await.unwrap();
    assert_eq!(world.end(&lease.at).await, EndOutcome::Dropped);
    let look = format!("SELECT rolcanlogin FROM pg_roles WHERE rolname = '{name}'");
    assert_eq!(world.value("postgres", &look).await, "t");
}

/// Nobody can lock it out of that afterwards.
async fn the_broker_has_the_right_to_end_sessions_from_the_start_and_keeps_it(world: &World) {
    let lease = world.lease("kil", world.act_as()).await;
    let usable = format!(
        "SELECT 1 WHERE pg_has_role('kdbt__broker', '{}', 'USAGE')",
        lease.name()
    );
    assert_eq!(world.count("postgres", &usable).await, 1);
    let _session = lease.login(&world.database).await.unwrap();
    assert_eq!(world.warehouse.end_sessions(&lease.at).await.unwrap(), Some(1));
    assert_eq!(world.count("postgres", &usable).await, 1);
    assert_eq!(world.end(&lease.at).await, EndOutcome::Dropped);
}

/// S6: chains of none, one and three; on 16 and later each step by SET or by ADMIN, and none by INHERIT alone.
async fn no_lease_reaches_a_role_that_can_log_in(world: &World) {
    let (tag, owner) = (&world.tag, &world.owner);
    let execute = async |sql: &str| world.execute("postgres", sql).await.unwrap();
    execute(&format!(
        "CREATE ROLE mid1_{tag}; CREATE ROLE mid2_{tag}; CREATE ROLE legacy_{tag} LOGIN"
    ))
    .await;
    let from_16 = world.version().major() >= 16;
    let chain_of_three =
        format!("GRANT mid1_{tag} TO {owner}; GRANT mid2_{tag} TO mid1_{tag}; GRANT legacy_{tag} TO mid2_{tag}");
    let mut roads = vec![
        (
            chain_of_three,
            format!("REVOKE mid1_{tag} FROM {owner}"),
            format!("mid2_{tag} > legacy_{tag}"),
        ),
        (
            format!("GRANT legacy_{tag} TO {owner}"),
            format!("REVOKE legacy_{tag} FROM {owner}"),
            format!("{owner} > legacy_{tag}"),
        ),
        (
            format!("ALTER ROLE {owner} LOGIN"),
            format!("ALTER ROLE {owner} NOLOGIN"),
            owner.to_string(),
        ),
    ];
    if from_16 {
        roads.push((
            format!("GRANT legacy_{tag} TO {owner} WITH ADMIN TRUE, INHERIT FALSE, SET FALSE"),
            format!("REVOKE legacy_{tag} FROM {owner}"),
            format!("{owner} > legacy_{tag}"),
        ));
    }
    for (number, (open, close, path)) in (0_u16..).zip(roads) {
        execute(&open).await;
        let (user, _) = world.user("s6", number, world.act_as(), Iterations::One);
        let refused = world.warehouse.create_user(user.clone()).await.unwrap_err();
        let CreateError::Refused(WarehouseError::Unsafe(why)) = refused else {
            panic!("{open}: {refused:?}")
        };
        assert!(why.contains(&path), "{open}: {why}");
        let findings = world.warehouse.check(&world.needs).await.into_iter();
        let errors: Vec<_> = findings
            .filter(|f| f.severity == Severity::Error)
            .map(|f| f.code)
            .collect();
        let code = if path == owner.as_str() {
            "role-can-log-in"
        } else {
            "road-to-login"
        };
        assert!(errors.contains(&code), "{open}: {errors:?}");
        execute(&close).await;
        world.issue(&user).await;
    }
    if from_16 {
        execute(&format!("GRANT legacy_{tag} TO {owner} WITH INHERIT TRUE, SET FALSE")).await;
        let (user, _) = world.user("s6", 9, world.act_as(), Iterations::One);
        world.issue(&user).await;
    }
}

async fn a_marked_user_that_nobody_knows_is_ended(world: &World) {
    let lease = world.lease("unk", world.read()).await;
    let sql = format!(
        "ALTER ROLE {0} RENAME TO \"o'dd $kdbt$ {0}\"; COMMENT ON ROLE \"o'dd $kdbt$ {0}\" IS 'kdbt/1 {1} what'",
        lease.name(),
        world.config.installation
    );
    world.execute("postgres", &sql).await.unwrap();
    let found = world.warehouse.marked_users().await.unwrap().users.pop().unwrap();
    assert!(found.username.is_none() && found.mark.is_err());
    assert_eq!(world.warehouse.end_marked(&found).await.unwrap(), EndOutcome::Dropped);
    assert_eq!(world.left_of(&lease.at).await, 0);
}

async fn the_doctor_finds_nothing_after_the_bootstrap(world: &World) {
    let findings = world.warehouse.check(&world.needs).await;
    let errors: Vec<_> = findings
        .iter()
        .filter(|finding| finding.severity == Severity::Error)
        .collect();
    assert!(errors.is_empty(), "{errors:#?}");
    let mut needs = world.needs.clone();
    needs.databases[0].owners.push("not_there".parse::<RoleName>().unwrap());
    needs.databases[0].connections = 10_000;
    let sql = format!(
        "GRANT CREATE ON SCHEMA public TO PUBLIC; ALTER DATABASE {} OWNER TO {}; ALTER TABLE marts.fruit ENABLE ROW LEVEL SECURITY; \
         CREATE POLICY p ON marts.fruit TO {} USING (true)",
        world.second, world.owner, world.group
    );
    world.execute(&world.database, &sql).await.unwrap();
    let codes: Vec<_> = world
        .warehouse
        .check(&needs)
        .await
        .into_iter()
        .filter(|f| f.severity == Severity::Error)
        .map(|f| f.code)
        .collect();
    for code in [
        "role-missing",
        "connections",
        "public-create",
        "owner-owns-database",
        "row-policy",
    ] {
        assert!(codes.contains(&code), "{code} is missing: {codes:?}");
    }
}

/// S4: each lease takes all the connections that it may have.
async fn leases_that_could_fill_the_server_together_are_a_warning(world: &World) {
    let usable =
        "SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int";
    let usable: u32 = world.value("postgres", usable).await.parse().unwrap();
    let most: u32 = world.needs.databases.iter().map(|database| database.connections).sum();
    for (leases, warns) in [(usable / most, false), (usable / most + 1, true)] {
        let broker = world.warehouse_of(|config| config.leases_per_target = leases);
        let findings = broker.check(&world.needs).await;
        let found = findings.iter().find(|finding| finding.code == "connections-together");
        assert_eq!(
            found.map(|finding| finding.severity),
            warns.then_some(Severity::Warning),
            "{leases}: {findings:?}"
        );
    }
}

/// S1: through a membership an owner role may set what every session of the database starts with.
async fn an_owner_role_that_is_a_member_of_a_database_s_owner_is_found(world: &World) {
    let owns = async || {
        let findings = world.warehouse.check(&world.needs).await.into_iter();
        findings.filter(|finding| finding.code == "owner-owns-database").count()
    };
    assert_eq!(owns().await, 0);
    let (tag, owner, database) = (&world.tag, &world.owner, &world.database);
    let sql = format!(
        "CREATE ROLE top_{tag}; CREATE ROLE mid_{tag}; GRANT top_{tag} TO mid_{tag}; GRANT mid_{tag} TO {owner}; ALTER DATABASE {database} OWNER TO top_{tag}"
    );
    world.execute("postgres", &sql).await.unwrap();
    assert_eq!(owns().await, 1);
}

/// S11: whatever a lease can give another one a right on, each alone.
async fn another_leases_grant_does_not_block_the_end(world: &World) {
    let mal = world.lease("mal", world.act_as()).await;
    let client = mal.login(&world.database).await.unwrap();
    let own = format!("own_{}", world.tag);
    let wrapper = format!("wrapper_{}", world.tag);
    let may = [
        format!("CREATE ON DATABASE {}", world.database),
        format!("USAGE ON FOREIGN DATA WRAPPER {wrapper}"),
    ];
    world
        .execute(&world.database, &format!("CREATE FOREIGN DATA WRAPPER {wrapper}"))
        .await
        .unwrap();
    for right in &may {
        world
            .execute(&world.database, &format!("GRANT {right} TO {}", mal.name()))
            .await
            .unwrap();
    }
    client
        .batch_execute(&format!(
            "SET ROLE NONE; CREATE SCHEMA {own}; CREATE TABLE {own}.t (i int)"
        ))
        .await
        .unwrap();
    let gifts = [
        "GRANT USAGE ON SCHEMA OWN TO VIC",
        "GRANT SELECT ON OWN.t TO VIC",
        "GRANT UPDATE (i) ON OWN.t TO VIC",
        "CREATE POLICY p ON OWN.t TO VIC USING (true)",
        "CREATE SEQUENCE OWN.s; GRANT USAGE ON SEQUENCE OWN.s TO VIC",
        "CREATE FUNCTION OWN.f() RETURNS int LANGUAGE sql RETURN 1; GRANT EXECUTE ON FUNCTION OWN.f() TO VIC",
        "CREATE DOMAIN OWN.d AS int; GRANT USAGE ON DOMAIN OWN.d TO VIC",
        "CREATE TYPE OWN.e AS ENUM ('a'); GRANT USAGE ON TYPE OWN.e TO VIC",
        "SET ROLE OWNER; GRANT USAGE ON SCHEMA marts TO MAL; GRANT SELECT ON marts.fruit TO MAL WITH GRANT OPTION; SET ROLE NONE; GRANT SELECT ON marts.fruit TO VIC",
        "CREATE SERVER far FOREIGN DATA WRAPPER WRAPPER; GRANT USAGE ON FOREIGN SERVER far TO VIC",
        "ALTER DEFAULT PRIVILEGES IN SCHEMA OWN GRANT SELECT ON TABLES TO VIC",
        "SELECT lo_create(0); DO $$ DECLARE o oid := lo_create(0); BEGIN EXECUTE 'GRANT SELECT ON LARGE OBJECT ' || o || ' TO VIC'; END $$",
    ];
    for (slot, gift) in (0..).zip(gifts) {
        let (vic, _) = world.user("vic", slot, world.act_as(), Iterations::One);
        let at = world.issue(&vic).await;
        let words = [
            ("OWNER", world.owner.as_str()),
            ("OWN", &own),
            ("MAL", mal.name()),
            ("VIC", vic.username.as_str()),
            (" WRAPPER WRAPPER", &format!(" WRAPPER {wrapper}")),
        ];
        let sql = words
            .iter()
            .fold(gift.to_owned(), |sql, (word, name)| sql.replace(word, name));
        client
            .batch_execute(&sql)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        assert_eq!(world.end(&at).await, EndOutcome::Dropped, "{gift}");
        client.batch_execute("SELECT 1").await.unwrap();
    }
    // Its next owner would have no right to its kind.
    client.batch_execute("DROP SERVER far").await.unwrap();
    for right in &may {
        world
            .execute(&world.database, &format!("REVOKE {right} FROM {}", mal.name()))
            .await
            .unwrap();
    }
    assert_eq!(world.end(&mal.at).await, EndOutcome::Dropped);
}
