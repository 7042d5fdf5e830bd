//! Analytics: what a roast was, how it lies to another, how alike several are. Computed from what
//! ingestion holds, by the same code that runs beside the roaster; nothing is kept here.

mod api;
mod config;
mod roasted;

use std::sync::Arc;

use contract::EpochMs;
use peer::{Peer, PeerError};
use service::auth::Auth;
use service::health::Health;
use service::secret::Secret;

pub use config::AnalyticsConfig;

/// The wall clock, passed in so that tests can hold it.
pub type Clock = Arc<dyn Fn() -> EpochMs + Send + Sync>;

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
    (auth, token): (Auth, &Secret),
    clock: Clock,
) -> Result<Analytics, PeerError> {
    let ingestion = Peer::new("ingestion", &config.ingestion_url, token)?;
    let asked = ingestion.clone();
    let health = Health::new("analytics").check("ingestion", move || {
        let ingestion = asked.clone();
        async move { ingestion.ping().await.map_err(|error| error.to_string()) }
    });
    let (router, openapi) = api::routes(api::State { ingestion, clock }, auth);
    Ok(Analytics { router, openapi, health })
}
