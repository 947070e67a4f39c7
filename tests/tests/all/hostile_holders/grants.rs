//! What a holder grants, hands over and prepares, so that its role or another's cannot be dropped.

use super::attack::Act::{Does, Fails, Refused, Tries, TriesIn};
use super::attack::{Attack, attack};

pub(super) const ATTACKS: &[Attack] = &[
    attack(
        "grants its large objects to everybody, with the right to grant them on",
        &[Does(
            "SET ROLE NONE; SELECT lo_create(700{n}); GRANT ALL ON LARGE OBJECT 700{n} TO {other}, dbt_analytics, kdbt__broker, grp_raw_ro WITH GRANT OPTION",
        )],
    ),
    attack(
        "makes default privileges for everybody",
        &[
            Does("SET ROLE NONE; ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO {other}, kdbt__broker, PUBLIC"),
            Does("ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC"),
            Refused("ALTER DEFAULT PRIVILEGES FOR ROLE {other} GRANT ALL ON TABLES TO {me}"),
            Refused("ALTER DEFAULT PRIVILEGES FOR ROLE kdbt__broker GRANT ALL ON TABLES TO {me}"),
        ],
    ),
    attack(
        "makes default privileges of the owner role for itself",
        &[Does(
            "CREATE SCHEMA g{n}; ALTER DEFAULT PRIVILEGES IN SCHEMA g{n} GRANT ALL ON TABLES TO {me} WITH GRANT OPTION; CREATE TABLE g{n}.t (i int)",
        )],
    ),
    attack(
        "grants an owner's table to itself and on to another",
        &[Does(
            "CREATE SCHEMA g{n}; CREATE TABLE g{n}.t (i int, j int); GRANT USAGE ON SCHEMA g{n} TO {me}; \
             GRANT SELECT, UPDATE (j) ON g{n}.t TO {me} WITH GRANT OPTION; SET ROLE NONE; GRANT SELECT ON g{n}.t TO grp_raw_ro; GRANT UPDATE (j) ON g{n}.t TO grp_raw_ro WITH GRANT OPTION",
        )],
    ),
    attack(
        "collects grants of every kind on its own role",
        &[Does(
            "CREATE SCHEMA g{n}; GRANT ALL ON SCHEMA g{n} TO {me} WITH GRANT OPTION; CREATE SEQUENCE g{n}.s; GRANT ALL ON SEQUENCE g{n}.s TO {me}; \
             CREATE TYPE g{n}.e AS ENUM ('a'); GRANT USAGE ON TYPE g{n}.e TO {me}; CREATE DOMAIN g{n}.d AS int; GRANT USAGE ON DOMAIN g{n}.d TO {me}; \
             CREATE FUNCTION g{n}.f() RETURNS int LANGUAGE sql RETURN 1; GRANT EXECUTE ON FUNCTION g{n}.f() TO {me} WITH GRANT OPTION; \
             CREATE VIEW g{n}.v AS SELECT 1 AS i; GRANT ALL ON g{n}.v TO {me}; SELECT lo_create(800{n}); GRANT ALL ON LARGE OBJECT 800{n} TO {me}",
        )],
    ),
    attack(
        "asks for rights on the database itself",
        &[
            Tries("GRANT CREATE ON DATABASE analytics TO {me}"),
            Tries("GRANT CONNECT ON DATABASE analytics TO {me}"),
            Refused("ALTER DATABASE analytics OWNER TO dbt_analytics"),
            Refused("ALTER SCHEMA public OWNER TO dbt_analytics"),
            Refused("GRANT ALL ON pg_catalog.pg_authid TO {me}"),
        ],
    ),
    attack(
        "names itself in a row policy",
        &[Does(
            "CREATE SCHEMA g{n}; CREATE TABLE g{n}.t (i int); ALTER TABLE g{n}.t ENABLE ROW LEVEL SECURITY; \
             CREATE POLICY only_me ON g{n}.t TO {me} USING (true); CREATE POLICY us ON g{n}.t AS RESTRICTIVE TO {me}, {me} USING (false)",
        )],
    ),
    attack(
        "gives away what is the owner role's",
        &[
            Refused("ALTER TABLE durable.ledger OWNER TO {me}"),
            Refused("ALTER TABLE durable.ledger OWNER TO {other}"),
            Refused("ALTER SCHEMA durable OWNER TO {me}"),
            Refused("REASSIGN OWNED BY dbt_analytics TO {me}"),
            Refused("REASSIGN OWNED BY {other} TO dbt_analytics"),
            Does("SET ROLE NONE"),
            Refused("REASSIGN OWNED BY dbt_analytics TO {me}"),
            Refused("ALTER TABLE durable.ledger OWNER TO {me}"),
            Refused("DROP TABLE durable.ledger"),
        ],
    ),
    attack(
        "drops what others own and were granted",
        &[
            Refused("DROP OWNED BY {other}"),
            Refused("DROP OWNED BY kdbt__broker"),
            Refused("DROP OWNED BY kdbt__login_1"),
            Does("SET ROLE NONE"),
            Tries("DROP OWNED BY kdbt__connect_analytics"),
            Tries("DROP OWNED BY kdbt__temp_analytics"),
            Refused("DROP OWNED BY dbt_analytics"),
        ],
    ),
    attack(
        "owns things in databases that no policy names",
        &[
            TriesIn("postgres", "SET ROLE NONE; SELECT lo_create(0) FROM generate_series(1, 50)"),
            TriesIn("postgres", "SET ROLE NONE; CREATE TEMP TABLE mine (i int); GRANT ALL ON mine TO {other}"),
            TriesIn("template1", "SET ROLE NONE; SELECT lo_create(0); ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC"),
        ],
    ),
    attack(
        "prepares a transaction that has only read",
        &[Does("BEGIN; SET ROLE NONE; SELECT count(*) FROM pg_class; PREPARE TRANSACTION 'read {n}'")],
    ),
    attack(
        "prepares a transaction that has changed its own role",
        &[Does("BEGIN; SET ROLE NONE; ALTER ROLE current_user PASSWORD 'mine'; PREPARE TRANSACTION 'it''s \"{n}\" \\ mine'")],
    ),
    attack(
        "prepares a transaction as the owner role that grants to its own",
        &[Does(
            "CREATE SCHEMA g{n}; BEGIN; CREATE TABLE g{n}.t (i int); GRANT ALL ON g{n}.t TO {me}; PREPARE TRANSACTION 'grant {n}'",
        )],
    )
    .expiring(),
    attack(
        "prepares a transaction as the owner role that locks its own table",
        &[
            Does(
                "CREATE SCHEMA g{n}; GRANT ALL ON SCHEMA g{n} TO {me}; SET ROLE NONE; CREATE TABLE g{n}.t (i int); GRANT ALL ON g{n}.t TO dbt_analytics; \
                 SET ROLE dbt_analytics",
            ),
            Does("BEGIN; LOCK TABLE g{n}.t IN ACCESS EXCLUSIVE MODE; PREPARE TRANSACTION 'lock {n}'"),
        ],
    )
    .quarantined_for("prepared transaction lock "),
    attack(
        "prepares a transaction that owns a large object, in another database",
        &[TriesIn("postgres", "BEGIN; SET ROLE NONE; SELECT lo_create(900{n}); PREPARE TRANSACTION 'lo {n}'")],
    ),
    attack(
        "wants what only superusers make",
        &[
            Refused("CREATE EVENT TRIGGER canary ON ddl_command_start EXECUTE FUNCTION pg_catalog.suppress_redundant_updates_trigger()")
        ],
    )
    .expiring(),
    attack(
        "wants subscriptions, slots and servers elsewhere",
        &[
            Refused("CREATE SUBSCRIPTION canary CONNECTION 'host=127.0.0.1 dbname=x' PUBLICATION p WITH (connect = false)"),
            Refused("SELECT pg_create_physical_replication_slot('canary')"),
            Refused("CREATE FOREIGN DATA WRAPPER canary"),
            Fails("42704", "CREATE SERVER canary FOREIGN DATA WRAPPER nowhere"),
            Fails("42704", "CREATE USER MAPPING FOR CURRENT_USER SERVER nowhere"),
            Does("CREATE PUBLICATION pub{n}; SET ROLE NONE"),
            Refused("CREATE PUBLICATION mine{n}"),
        ],
    ),
    attack(
        "brings extensions that dial back to the server",
        &[
            Tries("CREATE EXTENSION dblink"),
            Tries("CREATE EXTENSION postgres_fdw"),
            Tries("CREATE EXTENSION adminpack"),
            Tries("CREATE SCHEMA x{n}; CREATE EXTENSION hstore SCHEMA x{n}"),
            Tries("SET ROLE NONE; CREATE EXTENSION citext"),
        ],
    ),
];
