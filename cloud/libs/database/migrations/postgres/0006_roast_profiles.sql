-- What roasts should be. A profile is its newest version; every version stays.
CREATE TABLE profiles (
    org_id        text   NOT NULL,
    profile_id    text   NOT NULL,
    version       bigint NOT NULL,
    name          text   NOT NULL,
    words         text   NOT NULL, -- name and notes, lower case, to be searched
    tags          text   NOT NULL, -- newline before, between and behind
    site_id       text,
    machine_model text,
    archived      bigint NOT NULL,
    updated_ms    bigint NOT NULL,
    body          text   NOT NULL,
    PRIMARY KEY (org_id, profile_id)
);
CREATE INDEX profiles_recent ON profiles (org_id, archived, updated_ms DESC, profile_id DESC);
CREATE TABLE profile_versions (
    org_id     text   NOT NULL,
    profile_id text   NOT NULL,
    version    bigint NOT NULL,
    body       text   NOT NULL,
    PRIMARY KEY (org_id, profile_id, version),
    FOREIGN KEY (org_id, profile_id) REFERENCES profiles
);
