-- What roasts should be. A profile is its newest version; every version stays.
CREATE TABLE profiles (
    org_id        TEXT   NOT NULL,
    profile_id    TEXT   NOT NULL,
    version       INTEGER NOT NULL,
    name          TEXT   NOT NULL,
    words         TEXT   NOT NULL, -- name and notes, lower case, to be searched
    tags          TEXT   NOT NULL, -- newline before, between and behind
    site_id       TEXT,
    machine_model TEXT,
    archived      INTEGER NOT NULL,
    updated_ms    INTEGER NOT NULL,
    body          TEXT   NOT NULL,
    PRIMARY KEY (org_id, profile_id)
);
CREATE INDEX profiles_recent ON profiles (org_id, archived, updated_ms DESC, profile_id DESC);
CREATE TABLE profile_versions (
    org_id     TEXT   NOT NULL,
    profile_id TEXT   NOT NULL,
    version    INTEGER NOT NULL,
    body       TEXT   NOT NULL,
    PRIMARY KEY (org_id, profile_id, version),
    FOREIGN KEY (org_id, profile_id) REFERENCES profiles
);
