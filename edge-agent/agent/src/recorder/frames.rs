//! Completes frames from the pending samples and events, and links each to the one before.

use contract::frame::{EVENTS_MAX, SAMPLES_MAX};
use contract::{ClockQuality, EpochMs, Frame};

use super::columns::columns;
use super::{ClosedRoast, CompletedFrame, PendingFrame, Recorder};

/// For how many frames the numbers are remembered: as long as samples are, with frames of 250 ms.
const RECENT_FRAMES: usize = 7_200;

impl Recorder {
    /// Returns the number of the frame that contains a sample, or will contain it.
    pub(super) fn frame_number_of(&self, seq: u64) -> u64 {
        if seq >= self.position.next_seq {
            return self.position.next_number;
        }
        let found = self.recent_frames.iter().rev().find(|(_, first)| *first <= seq);
        found
            .or(self.recent_frames.front())
            .map_or(self.position.next_number, |(number, _)| *number)
    }

    /// Completes a frame if it is old or full enough, if it has many events, or if a roast ended.
    pub(super) fn complete_frame_if_due(
        &mut self,
        closed: Option<ClosedRoast>,
    ) -> Option<CompletedFrame> {
        let (first, last) = (self.pending.samples.first()?, self.pending.samples.last()?);
        let age_ms = last.0.mono_ms.saturating_add(self.period_ms).saturating_sub(first.0.mono_ms);
        let full = self.pending.samples.len() >= SAMPLES_MAX / 4;
        let eventful = closed.is_some() || self.pending.events.len() >= EVENTS_MAX / 2;
        (age_ms >= self.frame_ms || full || eventful).then(|| self.complete_frame(closed))
    }

    /// Completes a frame from the pending samples and events, and links it to the one before.
    pub(super) fn complete_frame(&mut self, closed: Option<ClosedRoast>) -> CompletedFrame {
        let PendingFrame { samples, events } = std::mem::take(&mut self.pending);
        let count = samples.len();
        let first = samples.first().map(|(sample, _)| sample.clone());
        let (mono, wall, clock) = match (first, self.newest) {
            (Some(s), _) => (s.mono_ms, s.wall, s.clock),
            (None, Some((at, wall))) => (at.t_ms.unsigned_abs(), wall, ClockQuality::Unknown),
            (None, None) => (0, EpochMs(0), ClockQuality::Unknown),
        };
        let offsets_ms = samples
            .iter()
            .map(|(s, _)| u32::try_from(s.mono_ms.saturating_sub(mono)).unwrap_or(u32::MAX))
            .collect();
        let frame = Frame {
            origin: self.origin.clone(),
            chain: self.position.chain,
            number: self.position.next_number,
            previous: self.position.previous,
            boot_id: self.boot,
            first_seq: self.position.next_seq,
            mono_ms: mono,
            wall,
            clock,
            profile_digest: self.profile,
            offsets_ms,
            columns: columns(&samples),
            events,
        };
        self.recent_frames.push_back((frame.number, frame.first_seq));
        if self.recent_frames.len() > RECENT_FRAMES {
            self.recent_frames.pop_front();
        }
        self.position.next_number = self.position.next_number.saturating_add(1);
        self.position.next_seq = self.position.next_seq.saturating_add(count as u64);
        let withdrawn = std::mem::take(&mut self.withdrawn);
        let payload = frame.encode();
        let digest = trust::sha256_digest(&payload);
        // The next frame links to this one even if this one is not stored yet.
        self.position.previous = Some(digest);
        CompletedFrame { frame, payload, digest, closed, running: self.roast.clone(), withdrawn }
    }
}
