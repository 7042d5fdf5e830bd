//! The command line without running services, and what the docs show of it.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // a test may break

mod docs;
mod limits;
mod roast;
