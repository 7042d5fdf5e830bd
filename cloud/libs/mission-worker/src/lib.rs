//! Claims missions of one goal from the kernel and runs them: lease, heartbeat, trace, outcome.
//!
//! [`Worker`] is the loop, [`Job`] is what a service implements, [`MissionTools`] is what a job may use.
//! A job must never call another service past [`MissionTools`]: the policy check and the trace are there.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod error;
mod tools;
mod worker;

pub use error::WorkError;
pub use tools::MissionTools;
pub use worker::{
    Job, JobFuture, Outcome, SharedStats, Worker, WorkerStats, WorkerTimings, trace_id,
};
