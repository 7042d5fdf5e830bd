-- Devices whose signatures are believed, and the machines each may speak for.
CREATE TABLE devices (
    org_id      TEXT   NOT NULL,
    kid         TEXT   NOT NULL,
    site_id     TEXT   NOT NULL,
    machines    TEXT   NOT NULL, -- JSON array of machine ids
    public_key  TEXT   NOT NULL, -- PEM
    created_ms  INTEGER NOT NULL,
    revoked_ms  INTEGER,
    PRIMARY KEY (org_id, kid)
);

CREATE TABLE machines (
    machine_no  INTEGER PRIMARY KEY AUTOINCREMENT,
    org_id      TEXT   NOT NULL,
    site_id     TEXT   NOT NULL,
    machine_id  TEXT   NOT NULL,
    created_ms  INTEGER NOT NULL,
    UNIQUE (org_id, site_id, machine_id)
);

-- One row a journal: how far it has arrived, and what is missing. Locking it orders the writers
-- of one chain, which is what makes a frame that comes twice change nothing.
CREATE TABLE chains (
    chain_no    INTEGER PRIMARY KEY AUTOINCREMENT,
    org_id      TEXT   NOT NULL,
    machine_no  INTEGER NOT NULL REFERENCES machines,
    chain       BLOB  NOT NULL,
    kid         TEXT   NOT NULL, -- empty: unsigned messages of the reference's publishers
    next_number INTEGER NOT NULL DEFAULT 1,
    gaps        TEXT   NOT NULL DEFAULT '[]', -- JSON [[first,last],…] below next_number
    last_digest BLOB,
    seen_ms     INTEGER NOT NULL,
    UNIQUE (org_id, machine_no, chain)
);

-- A frame a row: columns as JSON arrays, the signed bytes beside them.
CREATE TABLE frames (
    arrival     INTEGER PRIMARY KEY AUTOINCREMENT,
    org_id      TEXT     NOT NULL,
    chain_no    INTEGER   NOT NULL,
    number      INTEGER   NOT NULL,
    machine_no  INTEGER   NOT NULL,
    boot        INTEGER   NOT NULL,
    mono_ms     INTEGER   NOT NULL,
    clock       INTEGER NOT NULL,
    first_seq   INTEGER   NOT NULL,
    samples     INTEGER  NOT NULL,
    t0_ms       INTEGER   NOT NULL,
    offsets_ms  TEXT NOT NULL,
    bt_c        TEXT,
    et_c        TEXT,
    ror_c_per_min TEXT,
    gas_pct     TEXT,
    fan_pct     TEXT,
    drum_rpm    TEXT,
    ambient_c   TEXT,
    extras      TEXT, -- JSON {name: [values]}
    quality     TEXT, -- JSON {name: [[index, code],…]}; null: all good
    trust       INTEGER NOT NULL, -- 0 verified, 1 unsigned, 2 signature failed
    digest      BLOB    NOT NULL,
    signed      BLOB    NOT NULL,
    received_ms INTEGER   NOT NULL,
    UNIQUE (chain_no, number)
);
CREATE INDEX frames_seq ON frames (chain_no, first_seq);

-- For anyone who queries with SQL: a sample a row.
CREATE VIEW points AS
SELECT m.org_id, m.site_id, m.machine_id, f.chain_no, f.first_seq + p.key AS seq,
       strftime('%Y-%m-%dT%H:%M:%fZ', (f.t0_ms + p.value) / 1000.0, 'unixepoch') AS ts,
       f.bt_c ->> p.key AS bt_c, f.et_c ->> p.key AS et_c,
       f.ror_c_per_min ->> p.key AS ror_c_per_min, f.gas_pct ->> p.key AS gas_pct,
       f.fan_pct ->> p.key AS fan_pct, f.drum_rpm ->> p.key AS drum_rpm,
       f.ambient_c ->> p.key AS ambient_c
FROM frames f
JOIN machines m USING (machine_no)
CROSS JOIN json_each(f.offsets_ms) AS p;

-- A roast is a range of its chain's samples.
CREATE TABLE sessions (
    org_id       TEXT   NOT NULL,
    session_id   TEXT   NOT NULL,
    machine_no   INTEGER NOT NULL REFERENCES machines,
    chain_no     INTEGER NOT NULL REFERENCES chains,
    started_ms   INTEGER NOT NULL,
    ended_ms     INTEGER,
    status       TEXT   NOT NULL,
    first_seq    INTEGER,
    last_seq     INTEGER,
    fc_s         REAL,
    drop_s       REAL,
    completeness TEXT   NOT NULL DEFAULT 'open',
    receipt      BLOB,
    -- Counted when the roast is closed; a running one is counted when asked.
    points          INTEGER,
    verified_points INTEGER,
    unsigned_points INTEGER,
    failed_points   INTEGER,
    max_bt_c        REAL,
    PRIMARY KEY (org_id, session_id)
);
CREATE INDEX sessions_recent ON sessions (org_id, started_ms DESC);
CREATE INDEX sessions_machine ON sessions (machine_no, started_ms DESC);

CREATE TABLE events (
    arrival     INTEGER PRIMARY KEY AUTOINCREMENT,
    org_id      TEXT   NOT NULL,
    session_id  TEXT   NOT NULL,
    machine_no  INTEGER NOT NULL,
    kind        TEXT   NOT NULL,
    source      TEXT   NOT NULL,
    seq         INTEGER NOT NULL,
    at_ms       INTEGER NOT NULL,
    elapsed_s   REAL NOT NULL,
    bt_c        REAL,
    note        TEXT,
    trust       INTEGER NOT NULL,
    UNIQUE (org_id, session_id, kind, source, seq, at_ms)
);
CREATE INDEX events_machine ON events (machine_no, at_ms);
