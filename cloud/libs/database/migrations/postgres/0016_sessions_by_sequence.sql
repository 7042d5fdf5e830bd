-- no-transaction
-- The sessions of a chain in the order of their samples.
CREATE INDEX CONCURRENTLY IF NOT EXISTS sessions_sequence
    ON sessions (chain_no, status, first_seq DESC NULLS LAST);
