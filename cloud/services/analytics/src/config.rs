//! `[analytics]`

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use service::config::Mistakes;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AnalyticsConfig {
    pub listen: SocketAddr,
    /// Where ingestion answers.
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
    pub fn check(&self, mistakes: &mut Mistakes) {
        let http =
            self.ingestion_url.starts_with("http://") || self.ingestion_url.starts_with("https://");
        mistakes.require(
            http,
            "analytics.ingestion_url",
            "does not begin with http:// or https://",
        );
    }
}
