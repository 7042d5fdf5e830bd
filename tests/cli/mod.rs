//! Tests of the command line, with and without running services.

mod bad_input;
mod demo;
mod makers;
mod operator;
