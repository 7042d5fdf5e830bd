//! `[inference]`, and the settings of single machines.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use service::config::Mistakes;
use utoipa::ToSchema;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InferenceConfig {
    pub listen: SocketAddr,
    /// The name of this instance. Each instance needs its own.
    pub instance: String,
    /// The most machines that are followed at once. At the limit, the machine that has been silent
    /// longest is removed for a new one, if it has been silent for ten minutes; otherwise the new
    /// one is not followed.
    pub machines_max: usize,
}

impl Default for InferenceConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 4005)),
            instance: "1".to_owned(),
            machines_max: 2_000,
        }
    }
}

impl InferenceConfig {
    pub fn check(&self, mistakes: &mut Mistakes) {
        mistakes.require(
            contract::DeviceId::new(self.instance.clone()).is_ok(),
            "inference.instance",
            "not a name of letters, digits and . _ -",
        );
        mistakes.require(
            (1..=100_000).contains(&self.machines_max),
            "inference.machines_max",
            "not between 1 and 100000",
        );
    }
}

/// The settings of one machine, as upstream Sim-Corp defines them. What is not set is determined by
/// the machine's own data.
///
/// With `fcBtThresholdC`, first crack is reported when the bean temperature rises to that value,
/// once `minFirstCrackSeconds` have passed and the rate of rise is at most `fcRorMaxThreshold`.
/// Silence is never treated as a drop: `dropSilenceSeconds` and `maxBufferPoints` are stored for
/// the clients that set them, and have no effect.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Settings {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_gap_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tp_search_window_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_first_crack_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fc_bt_threshold_c: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fc_ror_max_threshold: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drop_silence_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_buffer_points: Option<f64>,
}

impl Settings {
    /// Upstream Sim-Corp's defaults.
    pub const DEFAULTS: Self = Self {
        session_gap_seconds: Some(30.0),
        tp_search_window_seconds: Some(180.0),
        min_first_crack_seconds: Some(300.0),
        fc_bt_threshold_c: Some(196.0),
        fc_ror_max_threshold: None,
        drop_silence_seconds: Some(10.0),
        max_buffer_points: Some(2_000.0),
    };

    /// Returns these settings, overridden by those that `other` sets.
    #[must_use]
    pub fn overridden_by(self, other: Self) -> Self {
        Self {
            session_gap_seconds: other.session_gap_seconds.or(self.session_gap_seconds),
            tp_search_window_seconds: other
                .tp_search_window_seconds
                .or(self.tp_search_window_seconds),
            min_first_crack_seconds: other.min_first_crack_seconds.or(self.min_first_crack_seconds),
            fc_bt_threshold_c: other.fc_bt_threshold_c.or(self.fc_bt_threshold_c),
            fc_ror_max_threshold: other.fc_ror_max_threshold.or(self.fc_ror_max_threshold),
            drop_silence_seconds: other.drop_silence_seconds.or(self.drop_silence_seconds),
            max_buffer_points: other.max_buffer_points.or(self.max_buffer_points),
        }
    }

    /// Returns the fields that are out of range, each with its problem.
    #[must_use]
    pub fn problems(&self) -> Vec<(&'static str, &'static str)> {
        let mut problems = Vec::new();
        for (field, value, least, most, problem) in [
            ("sessionGapSeconds", self.session_gap_seconds, 5.0, 86_400.0, "not 5 to 86400"),
            ("tpSearchWindowSeconds", self.tp_search_window_seconds, 1.0, 3_600.0, "not 1 to 3600"),
            ("minFirstCrackSeconds", self.min_first_crack_seconds, 0.0, 3_600.0, "not 0 to 3600"),
            ("fcBtThresholdC", self.fc_bt_threshold_c, 100.0, 300.0, "not 100 to 300"),
            ("fcRorMaxThreshold", self.fc_ror_max_threshold, -50.0, 100.0, "not -50 to 100"),
            ("dropSilenceSeconds", self.drop_silence_seconds, 1.0, 86_400.0, "not 1 to 86400"),
            ("maxBufferPoints", self.max_buffer_points, 1.0, 1e6, "not 1 to 1000000"),
        ] {
            if value.is_some_and(|value| !(least..=most).contains(&value)) {
                problems.push((field, problem));
            }
        }
        problems
    }
}
