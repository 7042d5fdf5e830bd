-- What was answered to which Idempotency-Key, for a day.
CREATE TABLE idempotency (
    org_id          TEXT NOT NULL,
    idempotency_key TEXT NOT NULL,
    digest          BLOB  NOT NULL, -- of the request
    made_ms         INTEGER NOT NULL,
    status          INTEGER,          -- null: being answered
    kind            TEXT,
    body            BLOB,
    PRIMARY KEY (org_id, idempotency_key)
);
CREATE INDEX idempotency_old ON idempotency (made_ms);

-- What happened to commands and their safety, counted by the minute: what governance is measured by.
CREATE TABLE autonomy_counts (
    org_id TEXT NOT NULL,
    minute INTEGER NOT NULL, -- minutes since 1970
    what   TEXT NOT NULL,
    n      INTEGER NOT NULL,
    PRIMARY KEY (org_id, minute, what)
);
-- How far an organisation lets its agents go, and since when.
CREATE TABLE autonomy_state (
    org_id         TEXT NOT NULL PRIMARY KEY,
    phase          TEXT NOT NULL,
    phase_start_ms INTEGER NOT NULL,
    version        INTEGER NOT NULL DEFAULT 1,
    body           TEXT NOT NULL -- JSON: whitelist, paused, declared, …
);
-- Circuit breaker rules that an organisation has changed; the others are the program's.
CREATE TABLE breaker_rules (
    org_id TEXT NOT NULL,
    name   TEXT NOT NULL,
    body   TEXT NOT NULL, -- JSON
    PRIMARY KEY (org_id, name)
);
-- What governance has found and proposed: metrics, readiness, report, proposal, event.
CREATE TABLE governance_records (
    org_id    TEXT NOT NULL,
    kind      TEXT NOT NULL,
    record_id TEXT NOT NULL,
    at_ms     INTEGER NOT NULL,
    status    TEXT NOT NULL, -- of a proposal: pending, approved, rejected; of an event: open, resolved
    once_key  TEXT,            -- one open event a rule, one pending proposal
    version   INTEGER NOT NULL DEFAULT 1,
    body      TEXT NOT NULL, -- JSON
    PRIMARY KEY (org_id, kind, record_id),
    UNIQUE (org_id, kind, once_key)
);
CREATE INDEX governance_records_recent ON governance_records (org_id, kind, at_ms DESC, record_id DESC);

-- Of several instances one does a thing.
CREATE TABLE leases (
    name     TEXT NOT NULL PRIMARY KEY,
    holder   TEXT NOT NULL,
    fence    INTEGER NOT NULL,
    until_ms INTEGER NOT NULL
);
-- What inference is told of machines that send no events of their own.
CREATE TABLE inference_configs (
    org_id     TEXT NOT NULL,
    site_id    TEXT NOT NULL,
    machine_id TEXT NOT NULL,
    body       TEXT NOT NULL, -- JSON: what differs from the defaults
    updated_ms INTEGER NOT NULL,
    PRIMARY KEY (org_id, site_id, machine_id)
);
