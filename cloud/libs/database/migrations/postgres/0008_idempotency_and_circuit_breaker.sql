-- What was answered to which Idempotency-Key, for a day.
CREATE TABLE idempotency (
    org_id          text   NOT NULL,
    idempotency_key text   NOT NULL,
    digest          bytea  NOT NULL, -- of the request
    made_ms         bigint NOT NULL,
    status          bigint,          -- null: being answered
    kind            text,
    body            bytea,
    PRIMARY KEY (org_id, idempotency_key)
);
CREATE INDEX idempotency_old ON idempotency (made_ms);

-- What happened to commands and their safety, counted by the minute: what governance is measured by.
CREATE TABLE autonomy_counts (
    org_id text   NOT NULL,
    minute bigint NOT NULL, -- minutes since 1970
    what   text   NOT NULL,
    n      bigint NOT NULL,
    PRIMARY KEY (org_id, minute, what)
);
-- How far an organisation lets its agents go, and since when.
CREATE TABLE autonomy_state (
    org_id         text   NOT NULL PRIMARY KEY,
    phase          text   NOT NULL,
    phase_start_ms bigint NOT NULL,
    version        bigint NOT NULL DEFAULT 1,
    body           text   NOT NULL -- JSON: whitelist, paused, declared, …
);
-- Circuit breaker rules that an organisation has changed; the others are the program's.
CREATE TABLE breaker_rules (
    org_id text NOT NULL,
    name   text NOT NULL,
    body   text NOT NULL, -- JSON
    PRIMARY KEY (org_id, name)
);
-- What governance has found and proposed: metrics, readiness, report, proposal, event.
CREATE TABLE governance_records (
    org_id    text   NOT NULL,
    kind      text   NOT NULL,
    record_id text   NOT NULL,
    at_ms     bigint NOT NULL,
    status    text   NOT NULL, -- of a proposal: pending, approved, rejected; of an event: open, resolved
    once_key  text,            -- one open event a rule, one pending proposal
    version   bigint NOT NULL DEFAULT 1,
    body      text   NOT NULL, -- JSON
    PRIMARY KEY (org_id, kind, record_id),
    UNIQUE (org_id, kind, once_key)
);
CREATE INDEX governance_records_recent ON governance_records (org_id, kind, at_ms DESC, record_id DESC);

-- Of several instances one does a thing.
CREATE TABLE leases (
    name     text   NOT NULL PRIMARY KEY,
    holder   text   NOT NULL,
    fence    bigint NOT NULL,
    until_ms bigint NOT NULL
);
-- What inference is told of machines that send no events of their own.
CREATE TABLE inference_configs (
    org_id     text   NOT NULL,
    site_id    text   NOT NULL,
    machine_id text   NOT NULL,
    body       text   NOT NULL, -- JSON: what differs from the defaults
    updated_ms bigint NOT NULL,
    PRIMARY KEY (org_id, site_id, machine_id)
);
