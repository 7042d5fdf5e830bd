-- A closed roast's whole curve in one row: what remains when retention drops its frames.
CREATE TABLE curves (
    org_id      TEXT    NOT NULL,
    session_id  TEXT    NOT NULL,
    first_seq   INTEGER NOT NULL,
    samples     INTEGER NOT NULL,
    t0_ms       INTEGER NOT NULL,
    offsets_ms  TEXT    NOT NULL,
    bt_c        TEXT,
    et_c        TEXT,
    ror_c_per_min TEXT,
    gas_pct     TEXT,
    fan_pct     TEXT,
    drum_rpm    TEXT,
    ambient_c   TEXT,
    extras      TEXT,
    quality     TEXT,
    trust       INTEGER NOT NULL,
    made_ms     INTEGER NOT NULL,
    PRIMARY KEY (org_id, session_id),
    FOREIGN KEY (org_id, session_id) REFERENCES sessions
);
-- For the pass that makes curves: roasts that have none.
ALTER TABLE sessions ADD COLUMN curve_ms INTEGER;
CREATE INDEX sessions_without_curve ON sessions (started_ms) WHERE curve_ms IS NULL;
CREATE INDEX sessions_open_receipts ON sessions (started_ms, session_id)
    WHERE completeness <> 'complete' AND receipt IS NOT NULL;
