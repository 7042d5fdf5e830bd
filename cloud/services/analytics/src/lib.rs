//! Analytics: what a roast was, how it lies to another, how alike several are. Computed from what
//! ingestion holds, by the same code that runs beside the roaster; nothing is kept here.

mod api;
mod config;
mod fleet;
mod roasted;

use cache::Cache;
use http_stack::AccessLayer;
use service::clock::Clock;
use service::health::Health;
use service::secret::Secret;
use service_client::{ServiceClient, ServiceClientError};

pub use config::AnalyticsConfig;

/// Running analytics: its routes, and what they need.
pub struct Analytics {
    pub router: axum::Router,
    pub openapi: utoipa::openapi::OpenApi,
    pub health: Health,
}

/// Builds the routes.
///
/// # Errors
/// When the system gives no HTTP client.
pub fn start(
    config: &AnalyticsConfig,
    (door, token): (&AccessLayer, &Secret),
    cache: Cache,
    clock: Clock,
) -> Result<Analytics, ServiceClientError> {
    let ingestion = ServiceClient::new("ingestion", &config.ingestion_url, token)?;
    let asked = ingestion.clone();
    let health = Health::new("analytics").check("ingestion", move || {
        let ingestion = asked.clone();
        async move { ingestion.ping().await.map_err(|error| error.to_string()) }
    });
    let (router, openapi) = api::routes(api::State { ingestion, cache, clock }, door);
    Ok(Analytics { router, openapi, health })
}
