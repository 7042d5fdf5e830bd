-- no-transaction
-- events_arrived_of_org holds the same columns, and serves the same statements.
DROP INDEX CONCURRENTLY IF EXISTS events_of_org;
