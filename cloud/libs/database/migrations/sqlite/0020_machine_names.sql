-- What people call a machine, and which id continues an earlier one. Ids in stored data never change.
CREATE TABLE machine_names (
    org_id       TEXT   NOT NULL,
    site_id      TEXT   NOT NULL,
    machine_id   TEXT   NOT NULL,
    display_name TEXT,   -- null: the id is shown
    successor_id TEXT,   -- the id that was declared as this one's successor
    current_id   TEXT,   -- the last id of the line of successors; null: machine_id itself
    updated_ms   INTEGER NOT NULL,
    PRIMARY KEY (org_id, site_id, machine_id)
);
