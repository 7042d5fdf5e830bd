//! `simcorp-edge`: the agent for one roaster. It reads the machine, stores every sample on its own
//! disk, signs it, and sends it to the cloud whenever a connection exists.
//!
//! Three parts communicate only through bounded queues: the sampler (a thread that owns the
//! machine), the journal writer (a thread that owns recorder, key and journal), and the uplink with
//! the local page (the async runtime).

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod agent_state;
mod artisan;
mod bring_up;
mod broker_endpoint;
mod cli;
mod clock;
mod config;
mod doctor;
mod files;
#[doc(hidden)]
pub mod fuzzing;
mod identity;
mod journal;
mod journal_opener;
mod journal_salvage;
mod journal_writer;
mod json_copy;
mod local;
mod machine;
mod profiles;
mod recorder;
mod renamed_machine;
mod restart;
mod run;
mod sampler;
mod send_window;
mod signing;
mod status;
mod trusted_clock;
mod uplink;
mod uplink_supervisor;
mod watchdog;

pub use cli::run_program;
