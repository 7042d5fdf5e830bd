-- Credentials of services, agents and scripts. Only a digest of the secret is kept.
CREATE TABLE api_keys (
    key_id     text   NOT NULL PRIMARY KEY,
    org_id     text   NOT NULL, -- empty: works for all organisations
    name       text   NOT NULL,
    kind       text   NOT NULL, -- USER, AGENT, SYSTEM
    role       text   NOT NULL,
    digest     bytea  NOT NULL,
    created_ms bigint NOT NULL,
    created_by text   NOT NULL, -- JSON actor
    expires_ms bigint NOT NULL,
    revoked_ms bigint
);
CREATE INDEX api_keys_of_org ON api_keys (org_id, created_ms DESC);
