//! The rows that a frame makes, without a database: for the fuzz targets.

use contract::EpochMs;

use super::batch_tx::{NewFrame, number};
use super::clock_correction::FrameDate;
use super::curve_assembly::{CurveAssembly, CurveBounds};
use super::row::FrameRow;
use super::sessions::SessionRow;
use super::{ChainNo, EventRow, SessionChange};
use crate::verified_frame::VerifiedFrame;

/// What the database would hold if it had received only one frame.
pub(crate) struct DryRows {
    pub(crate) frame: FrameRow,
    /// The sessions that the frame's events open, each with its curve if it has samples.
    pub(crate) sessions: Vec<(SessionRow, Option<FrameRow>)>,
    pub(crate) events: Vec<EventRow>,
}

impl DryRows {
    /// Makes the rows of a gateway's frame.
    ///
    /// # Errors
    /// When a curve cannot be written as JSON.
    pub(crate) fn of(verified: &VerifiedFrame) -> Result<Self, serde_json::Error> {
        let frame = &verified.frame;
        let origin = &frame.origin;
        let new = NewFrame {
            org: origin.org.as_str(),
            no: ChainNo { chain: 1, machine: 1 },
            number: number(frame.number),
            first_seq: number(frame.first_seq),
            date: FrameDate::of(verified, None),
            verified,
        };
        let row = FrameRow::of(&new);
        let mut sessions: Vec<SessionRow> = Vec::new();
        let mut events = Vec::new();
        for event in &frame.events {
            let change = SessionChange::from_event(new.org, new.no, number(event.seq), event)
                .with_trust(verified.trust.code())
                .with_clocks(frame, &new.date);
            let opened = change.session_row(origin);
            let mut all = sessions.iter_mut();
            let started_ms =
                if let Some(known) = all.find(|known| known.session_id == opened.session_id) {
                    update(known, &opened);
                    known.started_ms
                } else {
                    let started_ms = opened.started_ms;
                    sessions.push(opened);
                    started_ms
                };
            events.extend(change.event_row(origin, EpochMs(started_ms)));
        }
        let with_curve = |session: SessionRow| -> Result<_, serde_json::Error> {
            let mut curve = CurveAssembly::new(&session, session.range(), CurveBounds::DEFAULT);
            curve.append(&row);
            let (curve, _) = curve.finish()?;
            Ok((session, curve))
        };
        let sessions = sessions.into_iter().map(with_curve).collect::<Result<_, _>>()?;
        Ok(Self { frame: row, sessions, events })
    }
}

/// Changes a session by another event, as the statement of the database does.
fn update(known: &mut SessionRow, opened: &SessionRow) {
    if opened.first_seq.is_some() {
        known.started_ms = opened.started_ms;
        known.wall_started_ms = opened.wall_started_ms;
    }
    if let Some(ended_ms) = opened.ended_ms {
        let lasted_ms = ended_ms.saturating_sub(opened.started_ms);
        known.ended_ms = Some(known.started_ms.saturating_add(lasted_ms));
        known.status.clone_from(&opened.status);
    }
    known.boot = opened.boot.or(known.boot);
    known.start_mono_ms = opened.start_mono_ms.or(known.start_mono_ms);
    known.first_seq = opened.first_seq.or(known.first_seq);
    known.last_seq = opened.last_seq.or(known.last_seq);
    known.fc_s = opened.fc_s.or(known.fc_s);
    known.drop_s = opened.drop_s.or(known.drop_s);
}
