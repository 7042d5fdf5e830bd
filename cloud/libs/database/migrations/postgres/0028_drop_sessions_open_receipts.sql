-- no-transaction
-- Open receipts are read for each organisation, by sessions_open_receipts_of_org (0019).
DROP INDEX CONCURRENTLY IF EXISTS sessions_open_receipts;
