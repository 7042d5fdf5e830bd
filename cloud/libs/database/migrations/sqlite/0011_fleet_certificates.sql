-- What a gateway is called in its certificates, which the broker takes for its name: unlike its key's
-- name it is one name over all organisations. Null: it has never enrolled.
ALTER TABLE devices ADD COLUMN certificate_name TEXT;
-- The number of its present key; each key has a certificate name of its own.
ALTER TABLE devices ADD COLUMN key_no INTEGER NOT NULL DEFAULT 1;
-- Ascends with every change, in ms where clocks allow: where broker and registry may differ.
ALTER TABLE devices ADD COLUMN changed_ms INTEGER NOT NULL DEFAULT 0;
CREATE UNIQUE INDEX devices_certificate ON devices (certificate_name);
CREATE INDEX devices_changed ON devices (changed_ms);

-- Every key a gateway ever had: what one signed can be verified for ever.
CREATE TABLE device_keys (
    org_id            TEXT   NOT NULL,
    kid               TEXT   NOT NULL,
    key_no            INTEGER NOT NULL,
    public_key        TEXT   NOT NULL, -- PEM
    added_ms          INTEGER NOT NULL,
    retired_ms        INTEGER,          -- another took its place
    believed_until_ms INTEGER,          -- what it has signed is still taken until then
    PRIMARY KEY (org_id, kid, key_no)
);
INSERT INTO device_keys (org_id, kid, key_no, public_key, added_ms)
    SELECT org_id, kid, 1, public_key, created_ms FROM devices;
ALTER TABLE devices DROP COLUMN public_key;

-- Words by which a gateway is let in once.
CREATE TABLE enrollments (
    token_id     TEXT   NOT NULL PRIMARY KEY,
    org_id       TEXT   NOT NULL,
    kid          TEXT   NOT NULL,
    site_id      TEXT   NOT NULL,
    machines     TEXT   NOT NULL, -- JSON array
    replaces     INTEGER NOT NULL, -- 1: may take the place of the key that the device has
    compromised  INTEGER NOT NULL, -- 1: what the old key signs is believed no longer
    digest       BLOB  NOT NULL, -- of the secret
    created_ms   INTEGER NOT NULL,
    created_by   TEXT   NOT NULL, -- JSON actor
    expires_ms   INTEGER NOT NULL,
    withdrawn_ms INTEGER,
    spent_ms     INTEGER,
    spent_by     TEXT             -- PEM of the key
);
CREATE INDEX enrollments_recent ON enrollments (org_id, created_ms DESC, token_id DESC);

CREATE TABLE certificates (
    serial        TEXT   NOT NULL PRIMARY KEY, -- hex
    org_id        TEXT   NOT NULL,
    kid           TEXT   NOT NULL,
    key_no        INTEGER NOT NULL,
    why           TEXT   NOT NULL, -- enrolled, renewed, recovered
    not_before_ms INTEGER NOT NULL,
    not_after_ms  INTEGER NOT NULL,
    issued_ms     INTEGER NOT NULL,
    pem           TEXT   NOT NULL
);
CREATE INDEX certificates_device ON certificates (org_id, kid, issued_ms DESC);

-- A gateway whose certificate has expired asks for another with the same key; a person decides.
CREATE TABLE recoveries (
    org_id     TEXT   NOT NULL,
    kid        TEXT   NOT NULL,
    public_key TEXT   NOT NULL, -- PEM
    asked_ms   INTEGER NOT NULL, -- first
    seen_ms    INTEGER NOT NULL, -- last
    state      TEXT   NOT NULL, -- waiting, approved, refused, used
    decided_ms INTEGER,
    decided_by TEXT,            -- JSON actor
    PRIMARY KEY (org_id, kid)
);
CREATE INDEX recoveries_waiting ON recoveries (org_id, state, asked_ms);
