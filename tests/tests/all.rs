//! Every end-to-end test, in one binary.

#[path = "all/issuer.rs"]
mod issuer;
#[path = "all/keycloak.rs"]
mod keycloak;
#[path = "all/stack.rs"]
mod stack;
#[path = "all/warehouse.rs"]
mod warehouse;
#[path = "all/store.rs"]
mod store;
