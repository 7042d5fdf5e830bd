-- Every list has an index in its own order, for each way it is asked for.
DROP INDEX sessions_recent;
CREATE INDEX sessions_recent ON sessions (org_id, started_ms DESC, session_id DESC);
DROP INDEX sessions_machine;
CREATE INDEX sessions_machine ON sessions (machine_no, started_ms DESC, session_id DESC);
CREATE INDEX sessions_by_status ON sessions (org_id, status, started_ms DESC, session_id DESC);
CREATE INDEX events_of_org ON events (org_id, arrival DESC);
CREATE INDEX traces_by_status ON traces (org_id, status, started_ms DESC);
CREATE INDEX missions_by_worker ON missions (org_id, claimed_by, created_ms DESC) WHERE claimed_by IS NOT NULL;
CREATE INDEX missions_by_site ON missions (org_id, site_id, created_ms DESC) WHERE site_id IS NOT NULL;
CREATE INDEX profiles_by_site ON profiles (org_id, site_id, updated_ms DESC);
CREATE INDEX profiles_by_model ON profiles (org_id, machine_model, updated_ms DESC);

-- What people may do where their issuer's tokens do not say it.
CREATE TABLE user_roles (
    org_id     TEXT   NOT NULL,
    user_id    TEXT   NOT NULL, -- the issuer's
    role       TEXT   NOT NULL, -- or: blocked
    updated_ms BIGINT NOT NULL,
    PRIMARY KEY (org_id, user_id)
);
