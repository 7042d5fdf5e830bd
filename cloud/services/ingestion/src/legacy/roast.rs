//! Decides which roast a publisher's message belongs to, and whether a roast begins with it. Pure.
//!
//! Points and events have topics of their own and may overtake each other: a CHARGE may arrive
//! before the first point of its roast, and must never move the beginning of the roast before.

use contract::{EpochMs, EventKind};

use super::stamp::Stamp;
use crate::published::{FirstOfTime, PublishedMessage, TIME_SOURCE};
use crate::store::{FrameRow, SessionRow};
use crate::verified_frame::VerifiedFrame;

/// Half an hour of event time without a sample ends a session that has no DROP.
const IDLE_MS: i64 = 30 * 60 * 1000;
/// If elapsed time goes back by more than this, it has started over.
const RESTART_S: f64 = 5.0;
/// A roast that starts over after a DROP does so with an elapsed time below this.
const FRESH_S: f64 = 10.0;
/// A CHARGE this long after the beginning of a roast, or after its CHARGE, belongs to the next one.
const CHARGE_APART_MS: i64 = 120_000;
/// A second DROP this long after the first belongs to a roast of which nothing was received.
const DROP_APART_MS: i64 = 60_000;

/// The newest sample of a machine's publisher.
#[derive(Debug, Clone, Copy)]
pub struct LastSample {
    pub number: i64,
    pub at: EpochMs,
    pub received: EpochMs,
    pub elapsed_s: Option<f64>,
    pub restamped: bool,
    pub moved_ms: Option<i64>,
    /// The publisher's own time, if it stands still.
    pub stopped: Option<EpochMs>,
    /// The first of the samples in a row with its own time: often itself.
    pub first_of_time: FirstOfTime,
}

impl LastSample {
    pub fn of(frame: &FrameRow) -> Self {
        let published = frame.published.as_ref();
        let context = published.and_then(|published| published.context(0));
        let elapsed_s = published.and_then(|published| published.elapsed_s(0));
        let itself = FirstOfTime { received_ms: frame.received_ms, elapsed_s };
        Self {
            number: frame.number,
            at: frame.sample_at(0),
            received: EpochMs(frame.received_ms),
            elapsed_s,
            restamped: context.is_some_and(|context| context.restamped),
            moved_ms: context.and_then(|context| context.moved_ms),
            stopped: context.and_then(|context| context.stopped_ms).map(EpochMs),
            first_of_time: published.and_then(|said| said.first_of_time).unwrap_or(itself),
        }
    }

    /// Returns the time that its publisher gave the sample, if it is known.
    pub fn own(&self) -> Option<EpochMs> {
        let moved = self.moved_ms.map(|ms| self.at.plus_ms(ms.saturating_neg()));
        self.stopped.or(moved).or((!self.restamped).then_some(self.at))
    }
}

/// What is known of a machine when a message arrives.
#[derive(Debug, Clone, Copy)]
pub struct Known<'s> {
    pub session: Option<&'s SessionRow>,
    pub last: Option<LastSample>,
}

impl Known<'_> {
    /// Returns whether a roast begins with a point.
    pub fn point_opens(&self, stamp: &Stamp, elapsed_s: Option<f64>) -> bool {
        let Some(session) = self.session else { return true };
        self.is_idle(session, stamp.at)
            || elapsed_s.is_some_and(|elapsed_s| self.starts_over(session, stamp, elapsed_s))
    }

    /// Returns whether a roast begins with a message that was taken for its beginning when it was
    /// read. `charged` is the time of the known session's CHARGE.
    pub fn begins_with(&self, verified: &VerifiedFrame, charged: Option<EpochMs>) -> bool {
        let at = verified.frame.wall;
        match &verified.published {
            Some(PublishedMessage::Sample(samples, _)) => {
                let context = samples.context(0);
                let stamp = Stamp {
                    at,
                    restamped: context.is_some_and(|context| context.restamped),
                    moved_ms: context.and_then(|context| context.moved_ms),
                    stopped: context.and_then(|context| context.stopped_ms).map(EpochMs),
                };
                self.point_opens(&stamp, samples.elapsed_s(0))
            }
            Some(PublishedMessage::Event(published)) => {
                let Some(event) = verified.frame.events.first() else { return true };
                let restamped = published.payload.contains_key(TIME_SOURCE);
                let elapsed_s = event.elapsed_s;
                let roast = RoastOfEvent::find(self, (event.kind, at), Some(elapsed_s), charged);
                roast == RoastOfEvent::Opens || (restamped && self.is_fresh(elapsed_s))
            }
            None => true,
        }
    }

    /// Returns whether a roast starts again after a DROP, by an elapsed time that has fallen to
    /// almost nothing.
    pub fn is_fresh(&self, elapsed_s: f64) -> bool {
        self.session.is_some_and(|session| {
            session.status == "CLOSED"
                && elapsed_s <= FRESH_S
                && self.has_fallen(session, elapsed_s)
        })
    }

    fn starts_over(&self, session: &SessionRow, stamp: &Stamp, elapsed_s: f64) -> bool {
        let since_start_s = stamp.at.ms_since(EpochMs(session.started_ms)) as f64 / 1000.0;
        // The arrival of a point may be late: it says nothing about the publisher's elapsed time.
        let behind_its_time = !stamp.restamped && elapsed_s + RESTART_S < since_start_s;
        let fallen = stamp.restamped && self.has_fallen(session, elapsed_s);
        behind_its_time || fallen || self.is_fresh(elapsed_s)
    }

    /// Returns whether an elapsed time is less than that of the session's newest sample.
    fn has_fallen(&self, session: &SessionRow, elapsed_s: f64) -> bool {
        let last = self.last.filter(|last| session.first_seq.is_none_or(|no| last.number >= no));
        last.and_then(|last| last.elapsed_s).is_some_and(|last_s| elapsed_s + RESTART_S < last_s)
    }

    fn is_idle(&self, session: &SessionRow, at: EpochMs) -> bool {
        let last = self.last.map_or(i64::MIN, |last| last.at.0).max(session.started_ms);
        at.ms_since(EpochMs(last)) > IDLE_MS
    }
}

