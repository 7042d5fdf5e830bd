//! Drivers against emulated machines, and against machines that others have written.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // a test may break

mod formats;
mod independent;
mod machines;
mod modbus;
