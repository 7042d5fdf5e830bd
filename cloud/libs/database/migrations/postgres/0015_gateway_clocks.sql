-- What the gateway's clock said, beside the dates that were corrected: elapsed times are computed
-- from the monotonic clock, and across a restart from what the gateway itself counted.
-- The time of a frame's first sample by the gateway's clock; null: t0_ms is that time.
ALTER TABLE frames ADD COLUMN wall_ms bigint;
-- The start of a session by the gateway's clock, and the boot and the monotonic time of its CHARGE.
ALTER TABLE sessions ADD COLUMN wall_started_ms bigint;
ALTER TABLE sessions ADD COLUMN boot bigint;
ALTER TABLE sessions ADD COLUMN start_mono_ms bigint;
-- 1: the offset was estimated from the arrival of live frames, because the gateway's clock was not
-- set. Frames that were dated by it have clock 4 (frames.clock 3: dated by a clock that was set).
ALTER TABLE clock_offsets ADD COLUMN estimated smallint NOT NULL DEFAULT 0;
