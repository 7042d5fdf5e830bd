//! Inference: detects roast events for machines that send telemetry points but no events. It uses
//! the same code as the agent beside the roaster ([`roast::live`]) and publishes in the message
//! format of upstream Sim-Corp.
//!
//! It must never publish events for a machine that sends its own, and never infer an event from
//! silence.

mod api;
mod bus;
mod config;
pub mod detection;
mod store;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use http_stack::AccessLayer;
use service::clock::Clock;
use service::health::Health;
use service::mqtt::{BrokerError, BrokerSettings};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use config::{InferenceConfig, Settings};
pub use store::InferenceStore;

/// The running inference service: its routes, OpenAPI document and health checks.
pub struct Inference {
    pub router: axum::Router,
    pub openapi: utoipa::openapi::OpenApi,
    pub health: Health,
}

/// Starts the MQTT tasks on `tracker` and builds the routes.
///
/// # Errors
/// When the broker's configuration is invalid.
pub fn start(
    config: &InferenceConfig,
    mqtt: &BrokerSettings,
    door: &AccessLayer,
    database: ::database::Store,
    clock: Clock,
    tracker: &TaskTracker,
    stop: &CancellationToken,
) -> Result<Inference, BrokerError> {
    let following = bus::InferenceState {
        machines: Arc::new(Mutex::new(detection::MachineTracker::new(config.machines_max))),
        store: InferenceStore::new(database),
        clock,
        is_publisher: Arc::new(AtomicBool::new(false)),
    };
    let connected = bus::start(config, mqtt, following.clone(), tracker, stop)?;
    let asked = following.store.clone();
    let health = Health::new("event-inference")
        .with_check("mqtt", move || {
            let up = connected.load(std::sync::atomic::Ordering::Relaxed);
            async move { if up { Ok(()) } else { Err("not connected to the broker".to_owned()) } }
        })
        .with_check("database", move || {
            let store = asked.clone();
            async move { store.database().ping().await.map_err(|error| error.to_string()) }
        });
    let (router, openapi) = api::routes(following, door);
    Ok(Inference { router, openapi, health })
}
