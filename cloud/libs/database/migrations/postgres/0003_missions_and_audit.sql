-- Missions: a durable queue. `lane` and `due_ms` say who may claim when: 0 pending, 1 retry,
-- 2 running (due when its lease ends); null when nobody may.
CREATE TABLE missions (
    org_id           text   NOT NULL,
    mission_id       text   NOT NULL,
    idempotency_key  text   NOT NULL,
    goal             text   NOT NULL,
    status           text   NOT NULL,
    urgency          bigint NOT NULL, -- 0 high, 1 medium, 2 low
    lane             bigint,
    due_ms           bigint,
    subject_id       text,
    session_id       text,
    site_id          text,
    machine_id       text,
    body             text   NOT NULL, -- JSON: goal, params, context, constraints, signals, …
    governance       text,
    rate_limited     bigint NOT NULL DEFAULT 0,
    approved         bigint NOT NULL DEFAULT 0,
    actor            text,
    attempts         bigint NOT NULL DEFAULT 0,
    max_attempts     bigint NOT NULL,
    created_ms       bigint NOT NULL,
    updated_ms       bigint NOT NULL,
    claimed_by       text,
    claimed_ms       bigint,
    lease_id         text,
    lease_expires_ms bigint,
    heartbeat_ms     bigint,
    completed_ms     bigint,
    failed_ms        bigint,
    result           text,
    last_error       text,
    PRIMARY KEY (org_id, mission_id),
    UNIQUE (org_id, idempotency_key)
) WITH (fillfactor = 70);
-- Claims rewrite their rows at a high rate: keep the queue's index small and freshly vacuumed.
ALTER TABLE missions SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
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
    org_id text   NOT NULL,
    what   text   NOT NULL, -- a status, or rate_limited, approved
    shard  bigint NOT NULL,
    n      bigint NOT NULL,
    PRIMARY KEY (org_id, what, shard)
) WITH (fillfactor = 50);
ALTER TABLE mission_counts SET (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 1000,
                                autovacuum_vacuum_cost_delay = 0);
CREATE FUNCTION count_mission() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    cell bigint := hashtext(NEW.mission_id) & 15;
BEGIN
    -- Always in the same order, so that two missions never wait for each other.
    INSERT INTO mission_counts AS c (org_id, what, shard, n)
    SELECT NEW.org_id, moved.what, cell, sum(moved.n) FROM (
        SELECT NEW.status AS what, 1 AS n
        UNION ALL SELECT OLD.status, -1 WHERE TG_OP = 'UPDATE'
        UNION ALL SELECT 'approved', NEW.approved - CASE WHEN TG_OP = 'UPDATE' THEN OLD.approved ELSE 0 END
        UNION ALL SELECT 'rate_limited',
                         NEW.rate_limited - CASE WHEN TG_OP = 'UPDATE' THEN OLD.rate_limited ELSE 0 END
    ) moved GROUP BY moved.what HAVING sum(moved.n) <> 0 ORDER BY moved.what
    ON CONFLICT (org_id, what, shard) DO UPDATE SET n = c.n + EXCLUDED.n;
    RETURN NULL;
END $$;
CREATE TRIGGER mission_made AFTER INSERT ON missions FOR EACH ROW EXECUTE FUNCTION count_mission();
CREATE TRIGGER mission_moved AFTER UPDATE OF status, approved, rate_limited ON missions FOR EACH ROW
    WHEN (OLD.status <> NEW.status OR OLD.approved <> NEW.approved OR OLD.rate_limited <> NEW.rate_limited)
    EXECUTE FUNCTION count_mission();

-- Each version of an organisation's policy; the highest counts.
CREATE TABLE governor_configs (
    org_id     text   NOT NULL,
    version    bigint NOT NULL,
    config     text   NOT NULL,
    actor      text   NOT NULL,
    created_ms bigint NOT NULL,
    PRIMARY KEY (org_id, version)
);
-- Token buckets of mission creation.
CREATE TABLE governor_buckets (
    org_id     text   NOT NULL,
    bucket     text   NOT NULL,
    tokens     double precision NOT NULL,
    updated_ms bigint NOT NULL,
    PRIMARY KEY (org_id, bucket)
);

CREATE TABLE traces (
    org_id     text   NOT NULL,
    trace_id   text   NOT NULL,
    mission_id text   NOT NULL,
    agent_id   text   NOT NULL,
    status     text   NOT NULL,
    started_ms bigint NOT NULL,
    stored_ms  bigint NOT NULL,
    body       text   NOT NULL,
    PRIMARY KEY (org_id, trace_id)
);
CREATE INDEX traces_recent ON traces (org_id, started_ms DESC, trace_id DESC);
CREATE INDEX traces_by_mission ON traces (org_id, mission_id, started_ms DESC);
CREATE INDEX traces_by_agent ON traces (org_id, agent_id, started_ms DESC);

-- Agents and tools that have introduced themselves.
CREATE TABLE cards (
    org_id     text   NOT NULL,
    kind       text   NOT NULL, -- agent, tool
    id         text   NOT NULL,
    body       text   NOT NULL,
    updated_ms bigint NOT NULL,
    PRIMARY KEY (org_id, kind, id)
);

-- Who changed what: append-only, each entry hashed together with the one before it.
CREATE TABLE audit (
    org_id  text   NOT NULL,
    n       bigint NOT NULL,
    at_ms   bigint NOT NULL,
    actor   text   NOT NULL, -- JSON
    action  text   NOT NULL,
    subject text   NOT NULL,
    details text   NOT NULL, -- JSON
    hash    bytea  NOT NULL,
    PRIMARY KEY (org_id, n)
);
CREATE TABLE audit_heads (
    org_id text   NOT NULL PRIMARY KEY,
    n      bigint NOT NULL,
    hash   bytea  NOT NULL
);
CREATE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'the audit log is append-only'; END $$;
CREATE TRIGGER audit_kept BEFORE UPDATE OR DELETE ON audit FOR EACH ROW EXECUTE FUNCTION audit_is_append_only();
