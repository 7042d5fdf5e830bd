-- An organisation's frames in the order of their arrival, whatever other organisations send. An index
-- of a partitioned table cannot be made concurrently: where frames are many, make it first for each
-- partition with CREATE INDEX CONCURRENTLY ... ON frames_... (org_id, arrival). This one then takes
-- those over at once, and locks nothing for long.
CREATE INDEX IF NOT EXISTS frames_of_org ON frames (org_id, arrival);
