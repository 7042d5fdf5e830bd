//! Analytics: analyses one roast, compares two roasts, and measures how consistent several are.
//! It computes everything from the sessions that ingestion stores, with the same code that runs
//! beside the roaster, and stores nothing itself.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod api;
mod config;
mod fleet;
mod loaded_roast;
mod responses;

use http_stack::start::{Context, Service, StartError, check_service};
use service::health::Health;

pub use config::AnalyticsConfig;

/// Starts the service: it has no background tasks.
///
/// # Errors
/// When no HTTP client can be created.
pub fn start(config: &AnalyticsConfig, context: &Context) -> Result<Service, StartError> {
    let ingestion = context.client("ingestion", &config.ingestion_url)?;
    let health =
        check_service(Health::new("analytics", context.clock.clone()), "ingestion", &ingestion);
    let state = api::State::new(ingestion, context.cache.clone(), context.clock.clone());
    Ok(Service::new(context, "analytics", api::routes(state), health))
}
