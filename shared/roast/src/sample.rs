//! One moment of a machine.

use contract::point::TelemetryPoint;
use serde::{Deserialize, Serialize};

/// What a machine's probes, controls and sensors say at one moment. `None`: it has none, or did not
/// answer.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Sample {
    /// Event time, ms, from any origin.
    pub t_ms: i64,
    /// Bean and environment temperature, °C.
    pub bt_c: Option<f64>,
    pub et_c: Option<f64>,
    /// Burner, air and drum, %.
    pub gas_pct: Option<f64>,
    pub fan_pct: Option<f64>,
    pub drum_pct: Option<f64>,
    /// True while the discharge door is open.
    pub door_open: Option<bool>,
    /// Cracks heard since the recording began.
    pub cracks: Option<f64>,
    /// What a scale under the hopper, the drum or the cooling tray says, g.
    pub weight_g: Option<f64>,
}

impl Sample {
    /// A moment of which only the bean temperature is known.
    #[must_use]
    pub fn bean(t_ms: i64, bt_c: Option<f64>) -> Self {
        Self { t_ms, bt_c, ..Self::default() }
    }

    /// A point as services tell it; its time counts from the session's begin.
    #[must_use]
    pub fn of(point: &TelemetryPoint) -> Self {
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
