//! The configuration section `[kernel]`.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use service::config::Mistakes;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KernelConfig {
    pub listen: SocketAddr,
    /// A worker that sends no heartbeat for this long loses its mission, ms.
    pub lease_ms: u32,
    /// Base URL of eval, which reports the roasts that may be promoted and how many were evaluated.
    pub eval_url: String,
}

impl Default for KernelConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 3000)),
            lease_ms: 30_000,
            eval_url: "http://127.0.0.1:4007".to_owned(),
        }
    }
}

impl KernelConfig {
    pub fn check(&self, mistakes: &mut Mistakes) {
        mistakes.require(
            (1_000..=3_600_000).contains(&self.lease_ms),
            "kernel.lease_ms",
            "not between 1000 and 3600000 ms",
        );
        mistakes.require_http_url("kernel.eval_url", &self.eval_url);
    }
}
