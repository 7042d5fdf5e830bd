-- What a gateway's clock was found to be off by, once it had been set from the network: wall minus
-- monotonic time, the same for a whole boot.
CREATE TABLE clock_offsets (
    chain_no  bigint NOT NULL REFERENCES chains,
    boot      bigint NOT NULL,
    offset_ms bigint NOT NULL,
    PRIMARY KEY (chain_no, boot)
);
-- frames.clock: 0 unknown, 1 free running, 2 synchronised, 3 dated by what was found out later.
CREATE INDEX frames_undated ON frames (chain_no, boot, number) WHERE clock < 2;
