//! Sessions: roasts as they are stored, in the form that upstream Sim-Corp's clients read.

use serde::{Deserialize, Serialize};

use crate::{EpochMs, Origin, SessionId};

/// Whether a session is still running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum SessionStatus {
    /// The roast is running.
    Active,
    /// The roast has ended.
    Closed,
}

impl SessionStatus {
    /// Returns the name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "ACTIVE",
            Self::Closed => "CLOSED",
        }
    }

    /// Parses the name on the wire; `None` for any other text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Active, Self::Closed].into_iter().find(|s| s.as_str() == text)
    }
}

/// Whether the cloud has stored the whole roast.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Completeness {
    /// No receipt yet: the roast is running, or its gateway is offline or signs no receipts.
    Open,
    /// Every frame that the gateway's receipt names is stored, and the receipt's digest matches.
    Complete,
    /// The receipt names frames that are not stored. The cloud has requested them.
    Incomplete,
}

impl Completeness {
    /// Returns the name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Complete => "complete",
            Self::Incomplete => "incomplete",
        }
    }

    /// Parses the name on the wire; `None` for any other text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Open, Self::Complete, Self::Incomplete].into_iter().find(|s| s.as_str() == text)
    }
}

/// A session in the list that `GET /sessions` returns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RoastSessionSummary {
    /// The machine that roasted.
    #[serde(flatten)]
    pub origin: Origin,
    /// The display name of the machine, to show in place of its id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_name: Option<String>,
    /// The identity of the session.
    pub session_id: SessionId,
    /// When the session began.
    pub started_at: EpochMs,
    /// Whether `startedAt` is an estimate, because the gateway's clock was not set or the roast began
    /// before the agent. Absent if it is not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub started_at_estimated: bool,
    /// Whether the roast began before its agent was started: CHARGE is an estimate, and the first
    /// samples are missing. Absent if it did not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub begun_before: bool,
    /// `null` while the roast runs; the key is always present.
    pub ended_at: Option<EpochMs>,
    /// Whether the session is still running.
    pub status: SessionStatus,
    /// The duration of the session, s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_seconds: Option<f64>,
    /// The time of first crack, s from the start of the session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fc_seconds: Option<f64>,
    /// The time of DROP, s from the start of the session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drop_seconds: Option<f64>,
    /// The highest bean temperature, °C.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bt_c: Option<f64>,
    /// The number of samples.
    pub telemetry_points: u64,
    /// The number of samples whose signature is valid.
    pub verified_points: u64,
    /// The number of samples without a signature.
    pub unsigned_points: u64,
    /// The number of samples whose signature is invalid.
    pub failed_points: u64,
    /// The keys that signed the session's data.
    pub device_ids: Vec<String>,
    /// Whether the cloud has stored the whole roast.
    pub completeness: Completeness,
}

/// A session as `GET /sessions/{id}` returns it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RoastSession {
    /// The fields of the list.
    #[serde(flatten)]
    pub summary: RoastSessionSummary,
    /// Always empty; the metadata is at `GET /sessions/{id}/meta`. Upstream Sim-Corp's clients
    /// expect the key.
    #[serde(default)]
    #[cfg_attr(
        feature = "openapi",
        schema(value_type = std::collections::HashMap<String, serde_json::Value>)
    )]
    pub meta: serde_json::Map<String, serde_json::Value>,
}

/// A machine in the list that `GET /machines` returns for the fleet page.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MachineStatus {
    /// The machine.
    #[serde(flatten)]
    pub origin: Origin,
    /// The display name of the machine, to show in place of its id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_name: Option<String>,
    /// Its earlier ids, whose data is shown as that of this machine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub previous_ids: Vec<String>,
    /// The time of the newest sample, by the gateway's clock.
    pub last_sample_at: Option<EpochMs>,
    /// When the cloud last received anything from the machine.
    pub last_seen_at: EpochMs,
    /// The newest bean temperature, °C.
    pub bt_c: Option<f64>,
    /// The newest environment temperature, °C.
    pub et_c: Option<f64>,
    /// The newest rate of rise of the bean temperature, °C/min.
    pub ror_c_per_min: Option<f64>,
    /// The running session.
    pub session_id: Option<SessionId>,
    /// When the running session began.
    pub session_started_at: Option<EpochMs>,
    /// The kind of the newest event.
    pub last_event: Option<crate::EventKind>,
    /// The time of the newest event.
    pub last_event_at: Option<EpochMs>,
    /// The number of frames that are known to be missing and that the cloud has requested.
    pub missing_frames: u64,
    /// When two agents were last seen to send under the machine's device name and key. Absent if
    /// there was no such conflict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_conflict_at: Option<EpochMs>,
}
