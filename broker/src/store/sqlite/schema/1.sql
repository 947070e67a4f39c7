-- Times are milliseconds since the epoch. No column holds a secret or a verifier.
-- Live means `ended_at IS NULL`: the indexes that every request uses hold live rows only, so ended ones cost nothing.

CREATE TABLE installation (
    only_one INTEGER PRIMARY KEY DEFAULT 1 CHECK (only_one = 1),
    name     TEXT NOT NULL,
    -- Written to find out whether the store can write.
    probed_at INTEGER NOT NULL DEFAULT 0
) STRICT;

-- A slug belongs to one person for ever. An adopted lease tells the person's hash only, until that person comes.
CREATE TABLE slugs (
    slug         TEXT PRIMARY KEY,
    subject_hash TEXT NOT NULL,
    issuer       TEXT,
    subject      TEXT,
    UNIQUE (issuer, subject)
) STRICT, WITHOUT ROWID;

CREATE INDEX slugs_of_unknown ON slugs (subject_hash) WHERE issuer IS NULL;

CREATE TABLE leases (
    id           TEXT PRIMARY KEY,
    server       TEXT NOT NULL,
    target       TEXT,                -- NULL: adopted
    username     TEXT NOT NULL,
    slug         TEXT NOT NULL,
    slot         INTEGER NOT NULL,
    engine_id    TEXT,                -- JSON
    subject_hash TEXT NOT NULL,
    -- Of issued leases.
    issuer       TEXT,
    subject      TEXT,
    session      TEXT,
    display_name TEXT,
    azp          TEXT,
    access       TEXT,                -- the rendered grant, JSON
    reason       TEXT,
    owner_proof  BLOB,                -- SHA-256
    -- Of adopted ones.
    owner        TEXT,
    issued_at    INTEGER NOT NULL,
    ends_at      INTEGER NOT NULL,
    max_ends_at  INTEGER NOT NULL,
    state        TEXT NOT NULL CHECK (state IN ('provisioning', 'active', 'ending', 'quarantined', 'ended')),
    attempts     INTEGER NOT NULL DEFAULT 0,
    blocked_by   TEXT,                -- JSON
    ended_at     INTEGER,
    end_reason   TEXT,
    last_error   TEXT,
    -- When the reaper must look: the end, the end of a backoff, the end of a claim. NULL: provisioning or ended.
    wake_at      INTEGER,
    claim        TEXT,
    rest_until   INTEGER,
    CHECK ((state = 'ended') = (ended_at IS NOT NULL))
) STRICT;

CREATE UNIQUE INDEX leases_live_user ON leases (server, username) WHERE ended_at IS NULL;
CREATE INDEX leases_live ON leases (server, id) WHERE ended_at IS NULL;
CREATE INDEX leases_live_person ON leases (subject_hash, server) WHERE ended_at IS NULL;
CREATE INDEX leases_live_slot ON leases (server, slug, slot) WHERE ended_at IS NULL;
CREATE INDEX leases_live_target ON leases (target) WHERE ended_at IS NULL;
CREATE INDEX leases_wake ON leases (server, wake_at) WHERE wake_at IS NOT NULL;
CREATE INDEX leases_provisioning ON leases (server, issued_at) WHERE state = 'provisioning';
CREATE INDEX leases_resting ON leases (server, slug, rest_until) WHERE rest_until IS NOT NULL;
CREATE INDEX leases_person ON leases (subject, issuer, id);
CREATE INDEX leases_ended ON leases (ended_at) WHERE ended_at IS NOT NULL;

CREATE TABLE lease_rules (
    lease TEXT NOT NULL REFERENCES leases (id) ON DELETE CASCADE,
    rule  TEXT NOT NULL,
    live  INTEGER NOT NULL DEFAULT 1,
    PRIMARY KEY (lease, rule)
) STRICT, WITHOUT ROWID;

CREATE INDEX lease_rules_live ON lease_rules (rule) WHERE live = 1;

CREATE TABLE idempotency_keys (
    issuer  TEXT NOT NULL,
    subject TEXT NOT NULL,
    azp     TEXT NOT NULL,
    key     TEXT NOT NULL,
    body    BLOB NOT NULL,
    lease   TEXT NOT NULL REFERENCES leases (id) ON DELETE CASCADE,
    PRIMARY KEY (issuer, subject, azp, key)
) STRICT, WITHOUT ROWID;

CREATE INDEX idempotency_keys_lease ON idempotency_keys (lease);

CREATE TABLE audit (
    row   INTEGER PRIMARY KEY,
    chain TEXT NOT NULL,
    n     INTEGER NOT NULL,
    prev  TEXT NOT NULL,
    hash  TEXT NOT NULL,
    body  TEXT NOT NULL
) STRICT;
