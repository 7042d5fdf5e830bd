-- SQLite has no TRUNCATE; the trigger of 0003 refuses DELETE.
SELECT 1;
