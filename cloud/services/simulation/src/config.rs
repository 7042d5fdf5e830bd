//! The configuration section `[simulation]`.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use service::config::Mistakes;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SimulationConfig {
    pub twin_listen: SocketAddr,
    pub publisher_listen: SocketAddr,
    /// The name of this instance in its MQTT client id; two instances need two names.
    pub instance: String,
    /// Whether operators may start simulated machines beside the real ones. If unset: only where
    /// requests are not authenticated (`auth.mode = "dev"`).
    pub publish: Option<bool>,
    /// The maximum number of simulated machines that play in one process at the same time.
    pub machines_max: usize,
}

impl Default for SimulationConfig {
    fn default() -> Self {
        Self {
            twin_listen: SocketAddr::from(([127, 0, 0, 1], 4002)),
            publisher_listen: SocketAddr::from(([127, 0, 0, 1], 4003)),
            instance: "1".to_owned(),
            publish: None,
            machines_max: 1_000,
        }
    }
}

impl SimulationConfig {
    pub fn check(&self, mistakes: &mut Mistakes) {
        mistakes.require(
            contract::DeviceId::new(self.instance.clone()).is_ok(),
            "simulation.instance",
            "not a name of letters, digits and . _ -",
        );
        mistakes.require(
            (1..=10_000).contains(&self.machines_max),
            "simulation.machines_max",
            "not between 1 and 10000",
        );
    }
}
