//! Tests each rule of the linter, and each shipped profile.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // a test may break

mod rules;
mod shipped;
