//! A mission as a row: its columns, and their JSON.

use ::database::StoreError;
use ::database::sqlx::FromRow;
use contract::EpochMs;
use contract::mission::{MissionRecord, MissionStatus, NewMission};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A mission as stored.
#[derive(Debug, FromRow)]
pub(super) struct MissionRow {
    mission_id: String,
    idempotency_key: String,
    status: String,
    body: String,
    governance: Option<String>,
    actor: Option<String>,
    attempts: i64,
    max_attempts: i64,
    lane: Option<i64>,
    due_ms: Option<i64>,
    created_ms: i64,
    updated_ms: i64,
    claimed_by: Option<String>,
    claimed_ms: Option<i64>,
    lease_id: Option<String>,
    lease_expires_ms: Option<i64>,
    heartbeat_ms: Option<i64>,
    completed_ms: Option<i64>,
    failed_ms: Option<i64>,
    result: Option<String>,
    last_error: Option<String>,
}

/// The SQL columns of a [`MissionRow`].
macro_rules! columns {
    () => {
        "mission_id, idempotency_key, status, body, governance, actor, attempts, max_attempts, \
         lane, due_ms, created_ms, updated_ms, claimed_by, claimed_ms, lease_id, \
         lease_expires_ms, heartbeat_ms, completed_ms, failed_ms, result, last_error"
    };
}
pub(super) use columns;

impl MissionRow {
    pub(super) fn record(self) -> Result<MissionRecord, StoreError> {
        const DOING: &str = "reading a mission";
        let count = |n: i64| u32::try_from(n).map_err(|e| StoreError::row(DOING, e));
        let mission: NewMission = from_json(DOING, &self.body)?;
        let status = MissionStatus::parse(&self.status)
            .ok_or_else(|| StoreError::row(DOING, format!("status {}", self.status)))?;
        let waits = status == MissionStatus::Retry && self.lane.is_some();
        Ok(MissionRecord {
            id: self.mission_id.clone(),
            mission_id: self.mission_id,
            idempotency_key: self.idempotency_key,
            goal: mission.goal,
            status,
            priority: mission.priority,
            attempts: count(self.attempts)?,
            max_attempts: count(self.max_attempts)?,
            subject_id: mission.subject_id,
            params: mission.params,
            context: mission.context,
            constraints: mission.constraints,
            requested_by: mission.requested_by,
            signals: mission.signals,
            governance: optional(DOING, self.governance.as_deref())?,
            created_at: EpochMs(self.created_ms),
            updated_at: EpochMs(self.updated_ms),
            next_retry_at: self.due_ms.filter(|_| waits).map(EpochMs),
            claimed_by: self.claimed_by,
            claimed_at: self.claimed_ms.map(EpochMs),
            lease_id: self.lease_id,
            lease_expires_at: self.lease_expires_ms.map(EpochMs),
            last_heartbeat_at: self.heartbeat_ms.map(EpochMs),
            completed_at: self.completed_ms.map(EpochMs),
            failed_at: self.failed_ms.map(EpochMs),
            result_meta: optional(DOING, self.result.as_deref())?,
            last_error: optional(DOING, self.last_error.as_deref())?,
            actor: optional(DOING, self.actor.as_deref())?,
        })
    }
}

pub(super) fn from_json<T: DeserializeOwned>(
    doing: &'static str,
    text: &str,
) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| StoreError::row(doing, error))
}

fn optional<T: DeserializeOwned>(
    doing: &'static str,
    text: Option<&str>,
) -> Result<Option<T>, StoreError> {
    text.map(|text| from_json(doing, text)).transpose()
}

pub(super) fn to_json(value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::row("writing JSON", error))
}
