-- Which roasts followed which profile, by the name that people gave it.
ALTER TABLE session_meta ADD COLUMN profile_name TEXT;
UPDATE session_meta SET profile_name = body ->> 'roastProfileName';
CREATE INDEX session_meta_profile ON session_meta (org_id, profile_name, session_id)
    WHERE profile_name IS NOT NULL;
