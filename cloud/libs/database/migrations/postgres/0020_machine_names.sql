-- What people call a machine, and which id continues an earlier one. Ids in stored data never change.
CREATE TABLE machine_names (
    org_id       text   NOT NULL,
    site_id      text   NOT NULL,
    machine_id   text   NOT NULL,
    display_name text,   -- null: the id is shown
    successor_id text,   -- the id that was declared as this one's successor
    current_id   text,   -- the last id of the line of successors; null: machine_id itself
    updated_ms   bigint NOT NULL,
    PRIMARY KEY (org_id, site_id, machine_id)
);
