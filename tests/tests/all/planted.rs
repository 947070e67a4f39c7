//! S1: code that would run with the broker's rights, were its search path anything but pinned. Planted are an operator of
//! every name that our statements use for every pair of types of the catalog, an overload of every function and a type of
//! every name; in schemas that are called like the broker's roles, and in `public`.

use std::collections::BTreeSet;
use std::time::Duration;

use kdbt_api::credential::Iterations;
use kdbt_broker::residue::DefaultPrivilege;
use kdbt_broker::warehouse::{EndOutcome, Warehouse};
use kdbt_e2e::contract::warehouse::postgres::World;
use kdbt_e2e::postgres::PgVersion;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::documents::sources;

/// What columns of the catalog, literals and results of functions are of.
const TYPES: &str =
    "bool, \"char\", int2, int4, int8, oid, regclass, name, text, timestamptz, float8, numeric, oid[], aclitem[]";
const OPERATORS: &str = "=, <>, <, >, <=, >=, ||, +, -, *, /, %";

/// The functions that our statements call.
fn functions() -> BTreeSet<String> {
    let text = sources(&["broker/src/warehouse/postgres"]).concat();
    let calls = text
        .split("pg_catalog.")
        .skip(1)
        .filter_map(|rest| rest.split_once('('));
    let names = calls.map(|(name, _)| name);
    names
        .filter(|name| name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'))
        .map(str::to_owned)
        .collect()
}

/// A schema full of traps: whoever runs one makes the canary role, or fails for want of the right.
fn traps(schema: &str, canary: &str, functions: &BTreeSet<String>) -> String {
    let functions: Vec<String> = functions.iter().map(|name| format!("'{name}'")).collect();
    format!(
        "CREATE SCHEMA IF NOT EXISTS {schema}; GRANT USAGE ON SCHEMA {schema} TO PUBLIC;
         CREATE FUNCTION {schema}.trap() RETURNS bool LANGUAGE plpgsql COST 0.0000001 AS
           $$ BEGIN EXECUTE 'CREATE ROLE {canary}'; RETURN true; EXCEPTION WHEN duplicate_object THEN RETURN true; END $$;
         DO $plant$
         DECLARE
           types text[] := string_to_array('{TYPES}', ', ');
           body text := 'BEGIN PERFORM {schema}.trap(); RETURN true; END';
           l text; r text; o text; f record;
         BEGIN
           FOREACH l IN ARRAY types LOOP
             FOREACH r IN ARRAY types LOOP
               EXECUTE format('CREATE FUNCTION {schema}.op(%s, %s) RETURNS bool LANGUAGE plpgsql COST 0.0000001 AS %L', l, r, body);
               FOREACH o IN ARRAY string_to_array('{OPERATORS}', ', ') LOOP
                 EXECUTE format('CREATE OPERATOR {schema}.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = {schema}.op)', o, l, r);
               END LOOP;
             END LOOP;
           END LOOP;
           FOR f IN SELECT p.proname, pg_get_function_identity_arguments(p.oid) AS arguments FROM pg_proc p
                    WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.proname IN ({}) LOOP
             BEGIN
               EXECUTE format('CREATE FUNCTION {schema}.%I(%s) RETURNS bool LANGUAGE plpgsql AS %L', f.proname, f.arguments, body);
             EXCEPTION WHEN OTHERS THEN NULL; -- it takes what no function in plpgsql can take
             END;
           END LOOP;
           FOR f IN SELECT t.typname FROM pg_type t WHERE t.typnamespace = 'pg_catalog'::regnamespace AND t.typname IN ('bool', 'int4', 'int8', 'oid', 'regclass', 'regprocedure', 'name', 'text', 'timestamptz') LOOP
             EXECUTE format('CREATE DOMAIN {schema}.%I AS pg_catalog.%1$I CHECK ({schema}.trap())', f.typname);
           END LOOP;
         END $plant$",
        functions.join(", ")
    )
}

async fn never_run_as_the_broker(version: PgVersion) {
    let world = World::shared(version).await;
    let login = &world.config.user;
    let canary = format!("canary_{}", world.tag);
    let functions = functions();
    assert!(
        functions.len() > 25 && functions.contains("pg_terminate_backend"),
        "{functions:?}"
    );
    for database in [&world.database, &world.second] {
        for schema in ["kdbt__broker", login, "public"] {
            world
                .execute(database, &traps(schema, &canary, &functions))
                .await
                .unwrap();
        }
        let set = format!(
            "ALTER DATABASE {database} SET search_path = kdbt__broker, public, pg_catalog; ALTER DATABASE {database} SET default_transaction_read_only = on"
        );
        world.execute("postgres", &set).await.unwrap();
    }
    let set = format!(
        "ALTER ROLE {login} SET search_path = kdbt__broker, public, pg_catalog; ALTER ROLE {login} SET standard_conforming_strings = off"
    );
    world.execute("postgres", &set).await.unwrap();

    everything_that_the_broker_does(&world).await;

    let look = format!("SELECT 1 FROM pg_roles WHERE rolname = '{canary}'");
    assert_eq!(world.count("postgres", &look).await, 0, "a trap ran as the broker");
    // They are traps: whoever has the path that was set here runs one with the least thing said.
    world
        .execute(&world.database, "SET transaction_read_only = off; SELECT 1 = 1")
        .await
        .unwrap();
    assert_eq!(world.count("postgres", &look).await, 1, "the traps are none");
    world.execute("postgres", &format!("DROP ROLE {canary}")).await.unwrap();
}

/// Issue, extend, cancel, sweep, doctor, scan, give back a default privilege, end with and without a lease that knows.
async fn everything_that_the_broker_does(world: &World) {
    let (own, reader) = (
        world.lease("s1", world.personal("s1")).await,
        world.lease("s1r", world.read()).await,
    );
    let client = own.login(&world.database).await.unwrap();
    client
        .batch_execute("SET ROLE NONE; SET transaction_read_only = off; SELECT lo_create(0)")
        .await
        .unwrap();
    let later = own.user.ends_at + Duration::from_mins(1);
    world.warehouse.extend_user(&own.at, later).await.unwrap();
    assert_eq!(world.warehouse.end_sessions(&own.at).await.unwrap(), Some(1));
    let stray = world.warehouse.marked_users().await.unwrap().users.into_iter();
    let stray = stray.last().expect("two users are marked");
    for finding in world.warehouse.check(&world.needs).await {
        assert_ne!(
            finding.code, "connection",
            "the doctor did not get to its end: {finding:?}"
        );
    }
    let lost = DefaultPrivilege {
        owner: world.owner.clone(),
        schema: None,
        privilege: "SELECT",
        objects: "TABLES",
        grantee: world.group.clone(),
    };
    for database in &world.needs.databases {
        world.warehouse.residue(&database.database, &world.needs).await.unwrap();
        world
            .warehouse
            .restore(&database.database, std::slice::from_ref(&lost))
            .await
            .unwrap();
    }
    assert_eq!(world.warehouse.end_marked(&stray).await.unwrap(), EndOutcome::Dropped);
    for lease in [&own, &reader] {
        assert_eq!(world.end(&lease.at).await, EndOutcome::Dropped);
        assert_eq!(world.left_of(&lease.at).await, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn planted_operators_functions_and_types_never_run_as_the_broker_on_15() {
    never_run_as_the_broker(PgVersion::Pg15).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn planted_operators_functions_and_types_never_run_as_the_broker_on_18() {
    never_run_as_the_broker(PgVersion::Pg18).await;
}

/// A wire that leaves out our startup options, as some poolers do; else it changes nothing.
async fn pooler_to(port: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut server = TcpStream::connect(("127.0.0.1", port)).await?;
                let mut rest = vec![0; usize::try_from(client.read_u32().await?).unwrap() - 4];
                client.read_exact(&mut rest).await?;
                let (protocol, words) = rest.split_at(4);
                let words: Vec<&[u8]> = words.split(|byte| *byte == 0).collect();
                let kept = words.chunks(2).filter(|pair| pair[0] != b"options").collect::<Vec<_>>();
                let kept = kept.concat().join(&0);
                let length = u32::try_from(8 + kept.len()).unwrap();
                server
                    .write_all(&[&length.to_be_bytes(), protocol, &kept].concat())
                    .await?;
                tokio::io::copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    own
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooler_that_drops_what_we_pin_is_refused() {
    for version in PgVersion::ALL {
        let world = World::shared(version).await;
        let port = pooler_to(world.config.port).await;
        let through = world.warehouse_of(|config| config.port = port);
        let refused = through.marked_users().await.unwrap_err().to_string();
        assert!(refused.contains("cannot be pinned"), "{refused}");
        let (user, _) = world.user("pool", 0, world.read(), Iterations::One);
        assert!(through.create_user(user.clone()).await.is_err());
        world.issue(&user).await;
    }
}
