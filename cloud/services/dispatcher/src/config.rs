//! The configuration section `[dispatcher]`.

use std::net::SocketAddr;

use contract::mission::{EVAL_GOAL, REPORT_GOAL};
use serde::{Deserialize, Serialize};
use service::config::Mistakes;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DispatcherConfig {
    pub listen: SocketAddr,
    /// This instance's name at the broker; two instances need two names.
    pub instance: String,
    /// Base URL of the kernel.
    pub kernel_url: String,
    /// Every roast leads to one mission for each of these goals.
    pub goals: Vec<String>,
    /// The most attempts of a mission. With waits of at most a quarter of an hour, 100 last about a
    /// day.
    pub max_attempts: u32,
    /// Whether `POST /replay` is available.
    pub replay: bool,
}

impl Default for DispatcherConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 4010)),
            instance: "1".to_owned(),
            kernel_url: "http://127.0.0.1:3000".to_owned(),
            goals: [REPORT_GOAL, EVAL_GOAL].map(str::to_owned).to_vec(),
            max_attempts: 100,
            replay: false,
        }
    }
}

impl DispatcherConfig {
    pub fn check(&self, mistakes: &mut Mistakes) {
        mistakes.require_http_url("dispatcher.kernel_url", &self.kernel_url);
        mistakes.require(
            (1..=16).contains(&self.goals.len())
                && self.goals.iter().all(|goal| (1..=200).contains(&goal.len())),
            "dispatcher.goals",
            "not 1 to 16 goals of 1 to 200 bytes",
        );
        mistakes.require(
            (1..=100).contains(&self.max_attempts),
            "dispatcher.max_attempts",
            "not between 1 and 100",
        );
        mistakes.require(
            contract::DeviceId::new(self.instance.clone()).is_ok(),
            "dispatcher.instance",
            "not a name of letters, digits and . _ -",
        );
    }
}
