//! End-to-end tests: real processes of every program, real servers, one test binary.
//!
//! A test lies in the module of the service it is about; what needs one program alone lies in that
//! program's crate. `support` starts systems. Run one module with
//! `cargo nextest run -p e2e fleet::`.
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
