//! The domain model of a roast: rate of rise, detection of a roast's marks in event time, phases,
//! recorded roasts, and a simulated roaster.
//!
//! Everything is a pure function of its inputs: no clock, no I/O, and only seeded randomness.
//! So the same code runs at the edge, in the cloud and in tests, and the replay of a recorded roast
//! returns the same result bit for bit.
//!
//! A recording is read from text in any supported format, and analysed:
//!
//! ```rust
//! use roast::analysis::{Marks, analyze};
//!
//! let mut table = "seconds,bt,event\n".to_owned();
//! for second in 0..=600_u32 {
//!     let event = match second {
//!         0 => "CHARGE",
//!         480 => "FC",
//!         600 => "DROP",
//!         _ => "",
//!     };
//!     table += &format!("{second},{},{event}\n", 90.0 + 0.2 * f64::from(second));
//! }
//! let recording = roast::formats::read(&table)?;
//! let marks = Marks::of(&recording, &[]);
//! let analysis = analyze(&recording, &marks).ok_or("the recording has no CHARGE")?;
//! assert_eq!(analysis.fc_seconds, Some(480.0));
//! assert_eq!(analysis.development_ratio, Some(0.2)); // 120 s of 600 s
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

// Arithmetic on outside values is checked or saturating; an exception states its bound.
#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]
#![warn(missing_docs)]

pub mod analysis;
pub mod batch;
pub mod clean;
pub mod cut_score;
pub mod event;
pub mod forecast;
pub mod formats;
pub mod live;
mod live_offsets;
pub mod machine_model;
pub mod noise;
pub mod plot;
pub mod prediction;
pub mod recording;
pub mod replay;
pub mod rise_model;
pub mod roast_course;
pub mod ror;
pub mod sample;
pub mod score;
pub mod twin;
