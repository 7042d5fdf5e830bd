//! Ingestion: stores the messages of machines as rows, then acknowledges them.
//!
//! The path of a message: bus or HTTP → [`pipeline`] (verify, batch) → [`store`] (one transaction)
//! → acknowledgement → live stream. A reconciler checks closed sessions against their receipts.
//!
//! It must never acknowledge what is not committed, store unverified data as verified, or treat a
//! silence as the end of a roast.

mod api;
pub mod chain;
mod clock_correction;
mod config;
mod legacy;
mod live_tail;
mod metric;
mod mqtt;
mod pipeline;
mod profile_io;
mod receipts;
mod session_closed;
mod sse;
pub mod store;
pub mod verify;

use ::database::idempotency::Idempotency;
use ::database::{Store, StoreError};
use cache::Cache;
use http_stack::AccessLayer;
use service::clock::Clock;
use service::health::Health;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use config::IngestionConfig;
pub use store::IngestStore;

/// A running ingestion service: its routes, their OpenAPI document and its health checks.
pub struct Ingestion {
    pub router: axum::Router,
    pub openapi: utoipa::openapi::OpenApi,
    pub health: Health,
}

/// Why ingestion cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Mqtt(#[from] service::mqtt::BrokerError),
}

/// Starts the pipeline, the bus and the reconcilers on `tracker`. They end with `stop`, after all
/// received messages have been committed and acknowledged.
///
/// # Errors
/// When the database or the broker's configuration is wrong.
pub fn start(
    (config, mqtt): (&IngestionConfig, &service::mqtt::BrokerSettings),
    (door, cache): (&AccessLayer, &Cache),
    database: Store,
    clock: &Clock,
    tracker: &TaskTracker,
    stop: &CancellationToken,
) -> Result<Ingestion, StartError> {
    let kept = Idempotency::new(database.clone(), clock.clone());
    let store = IngestStore::new(database);
    let tail = live_tail::Tail::start(store.clone(), tracker, stop.clone());
    let dates = clock_correction::ClockCorrection::default();
    clock_correction::start(store.clone(), dates.clone(), tracker, stop.clone());
    let wake = tail.wake();
    let pipeline = pipeline::Pipeline::start(config, &store, clock, (&wake, &dates), tracker);
    let (taken, taken_from) = session_closed::ack_queue();
    let bus = mqtt::start(config, mqtt, (&pipeline, taken), tracker, stop)?;
    session_closed::start(
        store.clone(),
        bus.clone(),
        taken_from,
        clock.clone(),
        tracker,
        stop.clone(),
    );
    receipts::start(
        store.clone(),
        bus.clone(),
        pipeline.receipt_stored(),
        clock.clone(),
        tracker,
        stop.clone(),
    );
    let mut health = Health::new("ingestion");
    let asked = store.clone();
    health = health.with_check("database", move || {
        let store = asked.clone();
        async move { store.database().ping().await.map_err(|error| error.to_string()) }
    });
    if let Some(bus) = &bus {
        let bus = bus.clone();
        health =
            health.with_check("mqtt", move || {
                let connected = bus.is_connected();
                async move {
                    if connected { Ok(()) } else { Err("not connected to the broker".to_owned()) }
                }
            });
    }
    let state = api::SharedState {
        store,
        pipeline,
        tail,
        clock: clock.clone(),
        stop: stop.clone(),
        limits: door.limits.clone(),
        cache: cache.clone(),
    };
    let (router, openapi) = api::routes(state, kept, door);
    Ok(Ingestion { router, openapi, health })
}
