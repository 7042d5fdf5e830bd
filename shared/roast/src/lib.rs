//! What a roast is: rate of rise, the marks of a roast found in event time, its phases, recorded
//! roasts, and a simulated roaster. Pure functions of their inputs — no clock, no randomness but a
//! seeded one, no I/O — so the same code runs at the edge, in the cloud and in tests, and a
//! recorded roast replays to the same answer bit for bit.

pub mod alog;
pub mod analysis;
pub mod batch;
pub mod causal;
pub mod clean;
pub mod csv;
pub mod event;
pub mod export;
pub mod forecast;
pub mod import;
pub mod learn;
pub mod live;
pub mod noise;
pub mod plot;
pub mod prediction;
pub mod recording;
pub mod ror;
pub mod sample;
pub mod score;
pub mod twin;
