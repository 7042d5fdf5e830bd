-- no-transaction
-- The sweeps read the sessions of each organisation by sessions_unsettled_of_org (0022), and
-- sessions_running (0014) counts those that run.
DROP INDEX CONCURRENTLY IF EXISTS sessions_active;
