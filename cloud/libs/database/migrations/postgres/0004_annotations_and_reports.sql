-- What people and workers write about roasts, beside what machines sent.

-- Roasts that have ended and nobody has taken notice of yet: told again until somebody has.
CREATE TABLE outbox (
    org_id     text   NOT NULL,
    session_id text   NOT NULL,
    made_ms    bigint NOT NULL,
    due_ms     bigint NOT NULL,
    tries      bigint NOT NULL DEFAULT 0,
    body       text   NOT NULL, -- JSON: the event
    PRIMARY KEY (org_id, session_id)
);
CREATE INDEX outbox_due ON outbox (due_ms);
-- When the roast's end was told: once, in the transaction that wrote the outbox.
ALTER TABLE sessions ADD COLUMN announced_ms bigint;
-- When somebody here first saw that it was closed, by our clock: a gateway's may be wrong, or long past.
ALTER TABLE sessions ADD COLUMN closed_seen_ms bigint;
UPDATE sessions SET announced_ms = 0 WHERE status = 'CLOSED';
CREATE INDEX sessions_active ON sessions (started_ms, session_id) WHERE status = 'ACTIVE';
CREATE INDEX sessions_to_announce ON sessions (started_ms, session_id)
    WHERE status = 'CLOSED' AND announced_ms IS NULL;

CREATE TABLE session_meta (
    org_id     text   NOT NULL,
    session_id text   NOT NULL,
    version    bigint NOT NULL,
    updated_ms bigint NOT NULL,
    body       text   NOT NULL,
    PRIMARY KEY (org_id, session_id),
    FOREIGN KEY (org_id, session_id) REFERENCES sessions
);
CREATE TABLE session_notes (
    org_id     text   NOT NULL,
    note_id    text   NOT NULL,
    session_id text   NOT NULL,
    created_ms bigint NOT NULL,
    body       text   NOT NULL,
    PRIMARY KEY (org_id, note_id),
    FOREIGN KEY (org_id, session_id) REFERENCES sessions
);
CREATE INDEX session_notes_recent ON session_notes (org_id, session_id, created_ms DESC, note_id DESC);
CREATE TABLE session_overrides (
    org_id     text   NOT NULL,
    session_id text   NOT NULL,
    kind       text   NOT NULL,
    updated_ms bigint NOT NULL,
    body       text   NOT NULL,
    PRIMARY KEY (org_id, session_id, kind),
    FOREIGN KEY (org_id, session_id) REFERENCES sessions
);
CREATE TABLE reports (
    org_id     text   NOT NULL,
    report_id  text   NOT NULL,
    session_id text   NOT NULL,
    kind       text   NOT NULL,
    created_ms bigint NOT NULL,
    body       text   NOT NULL,
    PRIMARY KEY (org_id, report_id),
    UNIQUE (org_id, session_id, kind),
    FOREIGN KEY (org_id, session_id) REFERENCES sessions
);
CREATE INDEX reports_recent ON reports (org_id, session_id, created_ms DESC, report_id DESC);
