//! One moment of a machine.

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
}
