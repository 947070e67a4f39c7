//! Every warehouse keeps the contract of `Warehouse`: on the oldest and the newest PostgreSQL that we support.

use kdbt_e2e::contract::warehouse::postgres::World;
use kdbt_e2e::postgres::PgVersion;
use kdbt_e2e::warehouse_contract;

mod on_postgres_15 {
    async fn ground() -> super::World {
        super::World::shared(super::PgVersion::Pg15).await
    }
    super::warehouse_contract!(ground);
}

mod on_postgres_18 {
    async fn ground() -> super::World {
        super::World::shared(super::PgVersion::Pg18).await
    }
    super::warehouse_contract!(ground);
}
