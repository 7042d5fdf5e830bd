//! What people and workers write about a roast, in the form that upstream Sim-Corp's clients read:
//! metadata, notes, event overrides and reports.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Actor, EpochMs, EventKind, Origin};

/// The metadata of a session: beans, weights and conditions. Unknown fields are dropped.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SessionMeta {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bean_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub producer: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variety: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub harvest: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lot_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roast_profile_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator: Option<String>,
    /// °C
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ambient_temp_c: Option<f64>,
    /// %
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ambient_humidity_pct: Option<f64>,
    /// m
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elevation_m: Option<f64>,
    /// Green and roasted weight, g.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_in_g: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_out_g: Option<f64>,
    #[serde(default)]
    pub tags: Vec<String>,
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub extra: Map<String, Value>,
}

/// A roast defect that a taster found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Defect {
    Baked,
    Scorched,
    Underdeveloped,
    Tipped,
    Quakers,
    Smokey,
    Astringent,
    Bitter,
    Sour,
    Flat,
}

/// A note about a session as its author sends it: remarks and cupping results.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NewNote {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// 0..100
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cupping_score: Option<f64>,
    #[serde(default)]
    pub defects: Vec<Defect>,
    /// 0..10 each
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sweetness: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acidity: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<f64>,
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub extra: Map<String, Value>,
}

impl NewNote {
    /// Returns what is out of bounds, each with its field.
    #[must_use]
    pub fn problems(&self) -> Vec<(&'static str, &'static str)> {
        let ten = 0.0..=10.0;
        let of_ten =
            [("sweetness", self.sweetness), ("acidity", self.acidity), ("body", self.body)];
        let mut found: Vec<_> = of_ten
            .into_iter()
            .filter(|(_, value)| value.is_some_and(|v| !ten.contains(&v)))
            .map(|(field, _)| (field, "not between 0 and 10"))
            .collect();
        if self.cupping_score.is_some_and(|score| !(0.0..=100.0).contains(&score)) {
            found.push(("cuppingScore", "not between 0 and 100"));
        }
        found
    }
}

/// A note about a session as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SessionNote {
    pub note_id: String,
    pub created_at: EpochMs,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<Actor>,
    #[serde(flatten)]
    pub note: NewNote,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum OverrideSource {
    #[default]
    Human,
    Device,
}

/// A manual override of an event's time. It takes precedence over the detected event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EventOverride {
    pub event_type: EventKind,
    /// The event's time in seconds since the session began.
    pub elapsed_seconds: f64,
    #[serde(default)]
    pub source: OverrideSource,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<Actor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated_at: Option<EpochMs>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Author {
    #[default]
    Agent,
    Human,
}

/// How many of a session's samples were signed and verified.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TrustMetrics {
    pub total_points: u64,
    pub verified_points: u64,
    pub unsigned_points: u64,
    pub failed_points: u64,
    /// 0..1
    pub verification_rate: f64,
    #[serde(default)]
    pub device_ids: Vec<String>,
}

/// A report as a worker or a person sends it. Its organisation, site and machine come from the
/// session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NewReport {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report_id: Option<String>,
    #[serde(default = "post_roast")]
    pub report_kind: String,
    #[serde(default)]
    pub created_by: Author,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_version: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub analysis: Map<String, Value>,
    pub markdown: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meta: Option<SessionMeta>,
    #[serde(default)]
    pub overrides: Vec<EventOverride>,
    #[serde(default)]
    pub notes: Vec<SessionNote>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust_metrics: Option<TrustMetrics>,
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<Object>))]
    pub evaluations: Vec<Value>,
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<Object>))]
    pub next_actions: Vec<Value>,
}

fn post_roast() -> String {
    crate::mission::POST_ROAST.to_owned()
}

/// A report as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RoastReport {
    pub session_id: String,
    #[serde(flatten)]
    pub origin: Origin,
    pub created_at: EpochMs,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<Actor>,
    /// The report. In a stored report `reportId` is always present.
    #[serde(flatten)]
    pub report: NewReport,
}
