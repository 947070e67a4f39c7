//! What a holder does to its own role, and as whom it tries to act.

use super::attack::Act::{Does, Fails, LeftRunning, Refused, Tries};
use super::attack::{Attack, attack};

pub(super) const ATTACKS: &[Attack] = &[
    attack(
        "gives itself a password that nobody else knows",
        &[Does("SET ROLE NONE; ALTER ROLE current_user PASSWORD 'mine'")],
    ),
    attack(
        "gives itself a password and lets the lease expire",
        &[Does("SET ROLE NONE; ALTER ROLE current_user PASSWORD 'mine'")],
    )
    .expiring(),
    attack(
        "takes its own password away",
        &[Does("SET ROLE NONE; ALTER ROLE current_user PASSWORD NULL")],
    ),
    attack(
        "asks the server for a longer life",
        &[
            Does("SET ROLE NONE"),
            Refused("ALTER ROLE current_user VALID UNTIL 'infinity'"),
            Refused("ALTER ROLE current_user PASSWORD 'mine' VALID UNTIL 'infinity'"),
        ],
    )
    .expiring(),
    attack(
        "asks for more power",
        &[
            Does("SET ROLE NONE"),
            Refused("ALTER ROLE current_user SUPERUSER"),
            Refused("ALTER ROLE current_user CREATEROLE"),
            Refused("ALTER ROLE current_user CREATEDB"),
            Refused("ALTER ROLE current_user REPLICATION"),
            Refused("ALTER ROLE current_user BYPASSRLS"),
            Refused("ALTER ROLE current_user INHERIT"),
            Refused("ALTER ROLE current_user CONNECTION LIMIT -1"),
            Refused("ALTER ROLE dbt_analytics LOGIN"),
        ],
    ),
    attack(
        "takes another name",
        &[
            Fails("0A000", "ALTER ROLE {me} RENAME TO postgres_2"),
            Refused("ALTER ROLE {other} RENAME TO kdbt_gone"),
        ],
    ),
    attack(
        "forges its mark",
        &[
            Does("SET ROLE NONE"),
            Refused("COMMENT ON ROLE {me} IS NULL"),
            Refused("COMMENT ON ROLE {other} IS 'kdbt/1 demo lse_0'"),
            Refused("COMMENT ON ROLE dbt_analytics IS 'kdbt/1 demo own sub=0'"),
            Fails("22023", "SECURITY LABEL ON ROLE {me} IS 'mine'"),
        ],
    ),
    attack(
        "forges the mark of the owner role that is its own alone",
        &[
            Refused("COMMENT ON ROLE kdbt__own_mal{n} IS NULL"),
            Refused("GRANT kdbt__own_mal{n} TO {other}"),
            Does("ALTER ROLE kdbt__own_mal{n} PASSWORD 'mine'"),
            Does("CREATE TABLE dbt_mal{n}.kept (i int)"),
        ],
    )
    .on("dev"),
    attack(
        "changes what its next sessions start with",
        &[
            Does("SET ROLE NONE; ALTER ROLE current_user SET role = 'none'"),
            Does("ALTER ROLE current_user SET search_path = durable, pg_catalog, public"),
            Does("ALTER ROLE current_user SET statement_timeout = 0; ALTER ROLE current_user SET lock_timeout = '1h'"),
            Does("ALTER ROLE current_user SET default_transaction_read_only = on"),
            Does("ALTER ROLE current_user IN DATABASE postgres SET work_mem = '64kB'"),
            Tries("ALTER ROLE current_user SET local_preload_libraries = 'nowhere'"),
            Refused("ALTER ROLE current_user SET session_preload_libraries = 'nowhere'"),
            Refused("ALTER ROLE current_user SET log_statement = 'none'"),
        ],
    ),
    attack(
        "changes what the sessions of others start with",
        &[
            Refused("ALTER ROLE ALL SET search_path = durable"),
            Refused("ALTER ROLE {other} SET role = 'none'"),
            Refused("ALTER ROLE kdbt__login_1 SET search_path = durable"),
            Refused("ALTER DATABASE analytics SET search_path = durable"),
            Refused("ALTER DATABASE postgres SET default_transaction_read_only = on"),
            Refused("ALTER SYSTEM SET max_connections = 5"),
            Does("SET ROLE NONE"),
            Refused("ALTER SYSTEM SET search_path = 'durable'"),
        ],
    ),
    attack(
        "gives the owner role a password and settings, and holds its row",
        &[
            Does("ALTER ROLE dbt_analytics PASSWORD 'mine'"),
            Does("ALTER ROLE dbt_analytics SET search_path = nowhere"),
            Does("ALTER ROLE dbt_analytics SET statement_timeout = '1ms'"),
            Does("BEGIN; ALTER ROLE dbt_analytics PASSWORD 'mine'"),
        ],
    ),
    attack(
        "acts as others",
        &[
            Refused("SET ROLE {other}"),
            Refused("SET ROLE kdbt__broker"),
            Refused("SET ROLE kdbt__login_1"),
            Refused("SET ROLE postgres"),
            Refused("SET ROLE pg_execute_server_program"),
            Refused("SET ROLE grp_marts_ro"),
            Refused("SET SESSION AUTHORIZATION {other}"),
            Refused("SET SESSION AUTHORIZATION kdbt__login_1"),
            Refused("SET SESSION AUTHORIZATION dbt_analytics"),
        ],
    ),
    attack(
        "resets all that was set for it",
        &[
            Does("DISCARD ALL"),
            Does("SET SESSION AUTHORIZATION DEFAULT; RESET ROLE; RESET ALL"),
            Does("SET SESSION AUTHORIZATION {me}; SET ROLE dbt_analytics; SET ROLE NONE"),
        ],
    ),
    attack(
        "gives roles to others and takes those of others",
        &[
            Refused("GRANT dbt_analytics TO {other}"),
            Refused("GRANT {other} TO {me}"),
            Refused("GRANT kdbt__broker TO {me}"),
            Refused("GRANT pg_read_all_data TO dbt_analytics"),
            Does("SET ROLE NONE"),
            Refused("GRANT {me} TO {other}"),
            Refused("GRANT dbt_analytics TO {me} WITH ADMIN OPTION"),
            Refused("REVOKE dbt_analytics FROM {other}"),
        ],
    ),
    attack(
        "makes, drops and changes roles and databases",
        &[
            Refused("CREATE ROLE canary LOGIN PASSWORD 'mine'"),
            Refused("CREATE USER canary IN ROLE dbt_analytics"),
            Refused("DROP ROLE {other}"),
            Refused("ALTER ROLE {other} PASSWORD 'mine'"),
            Refused("ALTER ROLE {other} NOLOGIN"),
            Refused("CREATE DATABASE canary"),
            Refused("DROP DATABASE postgres"),
            Refused("CREATE TABLESPACE canary LOCATION '/tmp'"),
        ],
    ),
    attack(
        "holds its own row in four sessions at once",
        &[
            Does("BEGIN; SET ROLE NONE; ALTER ROLE current_user PASSWORD 'mine'"),
            LeftRunning("SET ROLE NONE; ALTER ROLE current_user PASSWORD 'mine'; SELECT pg_sleep(1000)"),
            LeftRunning("SET ROLE NONE; ALTER ROLE current_user SET work_mem = '1MB'; SELECT pg_sleep(1000)"),
            LeftRunning("BEGIN; SET ROLE NONE; ALTER ROLE current_user PASSWORD NULL; SELECT pg_sleep(1000)"),
        ],
    )
    .expiring(),
];
