//! The command line, beside running services and without them.

mod bad_input;
mod demo;
mod makers;
mod operator;
