//! Tests of samples from gateways and publishers: loss, refusal, order, upstream clients.

mod clocks;
mod faults;
mod machine_names;
mod recordings;
mod refusals;
mod roast_profiles;
mod upstream_clients;
