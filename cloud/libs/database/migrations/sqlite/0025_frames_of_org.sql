-- An organisation's frames in the order of their arrival, whatever other organisations send.
CREATE INDEX IF NOT EXISTS frames_of_org ON frames (org_id, arrival);
