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
    /// The name of the beans.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bean_name: Option<String>,
    /// The country or region that the beans come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// The farm or cooperative.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub producer: Option<String>,
    /// The botanical variety.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variety: Option<String>,
    /// The processing method, such as washed or natural.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
    /// The harvest, as the label states it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub harvest: Option<String>,
    /// The number of the lot of green beans.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lot_id: Option<String>,
    /// The name of the roast profile that was followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roast_profile_name: Option<String>,
    /// The name of the person who roasted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator: Option<String>,
    /// The room temperature, °C.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ambient_temp_c: Option<f64>,
    /// The relative humidity of the room, %.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ambient_humidity_pct: Option<f64>,
    /// The elevation above sea level, m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elevation_m: Option<f64>,
    /// The weight of the green beans, g.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_in_g: Option<f64>,
    /// The weight of the roasted beans, g.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_out_g: Option<f64>,
    /// Free labels.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Further values of the client, stored unchanged: free-form JSON.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = std::collections::HashMap<String, Value>))]
    pub extra: Map<String, Value>,
}

/// A roast defect that a taster found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Defect {
    /// Flat and bready, from a rate of rise that stalled.
    Baked,
    /// Burnt on the surface, from a drum that was too hot.
    Scorched,
    /// Not roasted through.
    Underdeveloped,
    /// Burnt at the ends of the beans.
    Tipped,
    /// Pale beans that were unripe when picked.
    Quakers,
    /// Tastes of smoke.
    Smokey,
    /// Leaves the mouth dry.
    Astringent,
    /// Tastes bitter.
    Bitter,
    /// Tastes sour.
    Sour,
    /// Lacks flavour.
    Flat,
}

/// A note about a session as its author sends it: remarks and cupping results.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NewNote {
    /// The name of the author, as the author gives it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// A heading.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// The remarks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The cupping score, 0..100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cupping_score: Option<f64>,
    /// The defects that the taster found.
    #[serde(default)]
    pub defects: Vec<Defect>,
    /// Sweetness in the cup, 0..10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sweetness: Option<f64>,
    /// Acidity in the cup, 0..10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acidity: Option<f64>,
    /// Body in the cup, 0..10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<f64>,
    /// Further values of the client, stored unchanged: free-form JSON.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = std::collections::HashMap<String, Value>))]
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
    /// The identity of the note.
    pub note_id: String,
    /// When the service stored the note.
    pub created_at: EpochMs,
    /// The authenticated author.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<Actor>,
    /// The content, as the author sent it.
    #[serde(flatten)]
    pub note: NewNote,
}

/// What an event override is based on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum OverrideSource {
    /// A person's observation.
    #[default]
    Human,
    /// A device's report.
    Device,
}

/// A manual override of an event's time. It takes precedence over the detected event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EventOverride {
    /// The kind of the event whose time is overridden.
    pub event_type: EventKind,
    /// The event's time in seconds since the session began.
    pub elapsed_seconds: f64,
    /// What the override is based on.
    #[serde(default)]
    pub source: OverrideSource,
    /// The name of the author, as the author gives it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// The authenticated author.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<Actor>,
    /// Why the detected time is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When the override was last changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated_at: Option<EpochMs>,
}

/// The kind of a report's author.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Author {
    /// A mission agent.
    #[default]
    Agent,
    /// A person.
    Human,
}

/// How many of a session's samples were signed and verified.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TrustMetrics {
    /// The number of samples.
    pub total_points: u64,
    /// The number of samples whose signature is valid.
    pub verified_points: u64,
    /// The number of samples without a signature.
    pub unsigned_points: u64,
    /// The number of samples whose signature is invalid.
    pub failed_points: u64,
    /// The share of verified samples in all samples, 0..1.
    pub verification_rate: f64,
    /// The keys that signed the samples.
    #[serde(default)]
    pub device_ids: Vec<String>,
}

/// A report as a worker or a person sends it. Its organisation, site and machine come from the
/// session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NewReport {
    /// The identity of the report; the service chooses one if it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report_id: Option<String>,
    /// The kind of the report; `POST_ROAST_V1` if absent.
    #[serde(default = "post_roast")]
    pub report_kind: String,
    /// The kind of the author.
    #[serde(default)]
    pub created_by: Author,
    /// The name of the mission agent that wrote the report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_name: Option<String>,
    /// The version of that mission agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_version: Option<String>,
    /// The trace of the mission that produced the report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// The analysis that the report describes, as its author computed it: free-form JSON.
    #[cfg_attr(feature = "openapi", schema(value_type = std::collections::HashMap<String, Value>))]
    pub analysis: Map<String, Value>,
    /// The text of the report, in Markdown.
    pub markdown: String,
    /// The session's metadata at the time of the report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meta: Option<SessionMeta>,
    /// The session's event overrides at the time of the report.
    #[serde(default)]
    pub overrides: Vec<EventOverride>,
    /// The session's notes at the time of the report.
    #[serde(default)]
    pub notes: Vec<SessionNote>,
    /// The signatures of the session's samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust_metrics: Option<TrustMetrics>,
    /// The results of comparisons with golden cases: free-form JSON.
    #[serde(default)]
    pub evaluations: Vec<Value>,
    /// What the author proposes to do next: free-form JSON.
    #[serde(default)]
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
    /// The session that the report is about.
    pub session_id: String,
    /// The machine that the session belongs to.
    #[serde(flatten)]
    pub origin: Origin,
    /// When the service stored the report.
    pub created_at: EpochMs,
    /// The authenticated author.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<Actor>,
    /// The report. In a stored report `reportId` is always present.
    #[serde(flatten)]
    pub report: NewReport,
}
