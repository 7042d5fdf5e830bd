//! Ingestion: what machines send becomes rows, and only then is acknowledged.
//!
//! A message walks: bus or HTTP → [`pipeline`] (verify, batch) → [`store`] (one transaction) →
//! acknowledgement → live stream. A reconciler counts closed roasts against their receipts.
//!
//! It must never acknowledge what is not committed, store what it cannot verify as if it were good,
//! or take a silence for the end of a roast.

mod announce;
mod api;
pub mod chain;
mod config;
mod dating;
mod exchange;
mod metric;
mod mqtt;
mod pipeline;
mod receipts;
mod reference;
mod sse;
pub mod store;
mod tail;
pub mod verify;

use std::sync::Arc;

use ::store::idempotency::Idempotency;
use ::store::{Store, StoreError};
use cache::Cache;
use guard::Door;
use service::health::Health;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use config::IngestionConfig;
pub use store::IngestStore;

/// The wall clock, passed in so that tests can hold it.
pub type Clock = Arc<dyn Fn() -> contract::EpochMs + Send + Sync>;

/// A running ingestion: its routes, and what they need.
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

/// Starts the pipeline, the bus and the reconcilers on `tracker`; they end with `stop`, after what
/// was received has been committed and acknowledged.
///
/// # Errors
/// When the database or the broker's configuration is wrong.
pub fn start(
    (config, mqtt): (&IngestionConfig, &service::mqtt::Broker),
    (door, cache): (&Door, &Cache),
    database: Store,
    clock: &Clock,
    tracker: &TaskTracker,
    stop: &CancellationToken,
) -> Result<Ingestion, StartError> {
    let kept = Idempotency::new(database.clone(), clock.clone());
    let store = IngestStore::new(database);
    let tail = tail::Tail::start(store.clone(), tracker, stop.clone());
    let dates = dating::Dating::default();
    dating::start(store.clone(), dates.clone(), tracker, stop.clone());
    let wake = tail.wake();
    let pipeline = pipeline::Pipeline::start(config, &store, clock, (&wake, &dates), tracker);
    let (taken, taken_from) = announce::queue();
    let bus = mqtt::start(config, mqtt, (&pipeline, taken), tracker, stop)?;
    announce::start(store.clone(), bus.clone(), taken_from, clock.clone(), tracker, stop.clone());
    receipts::start(
        store.clone(),
        bus.clone(),
        pipeline.receipts_waiting(),
        clock.clone(),
        tracker,
        stop.clone(),
    );
    let mut health = Health::new("ingestion");
    let asked = store.clone();
    health = health.check("database", move || {
        let store = asked.clone();
        async move { store.database().ping().await.map_err(|error| error.to_string()) }
    });
    if let Some(bus) = &bus {
        let bus = bus.clone();
        health =
            health.check("mqtt", move || {
                let connected = bus.is_connected();
                async move {
                    if connected { Ok(()) } else { Err("not connected to the broker".to_owned()) }
                }
            });
    }
    let state = api::Shared {
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
