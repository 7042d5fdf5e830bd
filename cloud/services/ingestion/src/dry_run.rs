//! Takes a message from its bytes to what clients read, without the pipeline. For the fuzz targets: the
//! rows and the JSON are made by the functions that the store, the API and the streams use.

mod profile_import;
mod upstream;

use std::collections::HashMap;

use contract::point::TelemetryPoint;
use contract::{DecodeError, EpochMs, Frame};

pub use profile_import::{ImportFormat, imported_profiles, profile_table};
pub use upstream::UpstreamIngestion;

use crate::row_json;
use crate::store::{ArrivedFrame, DryRows, Extras, FrameRow, SessionRow};
use crate::verified_frame::{Numbering, Trust, VerifiedFrame};

/// What clients would read if the cloud had received only one frame.
#[derive(Debug, Default)]
pub struct FrameViews {
    /// The samples of the frame without a session; then, for each session that its events open,
    /// those of the frame and those of the session's curve.
    pub points: Vec<TelemetryPoint>,
    /// The durations of the sessions that have ended, s.
    pub durations_s: Vec<f64>,
    /// The messages of the streams, in both of their forms, as JSON.
    pub messages: Vec<String>,
}

/// Why a message has no views.
#[derive(Debug, thiserror::Error)]
pub enum DryRunError {
    /// The bytes are not a frame.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A curve or a message cannot be written as JSON.
    #[error("writing JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// A profile cannot be written as a table.
    #[error("writing a table: {0}")]
    Table(#[from] csv::Error),
    /// The database does not answer.
    #[error(transparent)]
    Store(#[from] ::database::StoreError),
}

/// Returns what clients read of the frame in `payload`, which counts as signed and verified and
/// arrives at `received`.
///
/// # Errors
/// When the payload is not a frame, or the frame cannot be written as JSON.
pub fn frame_views(payload: &[u8], received: EpochMs) -> Result<FrameViews, DryRunError> {
    views_of(&VerifiedFrame {
        frame: Frame::decode(payload)?,
        digest: trust::sha256_digest(payload),
        signed: Vec::new(),
        kid: "device:gw@site".to_owned(),
        trust: Trust::Verified,
        numbering: Numbering::Edge,
        published: None,
        received,
    })
}

/// Returns what clients read of a verified message.
fn views_of(verified: &VerifiedFrame) -> Result<FrameViews, DryRunError> {
    let rows = DryRows::of(verified)?;
    let origin = &verified.frame.origin;
    let points = |frame: &FrameRow, session: Option<&SessionRow>| -> Vec<TelemetryPoint> {
        let extras = Extras::parse(frame.extras.as_deref());
        let row = (frame, &extras);
        let all = row_json::telemetry_points(row, &origin.machine, session, i64::MIN, i64::MAX);
        all.map(|(_, point)| point).collect()
    };
    let mut views = FrameViews { points: points(&rows.frame, None), ..FrameViews::default() };
    for (session, curve) in &rows.sessions {
        views.points.extend(points(&rows.frame, Some(session)));
        views.points.extend(curve.iter().flat_map(|curve| points(curve, Some(session))));
        views.durations_s.extend(session.duration_s());
    }
    let first = rows.sessions.first().map(|(session, _)| (session.chain_no, session.clone()));
    let running: HashMap<i64, SessionRow> = first.into_iter().collect();
    let arrived = ArrivedFrame {
        org_id: origin.org.to_string(),
        site_id: origin.site.to_string(),
        machine_id: origin.machine.to_string(),
        kid: verified.kid.clone(),
        frame: rows.frame,
    };
    let frame = row_json::committed_frame(arrived, &running);
    let events = rows.events.into_iter();
    let events = events.filter_map(|row| row_json::committed_event(origin.org.as_str(), row));
    for row in frame.into_iter().chain(events) {
        for envelope in row.envelopes(0, usize::MAX) {
            views.messages.push(serde_json::to_string(&envelope)?);
            views.messages.push(row_json::located_json(&envelope)?);
        }
    }
    Ok(views)
}
