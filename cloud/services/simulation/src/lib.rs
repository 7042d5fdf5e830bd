//! Simulated roasts: the twin that answers with one ([`request`]), and machines that play them on the
//! real path ([`gateway`]): signed frames over the broker, acknowledged, closed by a receipt.

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
use service::mqtt::{Broker, BrokerError};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use trust::PublicKey;

pub use config::SimulationConfig;

/// What is being waited for, with a sentence where it failed.
pub type Told<'t> = Pin<Box<dyn Future<Output = Result<(), String>> + Send + 't>>;

/// Where a simulated gateway's key becomes one that is believed, for as long as it plays.
pub trait Registry: Send + Sync + 'static {
    fn add<'r>(
        &'r self,
        org: &'r OrgId,
        kid: &'r KeyId,
        site: &'r SiteId,
        machines: &'r [String],
        key: &'r PublicKey,
    ) -> Told<'r>;
    fn revoke<'r>(&'r self, org: &'r OrgId, kid: &'r KeyId) -> Told<'r>;
}

/// One of the two services: its routes, and what they need.
pub struct Simulation {
    pub router: axum::Router,
    pub openapi: utoipa::openapi::OpenApi,
    pub health: Health,
}

/// The twin: answers with whole roasts.
#[must_use]
pub fn twin(door: &AccessLayer, clock: Clock) -> Simulation {
    let (router, openapi) = api::twin_routes(clock, door);
    Simulation { router, openapi, health: Health::new("sim-twin") }
}

/// The publisher: plays roasts on the real path.
///
/// # Errors
/// When the broker's configuration is wrong.
pub fn publisher(
    config: &SimulationConfig,
    mqtt: &Broker,
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
            health.check("mqtt", move || {
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
