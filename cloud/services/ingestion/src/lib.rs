//! Ingestion: stores the messages of machines as rows, then acknowledges them.
//!
//! The path of a message: bus or HTTP → `pipeline` (verify, batch) → [`store`] (one transaction)
//! → acknowledgement → live stream. A reconciler checks closed sessions against their receipts.
//!
//! It must never acknowledge what is not committed, store unverified data as verified, or treat a
//! silence as the end of a roast.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod api;
mod arrival_estimate;
mod bus;
pub mod chain;
mod clock_correction;
mod config;
pub mod dry_run;
mod keys;
mod legacy;
mod live_tail;
mod metric;
mod mqtt;
mod pipeline;
mod profile_io;
pub mod published;
mod receipt_verdicts;
mod receipts;
mod row_json;
mod session_closed;
pub mod store;
mod sweep;
#[cfg(test)]
mod test_gateway;
pub mod verified_frame;
mod verify;
mod warning_log;

use http_stack::start::{Context, Service, StartError, check_database, check_mqtt};
use service::health::Health;

pub use api::limits;
pub use config::IngestionConfig;
pub use store::IngestStore;

/// Starts the service: pipeline, bus and reconcilers run on the context's tasks. They end with
/// its `stop`, after all received messages have been committed and acknowledged.
///
/// # Errors
/// When there is no database, or the broker's configuration is wrong.
pub fn start(config: &IngestionConfig, context: &Context) -> Result<Service, StartError> {
    let (clock, tasks, stop) = (&context.clock, &context.tasks, &context.stop);
    let database = context.database("ingestion")?;
    let mut health = check_database(Health::new("ingestion", context.clock.clone()), &database);
    let store = IngestStore::new(database.clone());
    let tail = live_tail::Tail::start(store.clone(), tasks, stop.clone());
    let dates = clock_correction::ClockCorrection::default();
    clock_correction::start(store.clone(), dates.clone(), tasks, stop.clone());
    let wake = tail.wake();
    let writing = store.with_own_pool(config.connections());
    let (pipeline, acks) =
        pipeline::Pipeline::start(config, &writing, clock, (&wake, &dates), tasks);
    let (ack_sender, ack_receiver) = session_closed::ack_queue();
    let bus = mqtt::start(config, &context.mqtt, (&pipeline, acks, ack_sender), tasks, stop)?;
    session_closed::start(
        store.clone(),
        bus.clone(),
        ack_receiver,
        clock.clone(),
        tasks,
        stop.clone(),
    );
    receipts::start(
        store.clone(),
        bus.clone(),
        pipeline.receipt_stored(),
        clock.clone(),
        tasks,
        stop.clone(),
    );
    if let Some(bus) = bus.clone() {
        health = check_mqtt(health, move || bus.is_connected());
    }
    let state = api::SharedState {
        pace: api::ReadPace::new(config.read_cells_per_second),
        store,
        pipeline,
        tail,
        clock: clock.clone(),
        stop: stop.clone(),
        limits: context.access.limits.clone(),
        cache: context.cache.clone(),
    };
    Ok(Service::new(context, "ingestion", api::routes(state), health)
        .with_idempotency(&database, &context.clock))
}
