-- The sessions of an organisation that a sweep may have to close or publish, or to make a curve of,
-- whatever other organisations have.
CREATE INDEX IF NOT EXISTS sessions_unsettled_of_org
    ON sessions (org_id, started_ms, session_id, status, announced_ms, curve_ms)
    WHERE status = 'ACTIVE' OR announced_ms IS NULL OR curve_ms IS NULL;
