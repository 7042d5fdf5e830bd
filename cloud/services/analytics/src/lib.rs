//! Analytics: analyses one roast, compares two roasts, and measures how consistent several are.
//! It computes everything from the sessions that ingestion stores, with the same code that runs
//! beside the roaster, and stores nothing itself.

mod api;
mod config;
mod fleet;
mod loaded_roast;

use cache::Cache;
use http_stack::AccessLayer;
use service::clock::Clock;
use service::health::Health;
use service::secret::Secret;
use service_client::{ServiceClient, ServiceClientError};

pub use config::AnalyticsConfig;

/// A running analytics service: its router, OpenAPI document and health checks.
pub struct Analytics {
    pub router: axum::Router,
    pub openapi: utoipa::openapi::OpenApi,
    pub health: Health,
}

/// Starts the service and builds its router.
///
/// # Errors
/// When the HTTP client cannot be created.
pub fn start(
    config: &AnalyticsConfig,
    (door, token): (&AccessLayer, &Secret),
    cache: Cache,
    clock: Clock,
) -> Result<Analytics, ServiceClientError> {
    let ingestion = ServiceClient::new("ingestion", &config.ingestion_url, token)?;
    let asked = ingestion.clone();
    let health = Health::new("analytics").with_check("ingestion", move || {
        let ingestion = asked.clone();
        async move { ingestion.ping().await.map_err(|error| error.to_string()) }
    });
    let (router, openapi) = api::routes(api::State { ingestion, cache, clock }, door);
    Ok(Analytics { router, openapi, health })
}
