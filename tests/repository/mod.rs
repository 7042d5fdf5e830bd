//! Tests of the source tree itself.

mod imports;
mod links;
