//! Upstream Sim-Corp's JSON for a sample and an event, with its exact field names.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{EpochMs, EventKind, MachineId};

/// The longest `batchId`, in bytes.
pub const BATCH_BYTES_MAX: usize = 128;
/// The longest name of an extra value, in bytes.
pub const EXTRA_NAME_BYTES_MAX: usize = 64;
/// The longest text of an extra value, in bytes.
pub const EXTRA_TEXT_BYTES_MAX: usize = 256;
/// The largest payload of an event, in bytes of JSON.
pub const EVENT_PAYLOAD_BYTES_MAX: usize = 16 * 1024;

/// A value of [`TelemetryPoint::extras`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ExtraValue {
    /// A number, without a unit.
    Number(f64),
    /// A text.
    Text(String),
}

/// One sample in the form that upstream Sim-Corp's clients read and write.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TelemetryPoint {
    /// The time of the sample.
    pub ts: EpochMs,
    /// The machine that was read.
    #[serde(with = "crate::upstream_id")]
    pub machine_id: MachineId,
    /// The batch, as the machine or its operator names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_id: Option<String>,
    /// Seconds since the session began, ≥ 0.
    pub elapsed_seconds: f64,
    /// Bean temperature, °C.
    #[serde(default, rename = "btC", skip_serializing_if = "Option::is_none")]
    pub bt_c: Option<f64>,
    /// Environment temperature, °C.
    #[serde(default, rename = "etC", skip_serializing_if = "Option::is_none")]
    pub et_c: Option<f64>,
    /// Rate of rise of BT, °C/min.
    #[serde(default, rename = "rorCPerMin", skip_serializing_if = "Option::is_none")]
    pub ror_c_per_min: Option<f64>,
    /// Burner power, 0..100 %.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gas_pct: Option<f64>,
    /// Fan, 0..100 %.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fan_pct: Option<f64>,
    /// Drum speed, 1/min.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drum_rpm: Option<f64>,
    /// Room temperature, °C.
    #[serde(default, rename = "ambientC", skip_serializing_if = "Option::is_none")]
    pub ambient_c: Option<f64>,
    /// Other values by their own names, at most 32.
    #[serde(default)]
    pub extras: BTreeMap<String, ExtraValue>,
}

/// One event in the form that upstream Sim-Corp's clients read and write.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RoastEvent {
    /// When it happened.
    pub ts: EpochMs,
    /// The machine at which it happened.
    #[serde(with = "crate::upstream_id")]
    pub machine_id: MachineId,
    /// The batch, as the machine or its operator names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_id: Option<String>,
    /// What happened.
    #[serde(rename = "type")]
    pub kind: EventKind,
    /// Free-form JSON of the publisher; by convention with `elapsedSeconds` and `btC`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(value_type = Option<std::collections::HashMap<String, serde_json::Value>>)
    )]
    pub payload: Option<serde_json::Map<String, serde_json::Value>>,
}

impl RoastEvent {
    /// Returns `payload.elapsedSeconds`, if it is a number ≥ 0.
    #[must_use]
    pub fn elapsed_seconds(&self) -> Option<f64> {
        self.number("elapsedSeconds").filter(|s| *s >= 0.0)
    }

    /// Returns a number of the payload.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<f64> {
        self.payload.as_ref()?.get(name)?.as_f64()
    }
}

/// A field outside its bounds.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct FieldError {
    /// The name of the field, as a path.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
}
