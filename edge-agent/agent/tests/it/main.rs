//! Tests the agent as a process: without a broker, as a package, with each machine profile.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // a test may break

mod held_connections;
mod offline;
mod package;
mod profiles;
mod unusable_disk;
