//! What a holder does with the user of another's lease: that one ends at its time all the same.

use anyhow::{Context, Result};
use kdbt_e2e::postgres::{PgOptions, PgVersion};
use kdbt_e2e::stack::DATABASE;

use super::attack::Remains;
use super::holder::Holder;
use super::scene::Scene;
use super::starving::meanwhile;
use super::was_served;

/// The holder …, as its own role in a schema of its own. `{me}` is its user, `{victim}` the other's.
const ATTACKS: &[(&str, &str)] = &[
    (
        "names it in policies of its own table",
        "CREATE TABLE t (i int); CREATE POLICY p ON t TO {victim} USING (true); \
         CREATE POLICY two ON t AS RESTRICTIVE TO {victim}, PUBLIC USING (true)",
    ),
    (
        "grants it what is its own",
        "CREATE TABLE t (i int, j int); CREATE SEQUENCE s; CREATE FUNCTION f() RETURNS int LANGUAGE sql RETURN 1; \
         CREATE TYPE e AS ENUM ('a'); CREATE DOMAIN d AS int; SELECT lo_create(4711); GRANT ALL ON t TO {victim} WITH GRANT OPTION; \
         GRANT UPDATE (j) ON t TO {victim}; GRANT ALL ON SEQUENCE s TO {victim}; GRANT ALL ON FUNCTION f() TO {victim}; \
         GRANT USAGE ON TYPE e TO {victim}; GRANT USAGE ON DOMAIN d TO {victim} WITH GRANT OPTION; GRANT ALL ON LARGE OBJECT 4711 TO {victim}",
    ),
    (
        "makes default privileges for it",
        "ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO {victim}; ALTER DEFAULT PRIVILEGES GRANT ALL ON TYPES TO {victim} WITH GRANT OPTION",
    ),
    (
        "grants it on what the owner role granted",
        "SET ROLE dbt_analytics; CREATE TABLE t (i int, j int); CREATE SEQUENCE s; CREATE TYPE e AS ENUM ('a'); CREATE SCHEMA \"in it\"; \
         CREATE FUNCTION \"f 1\"(text, VARIADIC int[]) RETURNS int LANGUAGE sql RETURN 1; CREATE AGGREGATE agg(*) (SFUNC = int8inc, STYPE = int8, INITCOND = '0'); \
         SELECT lo_create(4712); GRANT SELECT, UPDATE (j) ON t TO {me} WITH GRANT OPTION; GRANT ALL ON SEQUENCE s TO {me} WITH GRANT OPTION; \
         GRANT ALL ON TYPE e TO {me} WITH GRANT OPTION; GRANT ALL ON SCHEMA \"in it\" TO {me} WITH GRANT OPTION; \
         GRANT ALL ON FUNCTION \"f 1\"(text, VARIADIC int[]), agg() TO {me} WITH GRANT OPTION; GRANT ALL ON LARGE OBJECT 4712 TO {me} WITH GRANT OPTION; \
         SET ROLE NONE; GRANT SELECT, UPDATE (j) ON t TO {victim} WITH GRANT OPTION; GRANT ALL ON SEQUENCE s TO {victim}; GRANT ALL ON TYPE e TO {victim}; \
         GRANT ALL ON SCHEMA \"in it\" TO {victim}; GRANT ALL ON FUNCTION \"f 1\"(text, VARIADIC int[]), agg() TO {victim}; GRANT ALL ON LARGE OBJECT 4712 TO {victim}",
    ),
    (
        "prepares a transaction that grants to it",
        "BEGIN; SELECT lo_create(4713); GRANT SELECT ON LARGE OBJECT 4713 TO {victim}; PREPARE TRANSACTION 'for another'",
    ),
];

/// S11.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_a_holder_says_of_another_s_user_keeps_it_from_its_end() {
    for version in PgVersion::ALL {
        let settings = PgOptions::default().set("max_prepared_transactions", "20");
        let scene = Scene::on(version, settings).await.unwrap();
        let scene = &scene;
        let all = ATTACKS.iter().enumerate().map(|(number, (holder, sql))| async move {
            let result = attacks(scene, number, sql).await;
            result.with_context(|| format!("the holder {holder}"))
        });
        let beside = meanwhile(scene, async { futures_util::future::try_join_all(all).await.map(drop) });
        was_served(&beside.await);
    }
}

async fn attacks(scene: &Scene, number: usize, sql: &str) -> Result<()> {
    let mal = Holder::new(scene, number, "team", "10m").await?;
    let victim = Holder::new(scene, 100 + number, "team", "10m").await?;
    let (me, other) = (&mal.lease.user, &victim.lease.user);
    let session = mal.connect(DATABASE).await?;
    let place = format!(
        "CREATE SCHEMA a{number}; GRANT ALL ON SCHEMA a{number} TO {me}; SET search_path = a{number}; SET ROLE NONE"
    );
    session.batch_execute(&place).await?;
    for statement in sql.replace("{me}", me).replace("{victim}", other).split("; ") {
        session.batch_execute(statement).await.context(statement.to_owned())?;
    }
    mal.keep(session);
    victim.lease.revoke(scene).await?;
    victim.is_ended(Remains::Nothing).await.context("the other")?;
    mal.lease.revoke(scene).await?;
    mal.is_ended(Remains::Nothing).await
}
