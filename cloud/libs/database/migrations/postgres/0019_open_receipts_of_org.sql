-- no-transaction
-- The receipts of an organisation that wait for their frames, whatever other organisations have.
CREATE INDEX CONCURRENTLY IF NOT EXISTS sessions_open_receipts_of_org
    ON sessions (org_id, started_ms, session_id)
    WHERE completeness <> 'complete' AND receipt IS NOT NULL;
