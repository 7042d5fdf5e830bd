-- What publishers of upstream Sim-Corp say beyond what a frame can hold: JSON, null for gateways.
-- Samples: elapsed seconds, batch, key, session, and whether the time is that of the arrival.
ALTER TABLE frames ADD COLUMN published TEXT;
ALTER TABLE curves ADD COLUMN published TEXT;
-- Events: the free-form payload, batch and key.
ALTER TABLE events ADD COLUMN published TEXT;
