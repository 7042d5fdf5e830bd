-- no-transaction
-- The runs of an organisation that the language model is to be asked about, whatever other
-- organisations have.
CREATE INDEX CONCURRENTLY IF NOT EXISTS eval_runs_to_judge_of_org
    ON eval_runs (org_id, judge_due_ms) WHERE judge_due_ms IS NOT NULL;
