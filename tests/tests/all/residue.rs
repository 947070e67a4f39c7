//! S9: what leases leave behind besides data is seen, whoever made it is named, and data is not reported.

use std::collections::BTreeSet;

use kdbt_broker::residue::{Kind, Residue};
use kdbt_broker::warehouse::{EndOutcome, Warehouse};
use kdbt_e2e::contract::warehouse::postgres::World;
use kdbt_e2e::postgres::PgVersion;

async fn seen(world: &World) -> BTreeSet<Residue> {
    let database = world.database.parse().unwrap();
    world.warehouse.residue(&database, &world.needs).await.unwrap()
}

fn kinds<'a>(residue: impl IntoIterator<Item = &'a Residue>) -> BTreeSet<Kind> {
    residue.into_iter().map(|residue| residue.kind).collect()
}

/// What a holder may do that is not only data, each as the owner role.
fn planted(world: &World) -> String {
    let tag = &world.tag;
    format!(
        "CREATE FUNCTION marts.definer() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1';
         CREATE FUNCTION marts.invoker(int, int) RETURNS bool LANGUAGE sql AS 'SELECT true';
         CREATE FUNCTION marts.fired() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
         CREATE TRIGGER fires BEFORE INSERT ON marts.fruit EXECUTE FUNCTION marts.fired();
         CREATE RULE rewrites AS ON DELETE TO marts.fruit DO ALSO SELECT 1;
         CREATE POLICY shows ON marts.fruit USING (true);
         ALTER DEFAULT PRIVILEGES IN SCHEMA marts GRANT SELECT ON TABLES TO out_{tag};
         GRANT SELECT ON marts.fruit TO out_{tag};
         CREATE SCHEMA out_{tag};
         CREATE EXTENSION citext SCHEMA marts;
         CREATE OPERATOR marts.<=> (LEFTARG = int, RIGHTARG = int, FUNCTION = marts.invoker);
         CREATE TYPE marts.mood AS (word text);
         CREATE FUNCTION marts.said(marts.mood) RETURNS int LANGUAGE sql AS 'SELECT 1';
         CREATE CAST (marts.mood AS int) WITH FUNCTION marts.said(marts.mood);
         CREATE PUBLICATION published FOR TABLE marts.fruit;
         CREATE SERVER far FOREIGN DATA WRAPPER fdw;
         CREATE USER MAPPING FOR CURRENT_USER SERVER far;
         CREATE FOREIGN TABLE marts.far (i int) SERVER far;"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_residue_is_seen_after_its_author_s_end_and_data_never() {
    for version in PgVersion::ALL {
        let world = World::shared(version).await;
        let (owner, tag) = (&world.owner, &world.tag);
        assert_eq!(seen(&world).await, BTreeSet::new(), "a fresh bootstrap is clean");

        // What dbt does.
        let lease = world.lease("s9a", world.act_as()).await;
        let client = lease.login(&world.database).await.unwrap();
        let work = "CREATE TABLE marts.t (id int PRIMARY KEY, word text); CREATE INDEX ON marts.t (word); \
             CREATE TEMP TABLE t__dbt_tmp AS SELECT 1 AS id; CREATE VIEW marts.v AS SELECT * FROM marts.t; \
             CREATE MATERIALIZED VIEW marts.m AS SELECT * FROM marts.t; COMMENT ON TABLE marts.t IS 'docs'; \
             CREATE SCHEMA marts_dbt_test__audit; CREATE TABLE marts_dbt_test__audit.failures AS SELECT 1 AS one; \
             ALTER TABLE marts.t RENAME TO t__dbt_backup";
        client.batch_execute(work).await.unwrap();
        let sql = format!("GRANT SELECT ON marts.v TO {}", world.group);
        client.batch_execute(&sql).await.unwrap();
        assert_eq!(seen(&world).await, BTreeSet::new(), "{version:?}");

        let sql = format!(
            "CREATE ROLE out_{tag}; CREATE FOREIGN DATA WRAPPER fdw; GRANT USAGE ON FOREIGN DATA WRAPPER fdw TO {owner}"
        );
        world.execute(&world.database, &sql).await.unwrap();
        client.batch_execute(&planted(&world)).await.unwrap();
        // What superusers alone may own, from a time when the owner role was one.
        let sql = format!(
            "ALTER ROLE {owner} SUPERUSER; SET ROLE {owner}; \
             CREATE FUNCTION marts.watches() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'; \
             CREATE EVENT TRIGGER watches_{tag} ON sql_drop EXECUTE FUNCTION marts.watches(); \
             CREATE SUBSCRIPTION sub_{tag} CONNECTION 'host=nowhere' PUBLICATION p WITH (connect = false); \
             RESET ROLE; ALTER ROLE {owner} NOSUPERUSER"
        );
        world.execute(&world.database, &sql).await.unwrap();
        drop(client);
        assert_eq!(world.end(&lease.at).await, EndOutcome::Dropped);
        let found = seen(&world).await;
        let missing: Vec<_> = Kind::ALL
            .into_iter()
            .filter(|kind| !kinds(&found).contains(kind))
            .collect();
        assert!(missing.is_empty(), "{version:?}: {missing:?} of {found:#?}");
        assert!(
            found.iter().all(|residue| residue.owner == owner.as_str()),
            "{found:#?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn residue_shows_its_changes_and_hides_neither_behind_locks_nor_in_a_crowd() {
    for version in PgVersion::ALL {
        let world = World::shared(version).await;
        let lease = world.lease("s9b", world.personal("s9b")).await;
        let client = lease.login(&world.database).await.unwrap();
        let schema = format!("dbt_s9b_{}", world.tag);
        let define = |body: &str| {
            format!(
                "CREATE OR REPLACE FUNCTION {schema}.f() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS 'BEGIN {body} END'"
            )
        };
        let sql = format!(
            "CREATE TABLE {schema}.t (i int); {}; CREATE RULE r AS ON DELETE TO {schema}.t DO ALSO SELECT 1; \
             CREATE TRIGGER g BEFORE INSERT ON {schema}.t FOR EACH ROW WHEN (NEW.i > 1) EXECUTE FUNCTION {schema}.f()",
            define("RETURN NEW;")
        );
        client.batch_execute(&sql).await.unwrap();
        let first = seen(&world).await;
        let wanted = [Kind::DefinerRoutine, Kind::Trigger, Kind::Rule].into();
        assert_eq!(kinds(&first), wanted, "a person's own role counts: {first:#?}");

        client.batch_execute(&define("RETURN NEW;")).await.unwrap();
        assert_eq!(seen(&world).await, first, "the same again is no change");
        client.batch_execute(&define("RETURN NULL;")).await.unwrap();
        let second = seen(&world).await;
        let changed: Vec<_> = second.difference(&first).collect();
        assert!(
            matches!(
                changed[..],
                [Residue {
                    kind: Kind::DefinerRoutine,
                    ..
                }]
            ),
            "{changed:?}"
        );

        let sql = format!("BEGIN; LOCK TABLE {schema}.t IN ACCESS EXCLUSIVE MODE");
        client.batch_execute(&sql).await.unwrap();
        assert_eq!(seen(&world).await, second);
        let sql = format!(
            "ROLLBACK; DO $$ BEGIN FOR i IN 1..1001 LOOP EXECUTE 'CREATE FUNCTION {schema}.a' || i || '() RETURNS int LANGUAGE sql AS ''SELECT 1'''; END LOOP; END $$"
        );
        client.batch_execute(&sql).await.unwrap();
        let crowd = seen(&world).await;
        assert!(crowd.iter().any(|residue| residue.name.starts_with("more than 1000")));
        assert!(crowd.is_superset(&second), "a crowd of one kind hides no other");
        assert_eq!(world.end(&lease.at).await, EndOutcome::Dropped);
    }
}

/// S9: nothing that is called like a role is on a lease's way to a table.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_called_like_a_lease_is_not_on_its_search_path() {
    for version in PgVersion::ALL {
        let world = World::shared(version).await;
        for (name, access) in [("s9c", world.read()), ("s9d", world.act_as())] {
            let lease = world.lease(name, access).await;
            for role in [lease.name(), world.owner.as_str()] {
                let sql = format!(
                    "CREATE SCHEMA IF NOT EXISTS {role}; GRANT USAGE ON SCHEMA {role} TO PUBLIC; \
                     CREATE TABLE IF NOT EXISTS {role}.fruit AS SELECT 666 AS id; GRANT SELECT ON {role}.fruit TO PUBLIC"
                );
                world.execute(&world.database, &sql).await.unwrap();
            }
            let client = lease.login(&world.database).await.unwrap();
            for reset in ["SELECT 1", "RESET search_path", "RESET ALL"] {
                client.batch_execute(reset).await.unwrap();
                let row = client
                    .query_one("SELECT id, current_setting('search_path') FROM fruit", &[])
                    .await
                    .unwrap();
                assert_eq!(
                    row.get::<_, i32>(0),
                    1,
                    "{version:?} {name} {reset}: {}",
                    row.get::<_, String>(1)
                );
            }
        }
    }
}

/// S7: a reader drops what others gave its group by default.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_default_privilege_that_a_reader_dropped_is_given_again() {
    for version in PgVersion::ALL {
        let world = World::shared(version).await;
        let (owner, group) = (&world.owner, &world.group);
        let give =
            format!("ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA marts GRANT SELECT ON TABLES TO {group}");
        world.execute(&world.database, &give).await.unwrap();
        let approved = seen(&world).await;
        assert_eq!(approved.iter().map(|one| &one.name).collect::<Vec<_>>(), [&give]);

        let lease = world.lease("s7f", world.read()).await;
        let client = lease.login(&world.database).await.unwrap();
        client.batch_execute(&format!("DROP OWNED BY {group}")).await.unwrap();
        assert_eq!(seen(&world).await, BTreeSet::new(), "{version:?}: the attack works");
        let lost: Vec<_> = approved.iter().map(|one| one.name.parse().unwrap()).collect();
        let database = world.database.parse().unwrap();
        world.warehouse.restore(&database, &lost).await.unwrap();
        assert_eq!(seen(&world).await, approved);
        // It works, and not only by its looks.
        let sql = format!("SET ROLE {owner}; CREATE TABLE marts.later AS SELECT 1 AS id; RESET ROLE");
        world.execute(&world.database, &sql).await.unwrap();
        client.query_one("SELECT id FROM marts.later", &[]).await.unwrap();
        assert_eq!(world.end(&lease.at).await, EndOutcome::Dropped);
    }
}
