//! The configuration section `[reports]`.

use std::net::SocketAddr;
use std::time::Duration;

use mission_worker::WorkerTimings;
use serde::{Deserialize, Serialize};
use service::config::Mistakes;

/// `[reports]`: the report worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReportsConfig {
    /// The address of the HTTP API.
    pub listen: SocketAddr,
    /// The URL of the kernel.
    pub kernel_url: String,
    /// The URL of ingestion.
    pub ingestion_url: String,
    /// The URL of analytics.
    pub analytics_url: String,
    /// The number of workers: how many missions are processed concurrently.
    pub workers: usize,
    /// How long a worker waits before it polls again after it found no mission, ms.
    pub poll_ms: u32,
    /// The maximum duration of one mission, ms.
    pub mission_ms: u32,
    /// The interval of the worker's heartbeats, ms. Must be well below `kernel.lease_ms`.
    pub heartbeat_ms: u32,
}

impl Default for ReportsConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 4008)),
            kernel_url: "http://127.0.0.1:3000".to_owned(),
            ingestion_url: "http://127.0.0.1:4001".to_owned(),
            analytics_url: "http://127.0.0.1:4006".to_owned(),
            workers: 2,
            poll_ms: 2_000,
            mission_ms: 300_000,
            heartbeat_ms: 10_000,
        }
    }
}

impl ReportsConfig {
    pub(crate) fn pace(&self) -> WorkerTimings {
        let ms = |ms: u32| Duration::from_millis(ms.into());
        let (poll, heartbeat) = (ms(self.poll_ms), ms(self.heartbeat_ms));
        WorkerTimings { poll, mission_ms: self.mission_ms, heartbeat }
    }

    /// Adds every invalid value to `mistakes`.
    pub fn check(&self, mistakes: &mut Mistakes) {
        for (field, url) in [
            ("reports.kernel_url", &self.kernel_url),
            ("reports.ingestion_url", &self.ingestion_url),
            ("reports.analytics_url", &self.analytics_url),
        ] {
            mistakes.require_http_url(field, url);
        }
        mistakes.require(
            (1..=64).contains(&self.workers),
            "reports.workers",
            "not between 1 and 64",
        );
        for (field, value) in [
            ("reports.poll_ms", self.poll_ms),
            ("reports.mission_ms", self.mission_ms),
            ("reports.heartbeat_ms", self.heartbeat_ms),
        ] {
            mistakes.require(
                (50..=3_600_000).contains(&value),
                field,
                "not between 50 and 3600000 ms",
            );
        }
    }
}
