-- A closed roast's whole curve in one row: what remains when retention drops its frames.
CREATE TABLE curves (
    org_id      text     NOT NULL,
    session_id  text     NOT NULL,
    first_seq   bigint   NOT NULL,
    samples     integer  NOT NULL,
    t0_ms       bigint   NOT NULL,
    offsets_ms  integer[] NOT NULL,
    bt_c        real[],
    et_c        real[],
    ror_c_per_min real[],
    gas_pct     real[],
    fan_pct     real[],
    drum_rpm    real[],
    ambient_c   real[],
    extras      text,
    quality     text,
    trust       smallint NOT NULL,
    made_ms     bigint   NOT NULL,
    PRIMARY KEY (org_id, session_id),
    FOREIGN KEY (org_id, session_id) REFERENCES sessions
);
-- For the pass that makes curves: roasts that have none.
ALTER TABLE sessions ADD COLUMN curve_ms bigint;
CREATE INDEX sessions_without_curve ON sessions (started_ms) WHERE curve_ms IS NULL;
CREATE INDEX sessions_open_receipts ON sessions (started_ms, session_id)
    WHERE completeness <> 'complete' AND receipt IS NOT NULL;
