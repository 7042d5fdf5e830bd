//! Each rule of the linter, and each profile that is shipped.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // a test may break

mod rules;
mod shipped;
