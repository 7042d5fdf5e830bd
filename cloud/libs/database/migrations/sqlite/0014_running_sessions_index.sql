-- The newest running session of a machine, whatever other machines run.
CREATE INDEX IF NOT EXISTS sessions_running ON sessions (machine_no, started_ms DESC)
    WHERE status = 'ACTIVE';
