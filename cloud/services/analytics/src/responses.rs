//! The JSON bodies of the responses: what upstream Sim-Corp's clients read, with additions.

use std::collections::BTreeMap;

use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use contract::annotations::SessionMeta;
use contract::session::Completeness;
use contract::{EpochMs, EventKind, Origin, SessionId};
use http_stack::error::ApiError;
use roast::analysis::Analysis;
use roast::analysis::compare::{Comparison, Consistency};
use roast::prediction::{PredictionFeatures, Suggestion};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// A JSON response without its `null` values: clients expect that a value that is not set is
/// absent, never `null`.
pub struct WithoutNulls<T>(pub T);

impl<T: Serialize> WithoutNulls<T> {
    /// Returns the JSON text.
    ///
    /// # Errors
    /// When the body cannot be serialised; this happens to none of our types.
    pub fn to_bytes(&self) -> Result<Bytes, serde_json::Error> {
        let value = without_nulls(serde_json::to_value(&self.0)?);
        serde_json::to_vec(&value).map(Bytes::from)
    }
}

impl<T: Serialize> IntoResponse for WithoutNulls<T> {
    fn into_response(self) -> Response {
        match self.to_bytes() {
            Ok(body) => json_response(body),
            Err(error) => ApiError::internal(error).into_response(),
        }
    }
}

/// Returns a response with a body that is already JSON.
pub fn json_response(body: Bytes) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// Removes all `null` values.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let known = map.into_iter().filter(|(_, value)| !value.is_null());
            known.map(|(name, value)| (name, without_nulls(value))).collect::<Map<_, _>>().into()
        }
        Value::Array(list) => list.into_iter().map(without_nulls).collect::<Vec<_>>().into(),
        other => other,
    }
}

/// A roast's analysis. A roast without measurements yet has empty phases.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RoastAnalysis {
    pub session_id: SessionId,
    #[serde(flatten)]
    pub origin: Origin,
    pub computed_at: EpochMs,
    pub completeness: Completeness,
    /// The time of CHARGE, s since the session began.
    pub charge_elapsed_seconds: Option<f64>,
    pub meta: SessionMeta,
    pub config: AnalysisConfig,
    /// Where the time of each event comes from.
    pub event_time_source: BTreeMap<EventKind, EventTimeSource>,
    /// By how much each override moved its event, s.
    pub override_deltas_seconds: BTreeMap<EventKind, f64>,
    #[serde(flatten)]
    pub analysis: Analysis,
}

/// The thresholds of an analysis.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AnalysisConfig {
    /// The bean temperature at which drying ends, °C.
    pub dry_end_bt_c: f64,
    /// An override that moves an event by more than this is listed among the warnings, s.
    pub large_override_delta_seconds: f64,
}

/// Where the time of an event comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum EventTimeSource {
    Inferred,
    Overridden,
}

/// The prediction of when a running roast reaches first crack and drop.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RoastPrediction {
    pub session_id: SessionId,
    pub at_ts: EpochMs,
    /// The phase of the newest reading.
    pub phase: &'static str,
    pub inputs: PredictionInputs,
    pub eta_seconds: EtaSeconds,
    pub predicted_times: PredictedTimes,
    pub predicted_dev_ratio: Option<f64>,
    pub confidence: PredictionConfidence,
    pub suggestions: Vec<Suggestion>,
    pub explain: PredictionExplanation,
}

/// The data that a prediction uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PredictionInputs {
    pub points_used: usize,
    /// The channels with at least one value: `btC`, `etC`, `gasPct`, `fanPct`.
    pub channels_available: Vec<&'static str>,
    pub profile_id: Option<String>,
    pub profile_version: Option<i64>,
}

/// The time that remains until each event, s.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct EtaSeconds {
    #[serde(rename = "toFC")]
    pub to_fc: Option<f64>,
    pub to_drop: Option<f64>,
}

/// The predicted time of each event, s since the session began.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PredictedTimes {
    pub fc_at_elapsed_seconds: Option<f64>,
    pub drop_at_elapsed_seconds: Option<f64>,
}

/// How reliable a prediction is, 0 to 1.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PredictionConfidence {
    pub overall: f64,
    pub reasons: Vec<&'static str>,
    pub components: ConfidenceComponents,
}

/// The components of a prediction's confidence, 0 to 1 each.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfidenceComponents {
    pub data_quality: f64,
    pub model_fit: f64,
    pub phase_fit: f64,
    /// Absent without a profile.
    pub profile_fit: Option<f64>,
}

/// How a prediction was computed.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PredictionExplanation {
    pub method: &'static str,
    pub features: PredictionFeatures,
    pub last_observed: LastObserved,
}

/// The newest reading of a roast.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastObserved {
    pub elapsed_seconds: f64,
    pub bt_c: Option<f64>,
    pub ror_c_per_min: Option<f64>,
}

/// The comparison of a roast with another.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RoastComparison {
    pub session_id: String,
    pub reference_id: String,
    /// The event that has the same time in both roasts.
    pub align: EventKind,
    pub comparison: Comparison,
}

/// The consistency of several roasts.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct RoastConsistency {
    /// The ids of the roasts that were measured, newest first.
    pub sessions: Vec<SessionId>,
    pub roasts: Vec<RoastFigures>,
    pub consistency: Consistency,
}

/// The main figures of one roast.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RoastFigures {
    pub session_id: SessionId,
    pub started_at: EpochMs,
    pub fc_seconds: Option<f64>,
    pub drop_seconds: Option<f64>,
    pub development_ratio: Option<f64>,
    pub end_bt_c: Option<f64>,
}
