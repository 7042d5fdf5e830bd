//! The domain model of a roast: rate of rise, detection of a roast's marks in event time, phases,
//! recorded roasts, and a simulated roaster.
//!
//! Everything is a pure function of its inputs: no clock, no I/O, and only seeded randomness.
//! So the same code runs at the edge, in the cloud and in tests, and the replay of a recorded roast
//! returns the same result bit for bit.

pub mod analysis;
pub mod batch;
pub mod clean;
pub mod event;
pub mod forecast;
pub mod formats;
pub mod live;
pub mod machine_model;
pub mod noise;
pub mod plot;
pub mod prediction;
pub mod recording;
pub mod replay;
pub mod rise_model;
pub mod ror;
pub mod sample;
pub mod score;
pub mod twin;
