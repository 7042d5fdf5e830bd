//! `[console]`

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use service::config::Mistakes;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConsoleConfig {
    pub listen: SocketAddr,
    /// The base URL of ingestion.
    pub ingestion_url: String,
}

impl Default for ConsoleConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            ingestion_url: "http://127.0.0.1:4001".to_owned(),
        }
    }
}

impl ConsoleConfig {
    pub fn check(&self, mistakes: &mut Mistakes) {
        mistakes.require_http_url("console.ingestion_url", &self.ingestion_url);
    }
}
