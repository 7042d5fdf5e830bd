//! A sample: the readings of a machine at one moment.

use contract::point::TelemetryPoint;
use serde::{Deserialize, Serialize};

/// The readings of a machine's probes, controls and sensors at one moment. `None`: the machine does
/// not have it, or it did not answer.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Sample {
    /// Event time, ms, from any origin.
    pub t_ms: i64,
    /// Bean temperature, °C.
    pub bt_c: Option<f64>,
    /// Environment temperature, °C.
    pub et_c: Option<f64>,
    /// Setting of the burner, %.
    pub gas_pct: Option<f64>,
    /// Setting of the fan, %.
    pub fan_pct: Option<f64>,
    /// Setting of the drum, %.
    pub drum_pct: Option<f64>,
    /// True while the discharge door is open.
    pub door_open: Option<bool>,
    /// The number of cracks counted by a crack sensor since the recording began.
    pub cracks: Option<f64>,
    /// The reading of a scale under the hopper, the drum or the cooling tray, g.
    pub weight_g: Option<f64>,
}

impl Sample {
    /// Creates a sample that has only a bean temperature.
    #[must_use]
    pub fn bean(t_ms: i64, bt_c: Option<f64>) -> Self {
        Self { t_ms, bt_c, ..Self::default() }
    }

    /// Converts a telemetry point of the API; its time counts from the start of the session.
    #[must_use]
    pub fn from_point(point: &TelemetryPoint) -> Self {
        #[allow(clippy::cast_possible_truncation)] // seconds of a roast, as ms
        let t_ms = (point.elapsed_seconds * 1000.0).round() as i64;
        Self {
            et_c: point.et_c,
            gas_pct: point.gas_pct,
            fan_pct: point.fan_pct,
            ..Self::bean(t_ms, point.bt_c)
        }
    }
}
