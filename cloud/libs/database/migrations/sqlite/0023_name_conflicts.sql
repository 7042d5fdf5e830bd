-- When two agents were last seen to send under one device name and key.
CREATE TABLE name_conflicts (
    org_id  TEXT    NOT NULL,
    kid     TEXT    NOT NULL,
    seen_ms INTEGER NOT NULL,
    PRIMARY KEY (org_id, kid)
);
