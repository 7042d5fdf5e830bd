-- An organisation's frames in the order of their arrival, whatever other organisations send. An index
-- of a partitioned table cannot be made concurrently: the program makes one for each partition first
-- (src/partition_index.rs), and this one joins them without reading the table.
CREATE INDEX IF NOT EXISTS frames_of_org ON frames (org_id, arrival);
