//! `[kernel]`

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use service::config::Mistakes;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KernelConfig {
    pub listen: SocketAddr,
    /// A worker that has not been heard of for so long has lost its mission, ms.
    pub lease_ms: u32,
}

impl Default for KernelConfig {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 3000)), lease_ms: 30_000 }
    }
}

impl KernelConfig {
    pub fn check(&self, mistakes: &mut Mistakes) {
        mistakes.require(
            (1_000..=3_600_000).contains(&self.lease_ms),
            "kernel.lease_ms",
            "not between 1000 and 3600000 ms",
        );
    }
}
