//! Inference: marks for machines that send points and no events of their own, found by the code that
//! runs beside the roaster ([`roast::live`]) and told as the reference tells events.
//!
//! A machine that tells an event itself is left to itself. A silence is never a mark.

mod api;
mod bus;
mod config;
pub mod follow;
mod store;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use contract::EpochMs;
use guard::Door;
use service::health::Health;
use service::mqtt::{Broker, BrokerError};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use config::{InferenceConfig, Settings};
pub use store::InferenceStore;

/// The wall clock, passed in so that tests can hold it.
pub type Clock = Arc<dyn Fn() -> EpochMs + Send + Sync>;

/// A running inference: its routes, and what they need.
pub struct Inference {
    pub router: axum::Router,
    pub openapi: utoipa::openapi::OpenApi,
    pub health: Health,
}

/// Starts listening on `tracker` and builds the routes.
///
/// # Errors
/// When the broker's configuration is wrong.
pub fn start(
    config: &InferenceConfig,
    mqtt: &Broker,
    door: &Door,
    database: ::store::Store,
    clock: Clock,
    tracker: &TaskTracker,
    stop: &CancellationToken,
) -> Result<Inference, BrokerError> {
    let following = bus::Following {
        machines: Arc::new(Mutex::new(follow::Followed::new(config.machines_max))),
        store: InferenceStore::new(database),
        clock,
        speaks: Arc::new(AtomicBool::new(false)),
    };
    let connected = bus::start(config, mqtt, following.clone(), tracker, stop)?;
    let asked = following.store.clone();
    let health = Health::new("event-inference")
        .check("mqtt", move || {
            let up = connected.load(std::sync::atomic::Ordering::Relaxed);
            async move { if up { Ok(()) } else { Err("not connected to the broker".to_owned()) } }
        })
        .check("database", move || {
            let store = asked.clone();
            async move { store.database().ping().await.map_err(|error| error.to_string()) }
        });
    let (router, openapi) = api::routes(following, door);
    Ok(Inference { router, openapi, health })
}
