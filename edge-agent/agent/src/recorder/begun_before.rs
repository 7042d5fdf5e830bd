//! A roast whose CHARGE the agent did not see, because it was started in mid-roast.
//!
//! Its curve shows at DROP that it was a roast, or a mark of a person or the machine says so earlier.
//! A machine that reports CHARGE and DROP itself has only its own reports: the curve ends none of its
//! roasts. Then a session begins with an estimated CHARGE, which has [`BEGUN_BEFORE_NOTE`], and with
//! the first sample that the agent has of it. Nothing is learned from it: its times count from an estimate.

use contract::event::BEGUN_BEFORE_NOTE;
use contract::{EpochMs, EventKind, EventSource};

use super::{Recorder, SampleEvent, SamplePoint};

impl Recorder {
    /// Returns the estimated CHARGE of a roast that may have begun before the agent started.
    pub fn begun_before(&self) -> Option<EpochMs> {
        let (at, wall) = self.newest?;
        let charge_ms = self.live.begun_before_ms().filter(|_| self.roast.is_none())?;
        Some(wall.plus_ms(charge_ms.saturating_sub(at.t_ms)))
    }

    /// Begins a roast at its estimated CHARGE, on the monotonic clock, in ms. Returns the time that it
    /// was given: later, if the roast before had not ended by then, or if the wall clock has no date
    /// for it.
    pub(super) fn begin_before(&mut self, charge_ms: i64, now: SamplePoint, wall: EpochMs) -> i64 {
        // A roast does not begin in another chain, nor before the end of the one before.
        let in_chain = self.recent_frames.front().map(|(_, first_seq)| *first_seq);
        let first_seq = in_chain.unwrap_or(self.position.next_seq).max(self.free_seq);
        let own = || self.points.iter().filter(move |point| point.seq >= first_seq);
        let first = own().min_by_key(|point| point.t_ms.abs_diff(charge_ms)).copied();
        let ended_ms = own().next().filter(|_| self.free_seq > 0).map(|point| point.t_ms);
        let dated_ms = now.t_ms.saturating_sub(wall.0);
        let charge_ms = charge_ms.max(dated_ms).max(ended_ms.unwrap_or(i64::MIN));
        let at = SamplePoint { t_ms: charge_ms, bt_c: None, ..first.unwrap_or(now) };
        let charge = SampleEvent { kind: EventKind::Charge, source: EventSource::Inferred, at };
        self.add_event(charge, now, wall, Some(BEGUN_BEFORE_NOTE.to_owned()));
        charge_ms
    }

    /// Begins a roast if one may be running whose CHARGE was not seen, and an event `kind` is reported
    /// that only a roast has.
    pub(super) fn begin_before_event(&mut self, kind: EventKind, now: SamplePoint, wall: EpochMs) {
        if matches!(kind, EventKind::Charge | EventKind::CoolEnd | EventKind::Note) {
            return;
        }
        let estimated = self.live.begun_before_ms().filter(|_| self.roast.is_none());
        if let Some(charge_ms) = estimated {
            self.known_model = Some(self.live.learned().clone());
            let charge_ms = self.begin_before(charge_ms, now, wall);
            // What happened before this event is not detected in what follows it.
            let earlier: Vec<_> = EventKind::ALL.into_iter().filter(|k| *k < kind).collect();
            self.live.resume(charge_ms, &earlier);
        }
    }
}
