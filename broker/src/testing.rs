//! Small doubles for unit tests of the pure parts; everything with a server in it is tested on a real one.

use async_trait::async_trait;
use kdbt_api::Timestamp;

use crate::lease::{EngineId, UserRef};
use crate::warehouse::{
    CreateError, EndOutcome, Finding, MarkedUser, Needs, NewUser, Sweep, Warehouse, WarehouseError,
};

/// A warehouse that is never there.
pub(crate) struct NoWarehouse;

fn down() -> WarehouseError {
    WarehouseError::Unreachable("no warehouse in this test".into())
}

#[async_trait]
impl Warehouse for NoWarehouse {
    async fn create_user(&self, _: NewUser) -> Result<EngineId, CreateError> {
        Err(CreateError::Refused(down()))
    }

    async fn extend_user(&self, _: &UserRef, _: Timestamp) -> Result<(), WarehouseError> {
        Err(down())
    }

    async fn end_sessions(&self, _: &UserRef) -> Result<Option<u32>, WarehouseError> {
        Err(down())
    }

    async fn end_users(&self, users: &[UserRef]) -> Vec<Result<EndOutcome, WarehouseError>> {
        users.iter().map(|_| Err(down())).collect()
    }

    async fn marked_users(&self) -> Result<Sweep, WarehouseError> {
        Err(down())
    }

    async fn end_marked(&self, _: &MarkedUser) -> Result<EndOutcome, WarehouseError> {
        Err(down())
    }

    async fn check(&self, _: &Needs) -> Vec<Finding> {
        Vec::new()
    }
}
