-- Sessions and events whose numbers are outside their meaning: versions before this one stored any
-- elapsed time and sequence number, and arithmetic on them ended background tasks. The original
-- numbers are kept here; in their own tables the rows get numbers that can be computed with, and no
-- task works on them any more. `simcorp serve` reports how many there are.
CREATE TABLE set_aside_sessions (
    org_id     TEXT NOT NULL,
    session_id TEXT NOT NULL,
    started_ms INTEGER NOT NULL,
    ended_ms   INTEGER,
    first_seq  INTEGER,
    last_seq   INTEGER,
    PRIMARY KEY (org_id, session_id)
);
CREATE TABLE set_aside_events (
    org_id     TEXT NOT NULL,
    session_id TEXT NOT NULL,
    kind       TEXT NOT NULL,
    source     TEXT NOT NULL,
    seq        INTEGER NOT NULL,
    at_ms      INTEGER NOT NULL,
    elapsed_s  REAL NOT NULL,
    PRIMARY KEY (org_id, session_id, kind, source, seq, at_ms)
);
-- Times from 1970, less the longest elapsed time, to 9999; sequence numbers below 2^53.
INSERT INTO set_aside_sessions
SELECT org_id, session_id, started_ms, ended_ms, first_seq, last_seq FROM sessions
WHERE started_ms NOT BETWEEN -10000000000 AND 253402214400000
   OR ended_ms NOT BETWEEN 0 AND 253402214400000
   OR first_seq NOT BETWEEN 0 AND 9007199254740991
   OR last_seq NOT BETWEEN 0 AND 9007199254740991;
UPDATE sessions SET
    started_ms = CASE WHEN started_ms < 0 THEN 0 WHEN started_ms > 253402214400000
        THEN 253402214400000 ELSE started_ms END,
    ended_ms = CASE WHEN started_ms < 0 THEN 0 WHEN started_ms > 253402214400000
        THEN 253402214400000 ELSE started_ms END,
    status = 'CLOSED', first_seq = NULL, last_seq = NULL, receipt = NULL,
    curve_ms = COALESCE(curve_ms, 0), announced_ms = COALESCE(announced_ms, 0)
WHERE EXISTS (SELECT 1 FROM set_aside_sessions a
              WHERE a.org_id = sessions.org_id AND a.session_id = sessions.session_id);
DELETE FROM outbox
WHERE EXISTS (SELECT 1 FROM set_aside_sessions a
              WHERE a.org_id = outbox.org_id AND a.session_id = outbox.session_id);
INSERT INTO set_aside_events
SELECT org_id, session_id, kind, source, seq, at_ms, elapsed_s FROM events
WHERE elapsed_s NOT BETWEEN 0 AND 10000000 OR seq NOT BETWEEN 0 AND 9007199254740991;
DELETE FROM events
WHERE elapsed_s NOT BETWEEN 0 AND 10000000 OR seq NOT BETWEEN 0 AND 9007199254740991;
