//! What a holder makes as its own role, in a schema that the owner role opened to it, and what it plants.

use super::attack::Act::{Does, LeftRunning, Refused, Tries};
use super::attack::{Attack, attack};

/// A schema in which its own role may create.
macro_rules! own {
    ($sql:literal) => {
        Does(concat!(
            "CREATE SCHEMA s{n}; GRANT ALL ON SCHEMA s{n} TO {me}; SET search_path = s{n}; SET ROLE NONE; ",
            $sql
        ))
    };
}

pub(super) const ATTACKS: &[Attack] = &[
    attack(
        "owns tables, views, sequences and indexes",
        &[own!(
            "CREATE TABLE t (i int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, j int); CREATE TABLE child (i int REFERENCES t); \
             CREATE TABLE part (i int) PARTITION BY RANGE (i); CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (1) TO (9); \
             CREATE VIEW v AS SELECT * FROM t; CREATE MATERIALIZED VIEW m AS SELECT * FROM v; CREATE SEQUENCE s; CREATE INDEX ON t ((j + 1)); \
             CREATE RULE r AS ON INSERT TO v DO INSTEAD NOTHING; GRANT ALL ON t, v, m TO PUBLIC; GRANT ALL ON t, v, m TO {other} WITH GRANT OPTION"
        )],
    ),
    attack(
        "owns triggers and policies",
        &[own!(
            "CREATE TABLE t (i int); CREATE TRIGGER same BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger(); \
             ALTER TABLE t ENABLE ROW LEVEL SECURITY; ALTER TABLE t FORCE ROW LEVEL SECURITY; CREATE POLICY p ON t TO {other} USING (false)"
        )],
    ),
    attack(
        "owns types, domains and casts",
        &[own!(
            "CREATE TYPE e AS ENUM ('a', 'b'); CREATE TYPE c AS (i int, e e); CREATE DOMAIN d AS c[]; CREATE TYPE r AS RANGE (SUBTYPE = float8); \
             CREATE CAST (e AS int) WITH INOUT; CREATE TABLE uses (d d, r r)"
        )],
    ),
    attack(
        "owns operators, collations, statistics and text search",
        &[own!(
            "CREATE OPERATOR @+@ (LEFTARG = int, RIGHTARG = int, FUNCTION = int4pl); CREATE COLLATION co (LOCALE = 'C'); \
             CREATE TABLE t (i int, j int); CREATE STATISTICS st ON i, j FROM t; CREATE TEXT SEARCH DICTIONARY td (TEMPLATE = simple); \
             CREATE TEXT SEARCH CONFIGURATION tc (COPY = simple); CREATE CONVERSION cv FOR 'UTF8' TO 'LATIN1' FROM utf8_to_iso8859_1"
        )],
    )
    .expiring(),
    attack(
        "owns functions of every kind, some with definer rights",
        &[own!(
            "CREATE FUNCTION f() RETURNS int LANGUAGE sql SECURITY DEFINER RETURN 1; CREATE FUNCTION f(text, VARIADIC int[]) RETURNS int LANGUAGE sql RETURN 1; \
             CREATE PROCEDURE \"it's \"\" odd\"(INOUT i int, OUT j text) LANGUAGE sql BEGIN ATOMIC SELECT 1, 'a'; END; \
             CREATE AGGREGATE agg(int) (SFUNC = int4pl, STYPE = int, INITCOND = '0'); CREATE AGGREGATE agg0(*) (SFUNC = int8inc, STYPE = int8, INITCOND = '0'); \
             CREATE FUNCTION pg_terminate_backend(int) RETURNS bool LANGUAGE sql RETURN true; CREATE FUNCTION lo_unlink(oid) RETURNS int LANGUAGE sql RETURN 1"
        )],
    ),
    attack(
        "owns functions that need each other",
        &[own!(
            "CREATE FUNCTION one() RETURNS int LANGUAGE sql RETURN 1; CREATE FUNCTION two() RETURNS int LANGUAGE sql RETURN s{n}.one(); \
             CREATE OR REPLACE FUNCTION one() RETURNS int LANGUAGE sql RETURN s{n}.two(); CREATE FUNCTION three() RETURNS int LANGUAGE sql RETURN s{n}.two()"
        )],
    ),
    attack(
        "owns a function that its own table needs",
        &[own!(
            "CREATE FUNCTION f() RETURNS int LANGUAGE sql RETURN 1; CREATE TABLE t (i int DEFAULT s{n}.f())"
        )],
    )
    .quarantined_for(".f() in database analytics"),
    attack(
        "owns a function that a table of the owner role needs",
        &[
            own!("CREATE FUNCTION \"f\u{1b}[2J\u{202e}\"() RETURNS int LANGUAGE sql RETURN 1"),
            Does("SET ROLE dbt_analytics; CREATE TABLE s{n}.t (i int DEFAULT s{n}.\"f\u{1b}[2J\u{202e}\"())"),
        ],
    )
    .quarantined_for("in database analytics"),
    attack(
        "owns a trigger function of a table of the owner role",
        &[
            own!("CREATE FUNCTION trap() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"),
            Does("SET ROLE dbt_analytics; CREATE TABLE t (i int); CREATE TRIGGER trap BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION trap()"),
        ],
    )
    .quarantined_for(".trap() in database analytics"),
    attack(
        "owns five thousand and more functions",
        &[own!(
            "DO $$ BEGIN FOR i IN 1..5100 LOOP EXECUTE format('CREATE FUNCTION many_%s() RETURNS int LANGUAGE sql AS ''SELECT 1''', i); END LOOP; END $$"
        )],
    )
    .quarantined_for("more than 5000 objects"),
    attack(
        "owns hundreds of functions with long names that its own tables need",
        &[own!(
            "DO $$ BEGIN FOR i IN 1..300 LOOP EXECUTE format('CREATE FUNCTION %1$s_%2$s(%3$s) RETURNS int LANGUAGE sql RETURN 1', \
             repeat('f', 50), i, rtrim(repeat('timestamp with time zone, ', 100), ', ')); EXECUTE format('CREATE VIEW v_%2$s AS SELECT %1$s_%2$s(%3$s)', \
             repeat('f', 50), i, rtrim(repeat('now(), ', 100), ', ')); END LOOP; END $$"
        )],
    )
    .quarantined_for("and 280 more"),
    attack(
        "owns two hundred tables and as many sequences and types",
        &[own!(
            "DO $$ BEGIN FOR i IN 1..200 LOOP EXECUTE format('CREATE TABLE many_%s (i serial)', i); END LOOP; END $$"
        )],
    ),
    attack(
        "owns things with names that break careless statements",
        &[own!(
            "CREATE TABLE \"'; DROP ROLE postgres; --\" (i int); CREATE TABLE \"a\"\"; b\" (\"c\"\"d\" int); CREATE TABLE \"$kdbt$ $$\" (i int); \
             CREATE TABLE \"\\' \\\\\" (i int); CREATE TABLE \"王伟 Ünïcode \u{202e}\" (i int); CREATE TABLE \"line\nbreak\" (i int); \
             CREATE TABLE \"a234567890123456789012345678901234567890123456789012345678901234\" (i int); CREATE FUNCTION \"pg_temp\"() RETURNS int LANGUAGE sql RETURN 1; \
             CREATE FUNCTION \"f(int); DROP ROLE postgres; --\"(\"x\"\"y\" int) RETURNS int LANGUAGE sql RETURN 1"
        )],
    ),
    attack(
        "plants operators in schemas called like the broker",
        &[
            Does(
                "CREATE SCHEMA kdbt__broker; CREATE SCHEMA kdbt__login_1; GRANT ALL ON SCHEMA kdbt__broker, kdbt__login_1 TO PUBLIC; SET search_path = kdbt__broker; \
                 CREATE FUNCTION trap(oid, regclass) RETURNS bool LANGUAGE plpgsql COST 0.0000001 AS $$ BEGIN CREATE ROLE canary LOGIN; RETURN true; END $$; \
                 CREATE FUNCTION trap(name, text) RETURNS bool LANGUAGE plpgsql COST 0.0000001 AS $$ BEGIN CREATE ROLE canary LOGIN; RETURN true; END $$; \
                 CREATE OPERATOR = (LEFTARG = oid, RIGHTARG = regclass, FUNCTION = trap); CREATE OPERATOR = (LEFTARG = name, RIGHTARG = text, FUNCTION = trap); \
                 CREATE OPERATOR kdbt__login_1.= (LEFTARG = oid, RIGHTARG = regclass, FUNCTION = trap)",
            ),
            Does("SET ROLE NONE; SELECT lo_create(0)"),
        ],
    ),
    attack(
        "makes a schema called like another's next lease",
        &[Does(
            "CREATE SCHEMA kdbt_ben_0; GRANT ALL ON SCHEMA kdbt_ben_0 TO PUBLIC; CREATE SCHEMA kdbt_ben_1; GRANT ALL ON SCHEMA kdbt_ben_1 TO PUBLIC; \
             CREATE FUNCTION kdbt_ben_0.now() RETURNS int LANGUAGE sql RETURN 1",
        )],
    ),
    attack(
        "hides catalog tables behind its own",
        &[
            Does("CREATE SCHEMA s{n}; SET search_path = s{n}, pg_catalog; CREATE TABLE s{n}.pg_roles (rolname name); CREATE VIEW s{n}.pg_shdepend AS SELECT 1 AS i"),
            Tries("CREATE TEMP TABLE pg_roles (oid oid, rolname name); CREATE TEMP VIEW pg_stat_activity AS SELECT 1 AS pid; CREATE FUNCTION pg_temp.now() RETURNS int LANGUAGE sql RETURN 1"),
            Tries("BEGIN; CREATE TEMP TABLE gone (i int) ON COMMIT DROP"),
        ],
    ),
    attack(
        "writes into the catalog",
        &[
            Refused("UPDATE pg_catalog.pg_authid SET rolcanlogin = true"),
            Refused("DELETE FROM pg_catalog.pg_shdepend"),
            Refused("INSERT INTO pg_catalog.pg_auth_members SELECT * FROM pg_catalog.pg_auth_members"),
            Refused("SET allow_system_table_mods = on"),
            Refused("SET session_replication_role = replica"),
            Refused("CREATE FUNCTION pg_catalog.trap() RETURNS int LANGUAGE sql RETURN 1"),
        ],
    ),
    attack(
        "lets a statement of the owner role fail late, in a deferred trigger that loops",
        &[
            Does(
                "CREATE SCHEMA s{n}; CREATE TABLE s{n}.t (i int); CREATE FUNCTION s{n}.forever() RETURNS trigger LANGUAGE plpgsql AS \
                 $$ BEGIN LOOP BEGIN PERFORM pg_sleep(1); EXCEPTION WHEN OTHERS OR query_canceled THEN NULL; END; END LOOP; END $$; \
                 CREATE CONSTRAINT TRIGGER forever AFTER INSERT ON s{n}.t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION s{n}.forever()",
            ),
            LeftRunning("BEGIN; INSERT INTO s{n}.t VALUES (1); COMMIT"),
        ],
    ),
    attack(
        "puts code behind an index of the owner role",
        &[
            Does(
                "CREATE SCHEMA s{n}; CREATE TABLE s{n}.t AS SELECT generate_series(1, 50) AS i; CREATE FUNCTION s{n}.code(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS \
                 $$ BEGIN IF current_user <> 'dbt_analytics' THEN EXECUTE 'CREATE ROLE canary'; END IF; RETURN $1; END $$; CREATE INDEX ON s{n}.t (s{n}.code(i)); ANALYZE s{n}.t",
            ),
        ],
    ),
    attack(
        "makes large objects as a reader",
        &[Does("SET default_transaction_read_only = off"), Does("SELECT lo_from_bytea(0, 'x') FROM generate_series(1, 20)")],
    )
    .on("marts"),
];
