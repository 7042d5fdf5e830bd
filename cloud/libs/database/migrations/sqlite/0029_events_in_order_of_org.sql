-- An organisation's events in the order of their arrival, both columns in one direction: a
-- comparison of pairs can then use the index. It serves the newest events too, read backwards.
CREATE INDEX IF NOT EXISTS events_arrived_of_org ON events (org_id, arrival);
