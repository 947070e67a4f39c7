-- What the last scan of each database found, so that the next one tells what is new.
CREATE TABLE scans (
    server      TEXT NOT NULL,
    database    TEXT NOT NULL,
    at          INTEGER NOT NULL,
    differences TEXT NOT NULL,        -- JSON
    PRIMARY KEY (server, database)
) STRICT, WITHOUT ROWID;
