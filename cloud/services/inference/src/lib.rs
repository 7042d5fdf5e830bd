//! Inference: detects roast events for machines that send telemetry points but no events. It uses
//! the same code as the agent beside the roaster ([`roast::live`]) and publishes in the message
//! format of upstream Sim-Corp.
//!
//! It must never publish events for a machine that sends its own, and never infer an event from
//! silence.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod api;
mod bus;
mod config;
pub mod detection;
mod store;

use http_stack::start::{Context, Service, StartError, check_database, check_mqtt_flag};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use service::clock::Clock;
use service::health::Health;

pub use config::{InferenceConfig, Settings};
pub use store::InferenceStore;

/// Starts the service: the MQTT tasks run on the context's tasks.
///
/// # Errors
/// When the broker's configuration is invalid.
pub fn start(config: &InferenceConfig, context: &Context) -> Result<Service, StartError> {
    let database = context.database("inference")?;
    let following = bus::InferenceState {
        machines: Arc::new(Mutex::new(detection::MachineTracker::new(config.machines_max))),
        store: InferenceStore::new(database.clone()),
        clock: context.clock.clone(),
        is_publisher: Arc::new(AtomicBool::new(false)),
    };
    let (tasks, stop) = (&context.tasks, &context.stop);
    let connected = bus::start(config, &context.mqtt, following.clone(), tasks, stop)?;
    let health = check_mqtt_flag(Health::new("event-inference", context.clock.clone()), connected);
    let health = check_database(health, &database);
    Ok(Service::new(context, "inference", api::routes(following), health))
}
