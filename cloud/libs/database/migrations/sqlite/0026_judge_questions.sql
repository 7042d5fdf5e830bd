-- How often the language model was asked about the runs of an organisation in a day of UTC, which is
-- numbered since 1970, and how many questions its budget refused.
CREATE TABLE judge_questions (
    org_id  TEXT    NOT NULL,
    day     INTEGER NOT NULL,
    asked   INTEGER NOT NULL,
    refused INTEGER NOT NULL,
    PRIMARY KEY (org_id, day)
);
