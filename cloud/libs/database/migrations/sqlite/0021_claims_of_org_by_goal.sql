-- A worker claims from each organisation in turn, whatever other organisations and goals have waiting.
CREATE INDEX IF NOT EXISTS missions_claimable_of_org_by_goal
    ON missions (org_id, goal, urgency, lane, due_ms) WHERE lane IS NOT NULL;
