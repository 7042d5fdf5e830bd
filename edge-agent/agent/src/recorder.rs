//! Turns samples into frames: numbers the samples, adds the rate of rise, tracks the roast,
//! completes frames and links each to the one before. Pure: uses no clock, no disk and no key.

mod begun_before;
mod columns;
mod frames;

use std::collections::VecDeque;

use contract::frame::EVENTS_MAX;
use contract::{
    ChainId, Channel, ClockQuality, Digest, EpochMs, EventKind, EventSource, Frame, MachineEvent,
    Origin, SessionId,
};
use roast::event::{DetectedMark, MarkChange, Method};
use roast::forecast::Forecast;
use roast::live::LiveRoast;
use roast::machine_model::MachineModel;

use driver::Reading;

use crate::clock::KernelTime;
use columns::roast_sample;

/// A CHARGE more than this after the last CHARGE, in ms, starts a new roast: the end of the old
/// roast was missed.
const RECHARGE_AFTER_MS: i64 = 120_000;
/// The minimum confidence: an inference that is more likely wrong than right is not an event.
const CONFIDENCE_MIN: f64 = 0.5;
/// How long samples are remembered, in ms: the events of a roast that began before the agent did are
/// inferred when it ends.
const POINTS_AGE_MAX_MS: i64 = 1_800_000;
const POINTS_MAX: usize = 12_000;

/// One sample with its times: monotonic, and wall clock with that clock's quality.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Milliseconds since the agent started.
    pub mono_ms: u64,
    pub wall: EpochMs,
    pub clock: ClockQuality,
    pub reading: Reading,
}

/// A roast that is running.
#[derive(Debug, Clone, PartialEq)]
pub struct RunningRoast {
    pub session: SessionId,
    pub started: EpochMs,
    pub first_seq: u64,
    pub first_frame: u64,
    pub event_kinds: Vec<EventKind>,
    /// The time of CHARGE on the kernel's clock, if it is known.
    pub charge: Option<KernelTime>,
}

/// A roast that has ended, returned with the frame that was completed at that moment.
#[derive(Debug, Clone, PartialEq)]
pub struct ClosedRoast {
    pub roast: RunningRoast,
    pub last_seq: u64,
    pub last_frame: u64,
    pub ended: EpochMs,
}

/// A completed frame, and what it changes of a roast.
#[derive(Debug, Clone, PartialEq)]
pub struct CompletedFrame {
    pub frame: Frame,
    /// The frame's encoding: what is signed.
    pub payload: Vec<u8>,
    /// The digest of `payload`, to which the next frame links.
    pub digest: Digest,
    pub closed: Option<ClosedRoast>,
    /// The roast that is running after this frame, if any.
    pub running: Option<RunningRoast>,
    /// An inferred roast turned out to be none: there is nothing to close, and no frames to protect
    /// from the quota.
    pub withdrawn: bool,
}

/// A sample's number and time, with its bean temperature.
#[derive(Debug, Clone, Copy, PartialEq)]
struct SamplePoint {
    seq: u64,
    /// Monotonic time, ms.
    t_ms: i64,
    bt_c: Option<f64>,
}

/// An event at a sample.
#[derive(Debug, Clone, Copy, PartialEq)]
struct SampleEvent {
    kind: EventKind,
    source: EventSource,
    at: SamplePoint,
}

/// Says that an event does not apply now: for example a DROP without a roast, or a second CHARGE.
#[derive(Debug, PartialEq, Eq)]
pub struct EventNotApplicable;

/// A journal's current chain, with the numbers of the next frame and sample.
#[derive(Debug, Clone, PartialEq)]
pub struct JournalPosition {
    pub chain: ChainId,
    pub next_number: u64,
    pub next_seq: u64,
    /// The digest of the last frame; `None` before the chain's first frame.
    pub previous: Option<Digest>,
}

/// If the wall clock differs by this much or more from the roast's own time, in ms, it was set
/// during the roast.
const CLOCK_STEP_MS: i64 = 1_000;

/// The samples and events that are not in a completed frame yet.
#[derive(Default)]
struct PendingFrame {
    samples: Vec<(Sample, Option<f64>)>,
    events: Vec<MachineEvent>,
}

