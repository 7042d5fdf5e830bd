//! The configuration section `[analytics]`.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use service::config::Mistakes;

/// `[analytics]`: the analytics service.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AnalyticsConfig {
    /// The address of the HTTP API.
    pub listen: SocketAddr,
    /// The URL of ingestion.
    pub ingestion_url: String,
}

impl Default for AnalyticsConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 4006)),
            ingestion_url: "http://127.0.0.1:4001".to_owned(),
        }
    }
}

impl AnalyticsConfig {
    /// Adds every invalid value to `mistakes`.
    pub fn check(&self, mistakes: &mut Mistakes) {
        mistakes.require_http_url("analytics.ingestion_url", &self.ingestion_url);
    }
}
