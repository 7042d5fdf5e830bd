//! The configuration section `[eval]`.

use std::net::SocketAddr;
use std::time::Duration;

use mission_worker::WorkerTimings;
use serde::{Deserialize, Serialize};
use service::config::Mistakes;
use service::secret::Secret;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvalConfig {
    pub listen: SocketAddr,
    /// The URL of the kernel; below, those of ingestion and analytics.
    pub kernel_url: String,
    pub ingestion_url: String,
    pub analytics_url: String,
    /// How many missions are worked on at the same time.
    pub workers: usize,
    /// How often a worker requests work when there was none, ms.
    pub poll_ms: u32,
    pub judge: JudgeConfig,
}

/// `[eval.judge]`: a language model's opinion of runs, beside the gates. Off unless enabled.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JudgeConfig {
    pub enabled: bool,
    /// The base URL of the Messages API.
    pub url: String,
    pub api_key: Secret,
    pub model: String,
    /// The time limit of one request to the model, ms.
    pub answer_ms: u32,
    /// How often the instances of eval together ask the model about the runs of one organisation in
    /// a day of UTC. Further runs wait until the next day.
    pub questions_per_day: u32,
}

impl Default for EvalConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 4007)),
            kernel_url: "http://127.0.0.1:3000".to_owned(),
            ingestion_url: "http://127.0.0.1:4001".to_owned(),
            analytics_url: "http://127.0.0.1:4006".to_owned(),
            workers: 1,
            poll_ms: 2_000,
            judge: JudgeConfig::default(),
        }
    }
}

impl Default for JudgeConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            url: "https://api.anthropic.com".to_owned(),
            api_key: Secret::default(),
            model: "claude-3-5-sonnet-20241022".to_owned(),
            answer_ms: 60_000,
            questions_per_day: 2_000,
        }
    }
}

impl EvalConfig {
    pub(crate) fn pace(&self) -> WorkerTimings {
        WorkerTimings {
            poll: Duration::from_millis(self.poll_ms.into()),
            mission_ms: 120_000,
            heartbeat: Duration::from_secs(10),
        }
    }

    pub fn check(&self, mistakes: &mut Mistakes) {
        for (field, url) in [
            ("eval.kernel_url", &self.kernel_url),
            ("eval.ingestion_url", &self.ingestion_url),
            ("eval.analytics_url", &self.analytics_url),
        ] {
            mistakes.require_http_url(field, url);
        }
        mistakes.require((1..=64).contains(&self.workers), "eval.workers", "not between 1 and 64");
        mistakes.require(
            (50..=3_600_000).contains(&self.poll_ms),
            "eval.poll_ms",
            "not between 50 and 3600000 ms",
        );
        let judge = &self.judge;
        mistakes.require_private_url("eval.judge.url", &judge.url);
        mistakes.require(
            !judge.enabled || judge.api_key.is_set(),
            "eval.judge.api_key",
            "is required when eval.judge.enabled is true",
        );
        mistakes.require(
            (1_000..=600_000).contains(&judge.answer_ms),
            "eval.judge.answer_ms",
            "not between 1000 and 600000 ms",
        );
        mistakes.require(
            (1..=1_000_000).contains(&judge.questions_per_day),
            "eval.judge.questions_per_day",
            "not between 1 and 1000000",
        );
    }
}