/// Turns samples into frames; see the module.
pub struct Recorder {
    origin: Origin,
    boot: u64,
    /// The digest of the machine's profile.
    profile: Option<Digest>,
    /// The kernel's time at the start of the agent, if it is known.
    kernel: Option<KernelTime>,
    period_ms: u64,
    frame_ms: u64,
    position: JournalPosition,
    pending: PendingFrame,
    live: LiveRoast,
    /// The newest samples, for events that are inferred later.
    points: VecDeque<SamplePoint>,
    roast: Option<RunningRoast>,
    /// The time of the running roast's CHARGE on the monotonic clock, in ms.
    charge_ms: Option<i64>,
    /// Whether an inferred roast was withdrawn since the last frame.
    withdrawn: bool,
    /// The newest sample, and its wall-clock time.
    newest: Option<(SamplePoint, EpochMs)>,
    /// The newest frames: (frame number, number of the first sample).
    recent_frames: VecDeque<(u64, u64)>,
    /// Varies the session ids. Changes at each CHARGE.
    salt: u32,
    /// The number of the first sample that no roast of this start has; 0 before the first one ends.
    free_seq: u64,
    /// What was learned about the machine before a roast from which nothing is learned.
    known_model: Option<MachineModel>,
}

impl Recorder {
    pub fn new(
        origin: Origin,
        boot: u64,
        period_ms: u64,
        frame_ms: u64,
        infer: bool,
        learned: MachineModel,
        position: JournalPosition,
    ) -> Self {
        #[allow(clippy::cast_possible_truncation)] // any bits will do
        let salt = (boot >> 7) as u32;
        Self {
            origin,
            boot,
            profile: None,
            kernel: None,
            period_ms,
            frame_ms,
            position,
            pending: PendingFrame::default(),
            live: LiveRoast::new(learned, infer).with_offset_learning(),
            points: VecDeque::new(),
            roast: None,
            charge_ms: None,
            withdrawn: false,
            newest: None,
            recent_frames: VecDeque::new(),
            salt,
            free_seq: 0,
            known_model: None,
        }
    }

    /// Sets the digest of the profile that the machine is read with. Every frame contains it.
    #[must_use]
    pub fn with_profile(self, profile: Option<Digest>) -> Self {
        Self { profile, ..self }
    }

    /// Sets the kernel's time at the start of the agent.
    #[must_use]
    pub fn with_kernel_clock(self, kernel: Option<KernelTime>) -> Self {
        Self { kernel, ..self }
    }

    /// Continues a roast that was running when the agent stopped. `charge_ms` is the time of its
    /// CHARGE on the monotonic clock of this start.
    pub fn resume(&mut self, mut roast: RunningRoast, charge_ms: i64) {
        roast.charge = self.kernel.map(|start| start.plus_ms(charge_ms));
        self.live.resume(charge_ms, &roast.event_kinds);
        self.charge_ms = Some(charge_ms);
        self.roast = Some(roast);
    }

    pub const fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Returns what was learned about the machine so far.
    pub const fn learned(&self) -> &MachineModel {
        self.live.learned()
    }

    /// Replaces what was learned about the machine. The running roast goes on.
    pub fn set_learned(&mut self, learned: MachineModel) {
        // The end of a roast from which nothing is learned must not undo it.
        if let Some(known) = &mut self.known_model {
            known.clone_from(&learned);
        }
        self.live.set_learned(learned);
    }

    /// Returns the forecast for the running roast.
    pub fn outlook(&self) -> Option<Forecast> {
        self.roast.as_ref().and_then(|_| self.live.forecast())
    }

    pub const fn chain(&self) -> ChainId {
        self.position.chain
    }

    /// Returns the chain with the numbers of the next frame and sample.
    pub const fn position(&self) -> &JournalPosition {
        &self.position
    }

    /// Starts a new chain with the next frame. Used when the cloud has other content under this
    /// chain's frame numbers.
    pub fn start_chain(&mut self, chain: ChainId) {
        self.position.chain = chain;
        self.position.next_number = 1;
        self.position.previous = None;
        self.recent_frames.clear();
        // The first part of the running roast is in the old chain, and one receipt cannot cover two
        // chains. The next CHARGE starts a roast in the new chain.
        (self.roast, self.charge_ms, self.known_model) = (None, None, None);
        self.live.restart();
    }

