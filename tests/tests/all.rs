//! Every end-to-end test, in one binary.

#[path = "all/architecture.rs"]
mod architecture;
#[path = "all/compose.rs"]
mod compose;
#[path = "all/documents.rs"]
mod documents;
#[path = "all/faults.rs"]
mod faults;
#[path = "all/fuzz.rs"]
mod fuzz;
#[path = "all/hostile_holders.rs"]
mod hostile_holders;
#[path = "all/hostile_tokens.rs"]
mod hostile_tokens;
#[path = "all/issuer.rs"]
mod issuer;
#[path = "all/keycloak.rs"]
mod keycloak;
#[path = "all/keycloak_doctor.rs"]
mod keycloak_doctor;
#[path = "all/main_job.rs"]
mod main_job;
#[path = "all/openapi.rs"]
mod openapi;
#[path = "all/oracle.rs"]
mod oracle;
#[path = "all/planted.rs"]
mod planted;
#[path = "all/residue.rs"]
mod residue;
#[path = "all/row_policies.rs"]
mod row_policies;
#[path = "all/simulator.rs"]
mod simulator;
#[path = "all/snowflake_dbt.rs"]
mod snowflake_dbt;
#[path = "all/snowflake_doctor.rs"]
mod snowflake_doctor;
#[path = "all/snowflake_job.rs"]
mod snowflake_job;
#[path = "all/snowflake_trouble.rs"]
mod snowflake_trouble;
#[path = "all/stack.rs"]
mod stack;
#[path = "all/store.rs"]
mod store;
#[path = "all/supply.rs"]
mod supply;
#[path = "all/trust.rs"]
mod trust;
#[path = "all/warehouse.rs"]
mod warehouse;
#[path = "all/warehouse_contract.rs"]
mod warehouse_contract;
