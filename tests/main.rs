//! End-to-end tests: real processes of every program, real servers, one test binary.
//!
//! A test is in the module of the service that it tests; a test that needs only one program is in
//! that program's crate. `support` starts systems. The command `cargo nextest run -p e2e fleet::`
//! runs one module.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_wrap,
    clippy::float_cmp
)] // a test may break

mod cli;
mod fleet;
mod ingestion;
mod kernel;
mod platform;
mod repository;
mod support;
