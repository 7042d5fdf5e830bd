//! Tests of what all services share: limits, OpenAPI, simulated machines.

mod browser;
mod limits;
mod metrics;
mod openapi;
mod simulated_machines;
