//! Tests of what all services share: limits, OpenAPI, simulated machines.

mod limits;
mod openapi;
mod simulated_machines;
