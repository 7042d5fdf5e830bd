-- When two agents were last seen to send under one device name and key.
CREATE TABLE name_conflicts (
    org_id  text   NOT NULL,
    kid     text   NOT NULL,
    seen_ms bigint NOT NULL,
    PRIMARY KEY (org_id, kid)
);
