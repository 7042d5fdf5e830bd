-- Devices whose signatures are believed, and the machines each may speak for.
CREATE TABLE devices (
    org_id      text   NOT NULL,
    kid         text   NOT NULL,
    site_id     text   NOT NULL,
    machines    text   NOT NULL, -- JSON array of machine ids
    public_key  text   NOT NULL, -- PEM
    created_ms  bigint NOT NULL,
    revoked_ms  bigint,
    PRIMARY KEY (org_id, kid)
);

CREATE TABLE machines (
    machine_no  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    org_id      text   NOT NULL,
    site_id     text   NOT NULL,
    machine_id  text   NOT NULL,
    created_ms  bigint NOT NULL,
    UNIQUE (org_id, site_id, machine_id)
);

-- One row a journal: how far it has arrived, and what is missing. Locking it orders the writers
-- of one chain, which is what makes a frame that comes twice change nothing.
CREATE TABLE chains (
    chain_no    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    org_id      text   NOT NULL,
    machine_no  bigint NOT NULL REFERENCES machines,
    chain       bytea  NOT NULL,
    kid         text   NOT NULL, -- empty: unsigned messages of the reference's publishers
    next_number bigint NOT NULL DEFAULT 1,
    gaps        text   NOT NULL DEFAULT '[]', -- JSON [[first,last],…] below next_number
    last_digest bytea,
    seen_ms     bigint NOT NULL,
    UNIQUE (org_id, machine_no, chain)
) WITH (fillfactor = 70);

-- A sequence of its own: identity columns of partitioned tables came with PostgreSQL 17.
CREATE SEQUENCE frames_arrival_seq AS bigint;

-- A frame a row: columns as arrays, the signed bytes beside them.
CREATE TABLE frames (
    org_id      text     NOT NULL,
    chain_no    bigint   NOT NULL,
    number      bigint   NOT NULL,
    machine_no  bigint   NOT NULL,
    arrival     bigint   NOT NULL DEFAULT nextval('frames_arrival_seq'),
    boot        bigint   NOT NULL,
    mono_ms     bigint   NOT NULL,
    clock       smallint NOT NULL,
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
    extras      text, -- JSON {name: [values]}
    quality     text, -- JSON {name: [[index, code],…]}; null: all good
    trust       smallint NOT NULL, -- 0 verified, 1 unsigned, 2 signature failed
    digest      bytea    NOT NULL,
    signed      bytea    NOT NULL,
    received_ms bigint   NOT NULL,
    PRIMARY KEY (chain_no, number, t0_ms)
) PARTITION BY RANGE (t0_ms);
CREATE TABLE frames_default PARTITION OF frames DEFAULT;
-- Arrays of a frame stay in the row: compressing them costs more than the bytes it saves.
ALTER TABLE frames_default SET (toast_tuple_target = 8160);
CREATE INDEX frames_arrival ON frames (arrival);
CREATE INDEX frames_seq ON frames (chain_no, first_seq);

-- For anyone who queries with SQL: a sample a row.
CREATE VIEW points AS
SELECT m.org_id, m.site_id, m.machine_id, f.chain_no, f.first_seq + p.i - 1 AS seq,
       to_timestamp((f.t0_ms + p.offset_ms) / 1000.0) AS ts,
       f.bt_c[p.i] AS bt_c, f.et_c[p.i] AS et_c, f.ror_c_per_min[p.i] AS ror_c_per_min,
       f.gas_pct[p.i] AS gas_pct, f.fan_pct[p.i] AS fan_pct, f.drum_rpm[p.i] AS drum_rpm,
       f.ambient_c[p.i] AS ambient_c
FROM frames f
JOIN machines m USING (machine_no)
CROSS JOIN LATERAL unnest(f.offsets_ms) WITH ORDINALITY AS p (offset_ms, i);

-- A roast is a range of its chain's samples.
CREATE TABLE sessions (
    org_id       text   NOT NULL,
    session_id   text   NOT NULL,
    machine_no   bigint NOT NULL REFERENCES machines,
    chain_no     bigint NOT NULL REFERENCES chains,
    started_ms   bigint NOT NULL,
    ended_ms     bigint,
    status       text   NOT NULL,
    first_seq    bigint,
    last_seq     bigint,
    fc_s         double precision,
    drop_s       double precision,
    completeness text   NOT NULL DEFAULT 'open',
    receipt      bytea,
    -- Counted when the roast is closed; a running one is counted when asked.
    points          bigint,
    verified_points bigint,
    unsigned_points bigint,
    failed_points   bigint,
    max_bt_c        double precision,
    PRIMARY KEY (org_id, session_id)
);
CREATE INDEX sessions_recent ON sessions (org_id, started_ms DESC);
CREATE INDEX sessions_machine ON sessions (machine_no, started_ms DESC);

CREATE TABLE events (
    arrival     bigint NOT NULL GENERATED ALWAYS AS IDENTITY,
    org_id      text   NOT NULL,
    session_id  text   NOT NULL,
    machine_no  bigint NOT NULL,
    kind        text   NOT NULL,
    source      text   NOT NULL,
    seq         bigint NOT NULL,
    at_ms       bigint NOT NULL,
    elapsed_s   double precision NOT NULL,
    bt_c        double precision,
    note        text,
    trust       smallint NOT NULL,
    PRIMARY KEY (org_id, session_id, kind, source, seq, at_ms)
);
CREATE INDEX events_arrival ON events (arrival);
CREATE INDEX events_machine ON events (machine_no, arrival);