    /// Adds a sample. Returns the frame that it completes, if it completes one.
    pub fn push(&mut self, mut sample: Sample) -> Option<CompletedFrame> {
        let seq = self.next_waiting_seq();
        let bt = sample.reading.values.iter().find(|(channel, _)| *channel == Channel::Bt);
        let bt_c = bt.and_then(|(_, value)| *value);
        let t_ms = i64::try_from(sample.mono_ms).unwrap_or(i64::MAX);
        let at = SamplePoint { seq, t_ms, bt_c };
        if let (Some(roast), Some(charge_ms)) = (&self.roast, self.charge_ms) {
            // During a roast the time is counted on the monotonic clock: a wall clock that is set
            // meanwhile must not distort the curve.
            let counted = roast.started.plus_ms(t_ms.saturating_sub(charge_ms));
            if counted.ms_since(sample.wall).saturating_abs() >= CLOCK_STEP_MS {
                // The roast started with a wrong date. The sample's clock quality says so to
                // readers.
                sample.clock = ClockQuality::FreeRunning;
            }
            sample.wall = counted;
        } else if let Some((first, _)) = self.pending.samples.first() {
            // A clock that is set within a frame takes effect with the next frame: the events of a
            // frame are dated like its samples.
            let since = sample.mono_ms.saturating_sub(first.mono_ms);
            let counted = first.wall.plus_ms(i64::try_from(since).unwrap_or(i64::MAX));
            if counted.ms_since(sample.wall).saturating_abs() >= CLOCK_STEP_MS {
                sample.clock = ClockQuality::FreeRunning;
            }
            sample.wall = counted;
        }
        self.push_point(at);
        let changes = self.live.push(&roast_sample(t_ms, &sample.reading));
        let ends = changes.iter().any(is_confident_drop);
        let rise = self.live.ror().filter(|(at_ms, _)| *at_ms == t_ms);
        let ror = rise.map(|(_, slope)| (slope * 100.0).round() / 100.0);
        let wall = sample.wall;
        let events = std::mem::take(&mut sample.reading.events);
        let notes = std::mem::take(&mut sample.reading.notes);
        self.newest = Some((at, wall));
        self.pending.samples.push((sample, ror));
        let mut closed = None;
        for kind in events {
            closed = closed.or(self.record_event(kind, EventSource::Machine, at, wall, None));
        }
        for note in notes {
            let kind = EventKind::Note;
            closed = closed.or(self.record_event(kind, EventSource::Machine, at, wall, Some(note)));
        }
        for change in changes {
            match change {
                // The curve shows with the DROP that this was a roast.
                MarkChange::Detected(charge) if charge.method == Method::BegunBefore => {
                    if ends {
                        self.begin_before(charge.at_ms, at, wall);
                    }
                }
                MarkChange::Detected(detected) => {
                    closed = closed.or(self.record_inference(&detected, at, wall));
                }
                // The drum was empty. Events that were already recorded remain, and no end of a
                // roast is recorded.
                MarkChange::Withdrawn(EventKind::Charge) => {
                    (self.roast, self.charge_ms, self.known_model) = (None, None, None);
                    self.withdrawn = true;
                }
                MarkChange::Withdrawn(_) => {}
            }
        }
        self.complete_frame_if_due(closed)
    }

    /// Records an event by a person, at the newest sample. Returns a frame if one is completed.
    ///
    /// # Errors
    /// When the event does not apply now.
    pub fn record_manual_event(
        &mut self,
        kind: EventKind,
        note: Option<String>,
    ) -> Result<Option<CompletedFrame>, EventNotApplicable> {
        let (at, wall) = self.newest.ok_or(EventNotApplicable)?;
        let before = self.pending.events.len();
        let closed = self.record_event(kind, EventSource::Person, at, wall, note);
        if self.pending.events.len() == before {
            return Err(EventNotApplicable);
        }
        // If a frame was just completed, no sample is pending: the event gets its own frame.
        let alone = self.pending.samples.is_empty();
        Ok(if alone {
            Some(self.complete_frame(closed))
        } else {
            self.complete_frame_if_due(closed)
        })
    }

    /// Completes a frame from the pending samples, if there are any. Used at a stop, or when no
    /// more samples arrive.
    pub fn flush(&mut self) -> Option<CompletedFrame> {
        if self.pending.samples.is_empty() { None } else { Some(self.complete_frame(None)) }
    }

    /// Returns the number of the next sample.
    const fn next_waiting_seq(&self) -> u64 {
        self.position.next_seq.saturating_add(self.pending.samples.len() as u64)
    }