/// The roast that an event belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoastOfEvent {
    /// The known session.
    Known,
    /// A session that begins with the event.
    Opens,
    /// A roast of which nothing was received.
    Missing,
}

impl RoastOfEvent {
    /// Returns the roast of an event at `at`. `elapsed_s` is what its publisher said; `charged` is
    /// the time of the known session's CHARGE.
    pub fn find(
        known: &Known<'_>,
        (kind, at): (EventKind, EpochMs),
        elapsed_s: Option<f64>,
        charged: Option<EpochMs>,
    ) -> Self {
        let charge = kind == EventKind::Charge;
        let Some(session) = known.session else {
            return if charge { Self::Opens } else { Self::Missing };
        };
        let ended = session.ended_ms.map(EpochMs);
        if charge {
            let since_start_ms = at.ms_since(EpochMs(session.started_ms));
            let started_over = since_start_ms > CHARGE_APART_MS
                && elapsed_s.is_some_and(|s| s + RESTART_S < since_start_ms as f64 / 1000.0);
            let again = charged.is_some_and(|charged| at.ms_since(charged) > CHARGE_APART_MS);
            let next = ended.is_some_and(|ended| at > ended)
                || started_over
                || again
                || known.is_idle(session, at);
            return if next { Self::Opens } else { Self::Known };
        }
        let of_another = kind == EventKind::Drop
            && session.drop_s.is_some()
            && ended.is_some_and(|ended| at.ms_since(ended) > DROP_APART_MS);
        if of_another { Self::Missing } else { Self::Known }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: EpochMs = EpochMs(1_795_000_000_000);

    /// A session that began at [`NOW`] with sample 10; `ended_s` after that it was closed by a DROP.
    fn session(ended_s: Option<i64>) -> SessionRow {
        SessionRow {
            session_id: "S-1".to_owned(),
            site_id: "leipzig".to_owned(),
            machine_id: "r-1".to_owned(),
            machine_no: 1,
            chain_no: 1,
            kid: String::new(),
            started_ms: NOW.0,
            ended_ms: ended_s.map(|s| NOW.0 + s * 1000),
            status: if ended_s.is_some() { "CLOSED" } else { "ACTIVE" }.to_owned(),
            first_seq: Some(10),
            last_seq: None,
            fc_s: None,
            drop_s: ended_s.map(|s| s as f64),
            completeness: "open".to_owned(),
            points: None,
            verified_points: None,
            unsigned_points: None,
            failed_points: None,
            max_bt_c: None,
            wall_started_ms: None,
            boot: None,
            start_mono_ms: None,
            closed_seen_ms: None,
            start_estimated: 0,
            begun_before: 0,
        }
    }

    fn last(s: i64) -> LastSample {
        let at = NOW.plus_ms(s * 1000);
        LastSample {
            number: 10 + s,
            at,
            received: at,
            elapsed_s: Some(s as f64),
            restamped: false,
            moved_ms: None,
            stopped: None,
            first_of_time: FirstOfTime { received_ms: at.0, elapsed_s: Some(s as f64) },
        }
    }

    fn own(s: i64) -> Stamp {
        Stamp { at: NOW.plus_ms(s * 1000), restamped: false, moved_ms: None, stopped: None }
    }

    #[test]
    fn a_point_opens_a_roast_when_elapsed_time_starts_over_or_after_half_an_hour() {
        let running = session(None);
        let known = Known { session: Some(&running), last: Some(last(400)) };
        let opens = |s, elapsed_s| known.point_opens(&own(s), elapsed_s);
        assert!(!opens(401, Some(401.0)) && !opens(401, Some(397.0)), "the roast goes on");
        assert!(opens(401, Some(0.0)), "elapsed time starts over");
        assert!(!opens(401, None), "nothing says that a roast begins");
        assert!(opens(400 + 1_801, None), "idle for half an hour");
        // Published ten times as fast as it was roasted.
        assert!(!opens(402, Some(4_000.0)));
        assert!(Known { session: None, last: None }.point_opens(&own(0), Some(30.0)));
    }

    #[test]
    fn a_point_with_the_time_of_its_arrival_is_not_taken_for_a_new_roast_when_it_is_late() {
        let arrived = |s: i64| Stamp { restamped: true, ..own(s) };
        let running = session(None);
        let known = Known { session: Some(&running), last: Some(last(100)) };
        assert!(!known.point_opens(&arrived(120), Some(101.0)), "it was held up for 19 s");
        assert!(known.point_opens(&arrived(120), Some(0.0)));
        // The last sample is of the roast before the one that a CHARGE has opened.
        let charged = SessionRow { first_seq: Some(111), ..session(None) };
        let known = Known { session: Some(&charged), last: Some(last(100)) };
        assert!(!known.point_opens(&arrived(120), Some(0.0)));
    }

    #[test]
    fn a_roast_played_at_once_after_a_drop_is_another_roast() {
        let closed = session(Some(600));
        let known = Known { session: Some(&closed), last: Some(last(600)) };
        assert!(known.point_opens(&own(3), Some(0.0)), "although only 3 s have passed");
        assert!(!known.point_opens(&own(610), Some(610.0)), "cooling");
        assert!(!known.point_opens(&own(590), Some(590.0)), "late");
    }

    #[test]
    fn a_charge_never_moves_the_beginning_of_the_roast_before() {
        let find = |session: Option<&SessionRow>, s: i64, elapsed_s, charged_s: Option<i64>| {
            let known = Known { session, last: session.map(|_| last(400)) };
            let charged = charged_s.map(|s| NOW.plus_ms(s * 1000));
            let event = (EventKind::Charge, NOW.plus_ms(s * 1000));
            RoastOfEvent::find(&known, event, elapsed_s, charged)
        };
        let (running, closed) = (session(None), session(Some(390)));
        assert_eq!(find(None, 0, None, None), RoastOfEvent::Opens, "a machine without a roast");
        assert_eq!(find(Some(&closed), 401, Some(0.0), Some(0)), RoastOfEvent::Opens);
        assert_eq!(find(Some(&closed), 401, None, None), RoastOfEvent::Opens, "without elapsed");
        assert_eq!(find(Some(&running), 401, Some(0.0), None), RoastOfEvent::Opens, "no DROP");
        assert_eq!(find(Some(&running), 401, None, Some(1)), RoastOfEvent::Opens, "a second one");
        assert_eq!(find(Some(&running), 401 + 1_801, None, None), RoastOfEvent::Opens, "idle");
        assert_eq!(find(Some(&running), 1, Some(0.0), None), RoastOfEvent::Known, "its own");
        assert_eq!(find(Some(&running), 300, Some(300.0), None), RoastOfEvent::Known, "preheated");
        assert_eq!(find(Some(&closed), 0, Some(0.0), None), RoastOfEvent::Known, "late");
    }

    #[test]
    fn an_event_of_an_unseen_roast_does_not_change_the_one_before() {
        let find = |session: Option<&SessionRow>, kind, s: i64| {
            let known = Known { session, last: None };
            RoastOfEvent::find(&known, (kind, NOW.plus_ms(s * 1000)), None, None)
        };
        let closed = session(Some(600));
        assert_eq!(find(Some(&closed), EventKind::Drop, 600), RoastOfEvent::Known);
        assert_eq!(find(Some(&closed), EventKind::Drop, 1_300), RoastOfEvent::Missing);
        assert_eq!(find(Some(&closed), EventKind::Fc, 500), RoastOfEvent::Known, "late");
        assert_eq!(find(Some(&closed), EventKind::Note, 700), RoastOfEvent::Known);
        assert_eq!(find(None, EventKind::Fc, 500), RoastOfEvent::Missing);
    }
}
