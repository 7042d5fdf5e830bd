//! Simulated roasts: the twin, which returns a whole roast ([`request`]), and simulated machines,
//! which send a roast in the same way as real gateways ([`gateway`]): signed frames over the
//! broker, which the cloud acknowledges, closed by a receipt.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod api;
mod bus;
mod config;
pub mod gateway;
mod jobs;
mod places;
pub mod request;

use http_stack::start::{Context, Service, StartError, check_mqtt};
use std::pin::Pin;
use std::sync::Arc;

use contract::{KeyId, OrgId, SiteId};
use service::health::Health;
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

/// Starts the twin, which returns whole roasts.
///
/// # Errors
/// None today; the signature is that of every service.
pub fn start_twin(_: &SimulationConfig, context: &Context) -> Result<Service, StartError> {
    let routes = api::twin_routes(context.clock.clone());
    Ok(Service::new(context, "twin", routes, Health::new("sim-twin", context.clock.clone())))
}

/// Starts the publisher, which plays roasts through the broker like real gateways. `registry`
/// registers their keys.
///
/// # Errors
/// When the broker's configuration is wrong.
pub fn start_publisher(
    config: &SimulationConfig,
    context: &Context,
    registry: Arc<dyn Registry>,
) -> Result<Service, StartError> {
    let (tasks, stop) = (&context.tasks, &context.stop);
    let bus = bus::start(config, &context.mqtt, tasks, stop)?;
    let mut health = Health::new("sim-publisher", context.clock.clone());
    if let Some(bus) = bus.clone() {
        health = check_mqtt(health, move || bus.is_connected());
    }
    let clock = context.clock.clone();
    let jobs = jobs::Jobs::new(config, bus, registry, clock, tasks.tracker().clone(), stop.clone());
    Ok(Service::new(context, "publisher", api::publisher_routes(jobs), health))
}
