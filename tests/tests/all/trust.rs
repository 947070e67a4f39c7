//! S9: what a less trusted lease plants in a schema runs with the rights of whoever selects from it there. The doctor
//! names each schema where the policy's reserved roles could meet such a thing.

use std::collections::BTreeSet;

use kdbt_broker::warehouse::{EndOutcome, Finding, Severity, Warehouse};
use kdbt_e2e::contract::warehouse::postgres::{Lease, World};
use kdbt_e2e::postgres::PgVersion;

/// The owner role is reserved, the group is not.
async fn named_by_the_doctor(world: &World) -> Vec<Finding> {
    let mut needs = world.needs.clone();
    for database in &mut needs.databases {
        database.zones = vec![BTreeSet::from([world.owner.clone()])];
    }
    let mut findings = world.warehouse.check(&needs).await;
    findings.retain(|finding| finding.code == "less-trusted-schema");
    findings
}

/// Whether the holder of the second lease did what the holder of the first one wanted.
async fn attack(world: &World, planter: &Lease<'_>, victim: &Lease<'_>) -> bool {
    let database = &world.database;
    let plant = "CREATE FUNCTION marts.trojan() RETURNS int LANGUAGE plpgsql AS \
                 'BEGIN DELETE FROM marts.fruit; RETURN 1; END'; CREATE VIEW marts.nice AS SELECT marts.trojan(); \
                 GRANT SELECT ON marts.nice TO PUBLIC";
    let planter = planter.login(database).await.unwrap();
    if planter.batch_execute(plant).await.is_err() {
        return false;
    }
    let victim = victim.login(database).await.unwrap();
    let _ = victim.query("SELECT * FROM marts.nice", &[]).await;
    victim.query("SELECT FROM marts.fruit", &[]).await.unwrap().is_empty()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_where_the_less_trusted_write_is_named_before_a_reserved_role_meets_a_trojan_there() {
    for version in PgVersion::ALL {
        let world = World::shared(version).await;
        assert_eq!(named_by_the_doctor(&world).await, [], "{version:?}");
        let sql = format!("GRANT CREATE ON SCHEMA marts TO {}", world.group);
        world.execute(&world.database, &sql).await.unwrap();
        let (planter, victim) = (
            world.lease("mal", world.read()).await,
            world.lease("vic", world.act_as()).await,
        );
        assert!(
            attack(&world, &planter, &victim).await,
            "the reason why the doctor looks, on {version:?}"
        );
        assert_eq!(world.end(&planter.at).await, EndOutcome::Dropped);

        let found = named_by_the_doctor(&world).await;
        let [finding] = &found[..] else { panic!("{found:?}") };
        assert_eq!(finding.severity, Severity::Warning);
        for name in [world.owner.as_str(), world.group.as_str(), "schema marts"] {
            assert!(finding.message.contains(name), "{}", finding.message);
        }
        world
            .execute(&world.database, finding.remedy.as_deref().unwrap())
            .await
            .unwrap();
        world
            .execute(&world.database, "INSERT INTO marts.fruit VALUES (1)")
            .await
            .unwrap();
        assert_eq!(named_by_the_doctor(&world).await, []);
        let second = world.lease("mal", world.read()).await;
        assert!(!attack(&world, &second, &victim).await, "{version:?}");
        assert_eq!(world.end(&second.at).await, EndOutcome::Dropped);
        assert_eq!(world.end(&victim.at).await, EndOutcome::Dropped);
    }
}
