-- Credentials of services, agents and scripts. Only a digest of the secret is kept.
CREATE TABLE api_keys (
    key_id     TEXT   NOT NULL PRIMARY KEY,
    org_id     TEXT   NOT NULL, -- empty: works for all organisations
    name       TEXT   NOT NULL,
    kind       TEXT   NOT NULL, -- USER, AGENT, SYSTEM
    role       TEXT   NOT NULL,
    digest     BLOB  NOT NULL,
    created_ms INTEGER NOT NULL,
    created_by TEXT   NOT NULL, -- JSON actor
    expires_ms INTEGER NOT NULL,
    revoked_ms INTEGER
);
CREATE INDEX api_keys_of_org ON api_keys (org_id, created_ms DESC);
