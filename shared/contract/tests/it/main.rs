//! Tests the wire format: every encoder and decoder, and its page in the docs.
#![allow(
    clippy::cast_possible_wrap,
    clippy::expect_used,
    clippy::float_cmp,
    clippy::panic,
    clippy::unwrap_used
)] // a test may break

mod codec;
mod protocol_page;
