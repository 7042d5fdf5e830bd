//! Sessions: roasts as they are stored, in the form that upstream Sim-Corp's clients read.

use serde::{Deserialize, Serialize};

use crate::{EpochMs, Origin, SessionId};

/// Whether a session is still running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum SessionStatus {
    Active,
    Closed,
}

impl SessionStatus {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "ACTIVE",
            Self::Closed => "CLOSED",
        }
    }

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
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Complete => "complete",
            Self::Incomplete => "incomplete",
        }
    }

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
    #[serde(flatten)]
    pub origin: Origin,
    pub session_id: SessionId,
    pub started_at: EpochMs,
    /// `null` while the roast runs; the key is always present.
    pub ended_at: Option<EpochMs>,
    pub status: SessionStatus,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_seconds: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fc_seconds: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drop_seconds: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bt_c: Option<f64>,
    pub telemetry_points: u64,
    pub verified_points: u64,
    pub unsigned_points: u64,
    pub failed_points: u64,
    /// The keys that signed the session's data.
    pub device_ids: Vec<String>,
    pub completeness: Completeness,
}

/// A session as `GET /sessions/{id}` returns it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RoastSession {
    #[serde(flatten)]
    pub summary: RoastSessionSummary,
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub meta: serde_json::Map<String, serde_json::Value>,
}

/// A machine in the list that `GET /machines` returns for the fleet page.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MachineStatus {
    #[serde(flatten)]
    pub origin: Origin,
    /// The time of the newest sample, by the gateway's clock.
    pub last_sample_at: Option<EpochMs>,
    /// When the cloud last received anything from the machine.
    pub last_seen_at: EpochMs,
    pub bt_c: Option<f64>,
    pub et_c: Option<f64>,
    pub ror_c_per_min: Option<f64>,
    /// The running session.
    pub session_id: Option<SessionId>,
    pub session_started_at: Option<EpochMs>,
    pub last_event: Option<crate::EventKind>,
    pub last_event_at: Option<EpochMs>,
    /// The number of frames that are known to be missing and that the cloud has requested.
    pub missing_frames: u64,
}
