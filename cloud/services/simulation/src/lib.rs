//! Simulated roasts: the twin, which returns a whole roast ([`request`]), and simulated machines,
//! which send a roast in the same way as real gateways ([`gateway`]): signed frames over the
//! broker, which the cloud acknowledges, closed by a receipt.

mod api;
mod bus;
mod config;
pub mod gateway;
mod jobs;
pub mod request;

use std::pin::Pin;
use std::sync::Arc;

use contract::{KeyId, OrgId, SiteId};
use http_stack::AccessLayer;
use service::clock::Clock;
use service::health::Health;
use service::mqtt::{BrokerError, BrokerSettings};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use trust::PublicKey;

pub use config::SimulationConfig;

/// The future of a [`Registry`] operation; on failure it returns a sentence for the user.
pub type RegistryFuture<'t> = Pin<Box<dyn Future<Output = Result<(), String>> + Send + 't>>;

/// Registers the keys of simulated gateways as trusted, for as long as they play.
pub trait Registry: Send + Sync + 'static {
    fn add<'r>(
        &'r self,
        org: &'r OrgId,
        kid: &'r KeyId,
        site: &'r SiteId,
        machines: &'r [String],
        key: &'r PublicKey,
    ) -> RegistryFuture<'r>;
    fn revoke<'r>(&'r self, org: &'r OrgId, kid: &'r KeyId) -> RegistryFuture<'r>;
}

/// One of the two services: its routes, their OpenAPI description and the health checks.
pub struct Simulation {
    pub router: axum::Router,
    pub openapi: utoipa::openapi::OpenApi,
    pub health: Health,
}

/// Builds the twin, which returns whole roasts.
#[must_use]
pub fn twin(door: &AccessLayer, clock: Clock) -> Simulation {
    let (router, openapi) = api::twin_routes(clock, door);
    Simulation { router, openapi, health: Health::new("sim-twin") }
}

/// Starts the publisher, which plays roasts through the broker like real gateways.
///
/// # Errors
/// If the broker's configuration is wrong.
pub fn publisher(
    config: &SimulationConfig,
    mqtt: &BrokerSettings,
    door: &AccessLayer,
    registry: Arc<dyn Registry>,
    clock: Clock,
    tracker: &TaskTracker,
    stop: &CancellationToken,
) -> Result<Simulation, BrokerError> {
    let bus = bus::start(config, mqtt, tracker, stop)?;
    let mut health = Health::new("sim-publisher");
    if let Some(bus) = bus.clone() {
        health =
            health.with_check("mqtt", move || {
                let connected = bus.is_connected();
                async move {
                    if connected { Ok(()) } else { Err("not connected to the broker".to_owned()) }
                }
            });
    }
    let jobs = jobs::Jobs::new(config, bus, registry, clock, tracker.clone(), stop.clone());
    let (router, openapi) = api::publisher_routes(jobs, door);
    Ok(Simulation { router, openapi, health })
}
