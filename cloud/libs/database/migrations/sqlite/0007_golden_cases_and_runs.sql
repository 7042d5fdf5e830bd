-- Golden cases, and how roasts and agents did at them.
CREATE TABLE golden_cases (
    org_id     TEXT   NOT NULL,
    case_id    TEXT   NOT NULL,
    machine_id TEXT   NOT NULL,
    archived   INTEGER NOT NULL DEFAULT 0,
    version    INTEGER NOT NULL DEFAULT 1,
    created_ms INTEGER NOT NULL,
    body       TEXT   NOT NULL, -- JSON
    PRIMARY KEY (org_id, case_id)
);
CREATE INDEX golden_cases_recent ON golden_cases (org_id, archived, created_ms DESC, case_id DESC);
CREATE INDEX golden_cases_of_machine ON golden_cases (org_id, machine_id, archived, created_ms DESC);

CREATE TABLE eval_runs (
    org_id       TEXT   NOT NULL,
    run_id       TEXT   NOT NULL,
    session_id   TEXT,
    case_id      TEXT   NOT NULL,
    once_key     TEXT,            -- what must be evaluated once is, by this
    outcome      TEXT   NOT NULL, -- a person's before the gates'
    run_ms       INTEGER NOT NULL,
    judge_due_ms INTEGER,          -- the language model is to be asked, not before
    judge_tries  INTEGER NOT NULL DEFAULT 0,
    version      INTEGER NOT NULL DEFAULT 1,
    body         TEXT   NOT NULL, -- JSON
    PRIMARY KEY (org_id, run_id),
    UNIQUE (org_id, once_key)
);
CREATE INDEX eval_runs_recent ON eval_runs (org_id, run_ms DESC, run_id DESC);
CREATE INDEX eval_runs_of_session ON eval_runs (org_id, session_id, run_ms DESC) WHERE session_id IS NOT NULL;
CREATE INDEX eval_runs_of_case ON eval_runs (org_id, case_id, run_ms DESC);
CREATE INDEX eval_runs_to_judge ON eval_runs (judge_due_ms) WHERE judge_due_ms IS NOT NULL;