    /// Records an event that the machine or a person reported. Returns the roast that it ends, if
    /// any.
    fn record_event(
        &mut self,
        kind: EventKind,
        source: EventSource,
        at: SamplePoint,
        wall: EpochMs,
        note: Option<String>,
    ) -> Option<ClosedRoast> {
        let recharged = kind == EventKind::Charge
            && self
                .charge_ms
                .is_some_and(|charge_ms| at.t_ms.saturating_sub(charge_ms) > RECHARGE_AFTER_MS);
        let mut closed = None;
        if recharged {
            // The end of the previous roast was missed: it is closed without a DROP event, because
            // none was observed.
            self.live.restart();
            closed = self.close(at.seq.saturating_sub(1), wall);
        }
        self.begin_before_event(kind, at, wall);
        if !self.live.report_event(kind, at.t_ms, at.bt_c) {
            return closed;
        }
        closed.or(self.add_event(SampleEvent { kind, source, at }, at, wall, note))
    }

    /// Turns an inference into an event, if it is confident enough. A revised inference of an event
    /// that is already recorded is ignored, except for a CHARGE: then the roast is closed and
    /// starts again.
    fn record_inference(
        &mut self,
        detected: &DetectedMark,
        now: SamplePoint,
        wall: EpochMs,
    ) -> Option<ClosedRoast> {
        let again = detected.revision > 0;
        let charge = detected.kind == EventKind::Charge;
        if detected.confidence < CONFIDENCE_MIN || (again && !charge) {
            return None;
        }
        let closed = if again { self.close(now.seq.saturating_sub(1), wall) } else { None };
        let nearest = self.points.iter().min_by_key(|p| p.t_ms.abs_diff(detected.at_ms));
        let at = nearest.copied().unwrap_or(now);
        let mark = SampleEvent { kind: detected.kind, source: EventSource::Inferred, at };
        closed.or(self.add_event(mark, now, wall, None))
    }

    /// Remembers a sample, and forgets the oldest ones beyond the bounds.
    fn push_point(&mut self, at: SamplePoint) {
        self.points.push_back(at);
        while self.points.len() > POINTS_MAX
            || self
                .points
                .front()
                .is_some_and(|p| at.t_ms.saturating_sub(p.t_ms) > POINTS_AGE_MAX_MS)
        {
            self.points.pop_front();
        }
    }

    /// Adds an event to the running roast. CHARGE starts a roast, DROP ends it. Returns the roast
    /// that ended.
    fn add_event(
        &mut self,
        mark: SampleEvent,
        now: SamplePoint,
        wall: EpochMs,
        note: Option<String>,
    ) -> Option<ClosedRoast> {
        let at = wall.plus_ms(mark.at.t_ms.saturating_sub(now.t_ms));
        if mark.kind == EventKind::Charge {
            self.salt = self.salt.wrapping_add(1);
            self.charge_ms = Some(mark.at.t_ms);
            self.roast = Some(RunningRoast {
                session: SessionId::compose(&self.origin, at, self.salt),
                started: at,
                first_seq: mark.at.seq,
                first_frame: self.frame_number_of(mark.at.seq),
                event_kinds: Vec::new(),
                charge: self.kernel.map(|start| start.plus_ms(mark.at.t_ms)),
            });
        }
        let roast = self.roast.as_mut()?;
        roast.event_kinds.push(mark.kind);
        if self.pending.events.len() < EVENTS_MAX {
            self.pending.events.push(MachineEvent {
                kind: mark.kind,
                seq: mark.at.seq,
                at,
                elapsed_s: (at.ms_since(roast.started).max(0)) as f64 / 1000.0,
                session: roast.session.clone(),
                source: mark.source,
                bt_c: mark.at.bt_c,
                note,
            });
        }
        if mark.kind == EventKind::Drop { self.close(mark.at.seq, at) } else { None }
    }

    /// Ends the running roast at sample `last_seq`, and returns it.
    fn close(&mut self, last_seq: u64, ended: EpochMs) -> Option<ClosedRoast> {
        let roast = self.roast.take()?;
        self.charge_ms = None;
        if let Some(known) = self.known_model.take() {
            self.live.set_learned(known);
        }
        let last_frame = self.frame_number_of(last_seq);
        let last_seq = last_seq.max(roast.first_seq);
        self.free_seq = last_seq.saturating_add(1);
        Some(ClosedRoast { roast, last_seq, last_frame, ended })
    }
}

/// Returns whether a change is a DROP that becomes an event.
fn is_confident_drop(change: &MarkChange) -> bool {
    matches!(change, MarkChange::Detected(mark)
        if mark.kind == EventKind::Drop && mark.confidence >= CONFIDENCE_MIN)
}

#[cfg(test)]
#[allow(clippy::cast_possible_wrap, clippy::cast_possible_truncation)] // small numbers
mod tests;
