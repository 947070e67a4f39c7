//! S7: a row policy `TO` a role is gone when a holder of that role's rights drops what the role owns. So no lease is
//! issued that has such rights, and the doctor names the policy and how to write it instead.

use kdbt_api::credential::Iterations;
use kdbt_broker::grant::Access;
use kdbt_broker::warehouse::{CreateError, EndOutcome, Finding, Warehouse, WarehouseError};
use kdbt_e2e::contract::warehouse::postgres::{Lease, World, own_role};
use kdbt_e2e::postgres::PgVersion;

/// One row, hidden from the group by a restrictive policy.
async fn hide(world: &World, from: &str) {
    let sql = format!(
        "ALTER TABLE marts.fruit ENABLE ROW LEVEL SECURITY; DROP POLICY IF EXISTS shown ON marts.fruit; DROP POLICY IF EXISTS hidden ON marts.fruit; \
         CREATE POLICY shown ON marts.fruit USING (true); CREATE POLICY hidden ON marts.fruit AS RESTRICTIVE TO {from} USING (id < 0)"
    );
    world.execute(&world.database, &sql).await.unwrap();
}

/// How many rows the holder sees before and after the attack.
async fn attack(world: &World, lease: &Lease<'_>) -> (usize, usize) {
    let client = lease.login(&world.database).await.unwrap();
    let before = client.query("SELECT id FROM marts.fruit", &[]).await.unwrap().len();
    let sql = format!("DROP OWNED BY {}", world.group);
    client.batch_execute(&sql).await.unwrap();
    let after = client.query("SELECT id FROM marts.fruit", &[]).await.unwrap().len();
    (before, after)
}

async fn refusal(world: &World, name: &str, access: Access) -> Option<String> {
    let (user, _) = world.user(name, 0, access, Iterations::One);
    match world.warehouse.create_user(user).await {
        Ok(_) => None,
        Err(CreateError::Refused(WarehouseError::Unsafe(why))) => Some(why),
        Err(error) => panic!("{error:?}"),
    }
}

async fn named_by_the_doctor(world: &World) -> Vec<Finding> {
    let mut findings = world.warehouse.check(&world.needs).await;
    findings.retain(|finding| finding.code == "row-policy");
    findings
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_lease_is_issued_that_could_drop_a_row_policy() {
    for version in PgVersion::ALL {
        let world = World::shared(version).await;
        // The attack works on a lease from before the policy, which shows that the refusal below is needed.
        let early = world.lease("s7a", world.read()).await;
        hide(&world, world.group.as_str()).await;
        assert_eq!(attack(&world, &early).await, (0, 1), "{version:?}");
        assert_eq!(world.end(&early.at).await, EndOutcome::Dropped);

        hide(&world, world.group.as_str()).await;
        let why = refusal(&world, "s7b", world.read()).await.unwrap();
        let named = format!("{} in database {}", world.group, world.database);
        assert!(why.contains(&named) && why.contains("pg_has_role()"), "{why}");
        let found = named_by_the_doctor(&world).await;
        let remedy = found[0].remedy.as_deref().unwrap();
        let condition = format!("NOT pg_has_role('{}', 'USAGE') OR …", world.group);
        assert!(remedy.contains(&condition), "{remedy}");

        // Done as the doctor says.
        let sql = remedy.replace('…', "id < 0");
        world.execute(&world.database, &sql).await.unwrap();
        assert_eq!(named_by_the_doctor(&world).await, []);
        let late = world.lease("s7b", world.read()).await;
        assert_eq!(attack(&world, &late).await, (0, 0), "{version:?}");
        assert_eq!(world.end(&late.at).await, EndOutcome::Dropped);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_policy_counts_through_every_membership_and_in_every_database_in_reach() {
    for version in PgVersion::ALL {
        let world = World::shared(version).await;
        let (tag, owner) = (&world.tag, &world.owner);
        // Two steps above the role that the lease acts as.
        let sql = format!(
            "CREATE ROLE far_{tag}; CREATE ROLE near_{tag}; GRANT far_{tag} TO near_{tag}; GRANT near_{tag} TO {owner}"
        );
        world.execute("postgres", &sql).await.unwrap();
        hide(&world, &format!("far_{tag}")).await;
        assert!(refusal(&world, "s7c", world.act_as()).await.is_some(), "{version:?}");
        assert!(refusal(&world, "s7c", world.read()).await.is_none(), "{version:?}");
        assert_eq!(named_by_the_doctor(&world).await.len(), 1);

        // A person's own role.
        let personal = world.personal("s7d");
        assert!(refusal(&world, "s7d", personal.clone()).await.is_none());
        hide(&world, &own_role(&personal)).await;
        let (again, _) = world.user("s7d", 1, personal, Iterations::One);
        let refused = world.warehouse.create_user(again).await;
        assert!(
            matches!(refused, Err(CreateError::Refused(WarehouseError::Unsafe(_)))),
            "{refused:?}"
        );
        assert_eq!(named_by_the_doctor(&world).await.len(), 1);

        // In another database: a lease gets there only where CONNECT is everybody's.
        let sql = "CREATE TABLE public.other AS SELECT 1 AS id; ALTER TABLE public.other ENABLE ROW LEVEL SECURITY";
        world.execute(&world.second, sql).await.unwrap();
        let sql = format!("CREATE POLICY p ON public.other TO {} USING (true)", world.group);
        world.execute(&world.second, &sql).await.unwrap();
        let refused = refusal(&world, "s7e", world.read()).await.is_some();
        assert_eq!(refused, version == PgVersion::Pg15);
    }
}
