-- Missions: a durable queue. `lane` and `due_ms` say who may claim when: 0 pending, 1 retry,
-- 2 running (due when its lease ends); null when nobody may.
CREATE TABLE missions (
    org_id           TEXT   NOT NULL,
    mission_id       TEXT   NOT NULL,
    idempotency_key  TEXT   NOT NULL,
    goal             TEXT   NOT NULL,
    status           TEXT   NOT NULL,
    urgency          INTEGER NOT NULL, -- 0 high, 1 medium, 2 low
    lane             INTEGER,
    due_ms           INTEGER,
    subject_id       TEXT,
    session_id       TEXT,
    site_id          TEXT,
    machine_id       TEXT,
    body             TEXT   NOT NULL, -- JSON: goal, params, context, constraints, signals, …
    governance       TEXT,
    rate_limited     INTEGER NOT NULL DEFAULT 0,
    approved         INTEGER NOT NULL DEFAULT 0,
    actor            TEXT,
    attempts         INTEGER NOT NULL DEFAULT 0,
    max_attempts     INTEGER NOT NULL,
    created_ms       INTEGER NOT NULL,
    updated_ms       INTEGER NOT NULL,
    claimed_by       TEXT,
    claimed_ms       INTEGER,
    lease_id         TEXT,
    lease_expires_ms INTEGER,
    heartbeat_ms     INTEGER,
    completed_ms     INTEGER,
    failed_ms        INTEGER,
    result           TEXT,
    last_error       TEXT,
    PRIMARY KEY (org_id, mission_id),
    UNIQUE (org_id, idempotency_key)
);
CREATE INDEX missions_claimable ON missions (urgency, lane, due_ms) WHERE lane IS NOT NULL;
CREATE INDEX missions_claimable_of_org ON missions (org_id, urgency, lane, due_ms) WHERE lane IS NOT NULL;
CREATE INDEX missions_claimable_by_goal ON missions (goal, urgency, lane, due_ms) WHERE lane IS NOT NULL;
CREATE INDEX missions_recent ON missions (org_id, created_ms DESC, mission_id DESC);
CREATE INDEX missions_by_status ON missions (org_id, status, created_ms DESC);
CREATE INDEX missions_by_session ON missions (org_id, session_id) WHERE session_id IS NOT NULL;
CREATE INDEX missions_by_subject ON missions (org_id, subject_id) WHERE subject_id IS NOT NULL;
CREATE INDEX missions_by_machine ON missions (org_id, machine_id, created_ms DESC) WHERE machine_id IS NOT NULL;
CREATE INDEX missions_by_goal ON missions (org_id, goal, created_ms DESC);

-- How many missions are in each state, kept by the transaction that moves them. Shards keep workers
-- from waiting for each other's rows; a sum over them is the count.
CREATE TABLE mission_counts (
    org_id TEXT   NOT NULL,
    what   TEXT   NOT NULL, -- a status, or rate_limited, approved
    shard  INTEGER NOT NULL,
    n      INTEGER NOT NULL,
    PRIMARY KEY (org_id, what, shard)
);
CREATE TRIGGER mission_made AFTER INSERT ON missions BEGIN
    INSERT INTO mission_counts (org_id, what, shard, n) VALUES (NEW.org_id, NEW.status, 0, 1)
    ON CONFLICT (org_id, what, shard) DO UPDATE SET n = n + excluded.n;
    INSERT INTO mission_counts (org_id, what, shard, n) VALUES (NEW.org_id, 'rate_limited', 0, NEW.rate_limited)
    ON CONFLICT (org_id, what, shard) DO UPDATE SET n = n + excluded.n;
END;
CREATE TRIGGER mission_moved AFTER UPDATE OF status, approved, rate_limited ON missions
WHEN OLD.status <> NEW.status OR OLD.approved <> NEW.approved OR OLD.rate_limited <> NEW.rate_limited BEGIN
    INSERT INTO mission_counts (org_id, what, shard, n) VALUES (NEW.org_id, OLD.status, 0, -1)
    ON CONFLICT (org_id, what, shard) DO UPDATE SET n = n + excluded.n;
    INSERT INTO mission_counts (org_id, what, shard, n) VALUES (NEW.org_id, NEW.status, 0, 1)
    ON CONFLICT (org_id, what, shard) DO UPDATE SET n = n + excluded.n;
    INSERT INTO mission_counts (org_id, what, shard, n) VALUES (NEW.org_id, 'approved', 0, NEW.approved - OLD.approved)
    ON CONFLICT (org_id, what, shard) DO UPDATE SET n = n + excluded.n;
    INSERT INTO mission_counts (org_id, what, shard, n) VALUES (NEW.org_id, 'rate_limited', 0, NEW.rate_limited - OLD.rate_limited)
    ON CONFLICT (org_id, what, shard) DO UPDATE SET n = n + excluded.n;
END;

-- Each version of an organisation's policy; the highest counts.
CREATE TABLE governor_configs (
    org_id     TEXT   NOT NULL,
    version    INTEGER NOT NULL,
    config     TEXT   NOT NULL,
    actor      TEXT   NOT NULL,
    created_ms INTEGER NOT NULL,
    PRIMARY KEY (org_id, version)
);
-- Token buckets of mission creation.
CREATE TABLE governor_buckets (
    org_id     TEXT   NOT NULL,
    bucket     TEXT   NOT NULL,
    tokens     REAL NOT NULL,
    updated_ms INTEGER NOT NULL,
    PRIMARY KEY (org_id, bucket)
);

CREATE TABLE traces (
    org_id     TEXT   NOT NULL,
    trace_id   TEXT   NOT NULL,
    mission_id TEXT   NOT NULL,
    agent_id   TEXT   NOT NULL,
    status     TEXT   NOT NULL,
    started_ms INTEGER NOT NULL,
    stored_ms  INTEGER NOT NULL,
    body       TEXT   NOT NULL,
    PRIMARY KEY (org_id, trace_id)
);
CREATE INDEX traces_recent ON traces (org_id, started_ms DESC, trace_id DESC);
CREATE INDEX traces_by_mission ON traces (org_id, mission_id, started_ms DESC);
CREATE INDEX traces_by_agent ON traces (org_id, agent_id, started_ms DESC);

-- Agents and tools that have introduced themselves.
CREATE TABLE cards (
    org_id     TEXT   NOT NULL,
    kind       TEXT   NOT NULL, -- agent, tool
    id         TEXT   NOT NULL,
    body       TEXT   NOT NULL,
    updated_ms INTEGER NOT NULL,
    PRIMARY KEY (org_id, kind, id)
);

-- Who changed what: append-only, each entry hashed together with the one before it.
CREATE TABLE audit (
    org_id  TEXT   NOT NULL,
    n       INTEGER NOT NULL,
    at_ms   INTEGER NOT NULL,
    actor   TEXT   NOT NULL, -- JSON
    action  TEXT   NOT NULL,
    subject TEXT   NOT NULL,
    details TEXT   NOT NULL, -- JSON
    hash    BLOB  NOT NULL,
    PRIMARY KEY (org_id, n)
);
CREATE TABLE audit_heads (
    org_id TEXT   NOT NULL PRIMARY KEY,
    n      INTEGER NOT NULL,
    hash   BLOB  NOT NULL
);
CREATE TRIGGER audit_not_changed BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
CREATE TRIGGER audit_not_deleted BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
