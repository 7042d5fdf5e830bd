//! From samples to frames: numbers them, adds the rate of rise, follows the roast, cuts and chains
//! frames. Pure: no clock, no disk, no key.

use std::collections::{BTreeMap, VecDeque};

use contract::frame::{EVENTS_MAX, SAMPLES_MAX};
use contract::{
    ChainId, Channel, ClockQuality, Column, Digest, EpochMs, EventKind, EventSource, Frame,
    MachineEvent, Origin, Quality, SessionId,
};
use roast::event::{Change, Inference};
use roast::forecast::Outlook;
use roast::learn::Learned;
use roast::live::Live;

use driver::Reading;

/// A temperature outside of it is no bean's and no flame's.
const TEMPERATURE_C: std::ops::RangeInclusive<f64> = -50.0..=600.0;
/// A CHARGE this long after another one is a new roast: the end of the old one was missed.
const RECHARGE_AFTER_MS: i64 = 120_000;
/// An inference that is right less often than not is no event.
const CONFIDENCE_MIN: f64 = 0.5;
/// Marks are found up to this long after they happened.
const POINTS_MS: i64 = 120_000;
const POINTS_MAX: usize = 12_000;
/// Frames whose numbers are remembered: a CHARGE is found up to half a minute after it happened.
const RECENT_FRAMES: usize = 600;

/// One sample with its times.
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
pub struct Roast {
    pub session: SessionId,
    pub started: EpochMs,
    pub first_seq: u64,
    pub first_frame: u64,
    pub marked: Vec<EventKind>,
}

/// A roast that has ended with the frame it came with.
#[derive(Debug, Clone, PartialEq)]
pub struct Closed {
    pub roast: Roast,
    pub last_seq: u64,
    pub last_frame: u64,
    pub ended: EpochMs,
}

/// What came out of a sample.
#[derive(Debug, Clone, PartialEq)]
pub struct Cut {
    pub frame: Frame,
    pub closed: Option<Closed>,
    /// The roast that runs after this frame.
    pub running: Option<Roast>,
    /// A roast was taken to run and was none: there is nothing to close, or to protect.
    pub withdrawn: bool,
}

/// One sample's place.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Point {
    seq: u64,
    /// Monotonic time, ms.
    t_ms: i64,
    bt_c: Option<f64>,
}

/// A mark at a sample.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Mark {
    kind: EventKind,
    source: EventSource,
    at: Point,
}

/// A mark that means nothing now: a DROP without a roast, a second CHARGE.
#[derive(Debug, PartialEq, Eq)]
pub struct NotNow;

/// Where a journal stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Position {
    pub chain: ChainId,
    pub next_number: u64,
    pub next_seq: u64,
    pub previous: Option<Digest>,
}

/// A wall clock that differs by this from the roast's own was set meanwhile, ms.
const SET_MS: i64 = 1_000;

/// Samples waiting for their frame.
#[derive(Default)]
struct Waiting {
    samples: Vec<(Sample, Option<f64>)>,
    events: Vec<MachineEvent>,
}

pub struct Recorder {
    origin: Origin,
    boot: u64,
    /// The digest of the machine's profile.
    profile: Option<Digest>,
    period_ms: u64,
    frame_ms: u64,
    position: Position,
    waiting: Waiting,
    live: Live,
    /// The newest samples, for marks that are found later.
    points: VecDeque<Point>,
    roast: Option<Roast>,
    /// CHARGE of the running roast on the monotonic clock, ms.
    charge_ms: Option<i64>,
    withdrawn: bool,
    newest: Option<(Point, EpochMs)>,
    /// (number, first sample) of the newest frames.
    recent: VecDeque<(u64, u64)>,
    /// For session ids.
    salt: u32,
}

impl Recorder {
    pub fn new(
        origin: Origin,
        boot: u64,
        period_ms: u64,
        frame_ms: u64,
        infer: bool,
        learned: Learned,
        position: Position,
    ) -> Self {
        #[allow(clippy::cast_possible_truncation)] // any bits will do
        let salt = (boot >> 7) as u32;
        Self {
            origin,
            boot,
            profile: None,
            period_ms,
            frame_ms,
            position,
            waiting: Waiting::default(),
            live: Live::new(learned, infer),
            points: VecDeque::new(),
            roast: None,
            charge_ms: None,
            withdrawn: false,
            newest: None,
            recent: VecDeque::new(),
            salt,
        }
    }

    /// The profile by which the machine is read, told in every frame.
    #[must_use]
    pub fn reading_by(self, profile: Option<Digest>) -> Self {
        Self { profile, ..self }
    }

    /// Goes on with a roast that was running when the agent stopped.
    pub fn resume(&mut self, roast: Roast, mono_ms: u64, wall: EpochMs) {
        let since = wall.since(roast.started).max(0);
        let charge_ms = i64::try_from(mono_ms).unwrap_or(i64::MAX) - since;
        self.live.resume(charge_ms, &roast.marked);
        self.charge_ms = Some(charge_ms);
        self.roast = Some(roast);
    }

    pub const fn origin(&self) -> &Origin {
        &self.origin
    }

    /// What the machine has taught so far.
    pub const fn learned(&self) -> &Learned {
        self.live.learned()
    }

    /// What is expected of the running roast.
    pub fn outlook(&self) -> Option<Outlook> {
        self.roast.as_ref().and_then(|_| self.live.outlook())
    }

    pub const fn chain(&self) -> ChainId {
        self.position.chain
    }

    /// A new chain, from the next frame on: the cloud has other content under our numbers.
    pub fn start_chain(&mut self, chain: ChainId) {
        self.position.chain = chain;
        self.position.next_number = 1;
        self.position.previous = None;
        self.recent.clear();
        // Its first half is on the old chain: it cannot be closed as one. The next CHARGE begins a
        // roast of the new chain.
        (self.roast, self.charge_ms) = (None, None);
        self.live.restart();
    }

    /// The digest of the frame that was cut last, once it is known.
    pub const fn chained(&mut self, digest: Digest) {
        self.position.previous = Some(digest);
    }

    /// Takes a sample; answers the frame that it completes, if it does.
    pub fn push(&mut self, mut sample: Sample) -> Option<Cut> {
        let seq = self.next_waiting_seq();
        let bt = sample.reading.values.iter().find(|(channel, _)| *channel == Channel::Bt);
        let bt_c = bt.and_then(|(_, value)| *value);
        let t_ms = i64::try_from(sample.mono_ms).unwrap_or(i64::MAX);
        let at = Point { seq, t_ms, bt_c };
        if let (Some(roast), Some(charge_ms)) = (&self.roast, self.charge_ms) {
            // While a roast runs its time is counted on the monotonic clock: a wall clock that is
            // set meanwhile must not bend the curve.
            let counted = roast.started.plus(t_ms - charge_ms);
            if counted.since(sample.wall).abs() >= SET_MS {
                // The date that the roast began with was wrong, and whoever reads has to know it.
                sample.clock = ClockQuality::FreeRunning;
            }
            sample.wall = counted;
        }
        self.remember(at);
        let changes = self.live.push(&roast_sample(t_ms, &sample.reading));
        let rise = self.live.ror().filter(|(at_ms, _)| *at_ms == t_ms);
        let ror = rise.map(|(_, slope)| (slope * 100.0).round() / 100.0);
        let wall = sample.wall;
        let told = std::mem::take(&mut sample.reading.events);
        let notes = std::mem::take(&mut sample.reading.notes);
        self.newest = Some((at, wall));
        self.waiting.samples.push((sample, ror));
        let mut closed = None;
        for kind in told {
            closed = closed.or(self.told(kind, EventSource::Machine, at, wall, None));
        }
        for note in notes {
            let kind = EventKind::Note;
            closed = closed.or(self.told(kind, EventSource::Machine, at, wall, Some(note)));
        }
        for change in changes {
            match change {
                Change::Known(found) => closed = closed.or(self.infer(&found, at, wall)),
                // Nothing was in the drum. What was told stays told; nobody saw an end.
                Change::Withdrawn(EventKind::Charge) => {
                    (self.roast, self.charge_ms) = (None, None);
                    self.withdrawn = true;
                }
                Change::Withdrawn(_) => {}
            }
        }
        self.cut_if_due(closed)
    }

    /// A person's mark, at the newest sample.
    ///
    /// # Errors
    /// When it means nothing now.
    pub fn mark(&mut self, kind: EventKind, note: Option<String>) -> Result<Option<Cut>, NotNow> {
        let (at, wall) = self.newest.ok_or(NotNow)?;
        let before = self.waiting.events.len();
        let closed = self.told(kind, EventSource::Person, at, wall, note);
        if self.waiting.events.len() == before {
            return Err(NotNow);
        }
        // A frame may just have been cut: then the mark makes one of its own.
        let alone = self.waiting.samples.is_empty();
        Ok(if alone { Some(self.cut(closed)) } else { self.cut_if_due(closed) })
    }

    /// Whatever waits, as a frame: at a stop, or when samples have ceased.
    pub fn flush(&mut self) -> Option<Cut> {
        if self.waiting.samples.is_empty() { None } else { Some(self.cut(None)) }
    }

    const fn next_waiting_seq(&self) -> u64 {
        self.position.next_seq + self.waiting.samples.len() as u64
    }

    fn told(
        &mut self,
        kind: EventKind,
        source: EventSource,
        at: Point,
        wall: EpochMs,
        note: Option<String>,
    ) -> Option<Closed> {
        let recharged = kind == EventKind::Charge
            && self.charge_ms.is_some_and(|charge_ms| at.t_ms - charge_ms > RECHARGE_AFTER_MS);
        let mut closed = None;
        if recharged {
            // The roast before ended unseen: it is closed without a DROP, which nobody saw.
            self.live.restart();
            closed = self.close(at.seq.saturating_sub(1), wall);
        }
        if !self.live.told(kind, at.t_ms, at.bt_c) {
            return closed;
        }
        closed.or(self.note(Mark { kind, source, at }, at, wall, note))
    }

    /// Turns what was found into an event, if it is worth one. A better answer about a mark that has
    /// been told is not told again, but for a CHARGE: there the roast itself begins anew.
    fn infer(&mut self, found: &Inference, now: Point, wall: EpochMs) -> Option<Closed> {
        let again = found.revision > 0;
        let charge = found.kind == EventKind::Charge;
        if found.confidence < CONFIDENCE_MIN || (again && !charge) {
            return None;
        }
        let closed = if again { self.close(now.seq.saturating_sub(1), wall) } else { None };
        let nearest = self.points.iter().min_by_key(|p| (p.t_ms - found.at_ms).abs());
        let at = nearest.copied().unwrap_or(now);
        let mark = Mark { kind: found.kind, source: EventSource::Inferred, at };
        closed.or(self.note(mark, now, wall, None))
    }

    fn remember(&mut self, at: Point) {
        self.points.push_back(at);
        while self.points.len() > POINTS_MAX
            || self.points.front().is_some_and(|p| at.t_ms - p.t_ms > POINTS_MS)
        {
            self.points.pop_front();
        }
    }

    /// Turns a mark into an event of the running roast; CHARGE begins one, DROP ends it.
    fn note(
        &mut self,
        mark: Mark,
        now: Point,
        wall: EpochMs,
        note: Option<String>,
    ) -> Option<Closed> {
        let at = wall.plus(mark.at.t_ms - now.t_ms);
        if mark.kind == EventKind::Charge {
            self.salt = self.salt.wrapping_add(1);
            self.charge_ms = Some(mark.at.t_ms);
            self.roast = Some(Roast {
                session: SessionId::compose(&self.origin, at, self.salt),
                started: at,
                first_seq: mark.at.seq,
                first_frame: self.frame_of(mark.at.seq),
                marked: Vec::new(),
            });
        }
        let roast = self.roast.as_mut()?;
        roast.marked.push(mark.kind);
        if self.waiting.events.len() < EVENTS_MAX {
            self.waiting.events.push(MachineEvent {
                kind: mark.kind,
                seq: mark.at.seq,
                at,
                elapsed_s: (at.since(roast.started).max(0)) as f64 / 1000.0,
                session: roast.session.clone(),
                source: mark.source,
                bt_c: mark.at.bt_c,
                note,
            });
        }
        if mark.kind == EventKind::Drop { self.close(mark.at.seq, at) } else { None }
    }

    fn close(&mut self, last_seq: u64, ended: EpochMs) -> Option<Closed> {
        let roast = self.roast.take()?;
        self.charge_ms = None;
        let last_frame = self.frame_of(last_seq);
        Some(Closed { last_seq: last_seq.max(roast.first_seq), last_frame, ended, roast })
    }

    /// The frame that holds a sample, or will.
    fn frame_of(&self, seq: u64) -> u64 {
        if seq >= self.position.next_seq {
            return self.position.next_number;
        }
        let found = self.recent.iter().rev().find(|(_, first)| *first <= seq);
        found.or(self.recent.front()).map_or(self.position.next_number, |(number, _)| *number)
    }

    fn cut_if_due(&mut self, closed: Option<Closed>) -> Option<Cut> {
        let (first, last) = (self.waiting.samples.first()?, self.waiting.samples.last()?);
        let age_ms = last.0.mono_ms + self.period_ms - first.0.mono_ms;
        let full = self.waiting.samples.len() >= SAMPLES_MAX / 4;
        let eventful = closed.is_some() || self.waiting.events.len() >= EVENTS_MAX / 2;
        (age_ms >= self.frame_ms || full || eventful).then(|| self.cut(closed))
    }

    fn cut(&mut self, closed: Option<Closed>) -> Cut {
        let Waiting { samples, events } = std::mem::take(&mut self.waiting);
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
            boot: self.boot,
            first_seq: self.position.next_seq,
            mono,
            wall,
            clock,
            profile: self.profile,
            offsets_ms,
            columns: columns(&samples),
            events,
        };
        self.recent.push_back((frame.number, frame.first_seq));
        if self.recent.len() > RECENT_FRAMES {
            self.recent.pop_front();
        }
        self.position.next_number += 1;
        self.position.next_seq += count as u64;
        let withdrawn = std::mem::take(&mut self.withdrawn);
        Cut { frame, closed, running: self.roast.clone(), withdrawn }
    }
}

/// What is looked at to follow the roast.
fn roast_sample(t_ms: i64, reading: &Reading) -> roast::sample::Sample {
    let value = |wanted: Channel| {
        let found = reading.values.iter().find(|(channel, _)| *channel == wanted);
        found.and_then(|(_, value)| *value)
    };
    // What not every machine offers has these names.
    let extra = |name: &str| value(Channel::Extra(name.into()));
    roast::sample::Sample {
        t_ms,
        bt_c: value(Channel::Bt),
        et_c: value(Channel::Et),
        gas_pct: value(Channel::Gas),
        fan_pct: value(Channel::Fan),
        door_open: extra("doorOpen").map(|open| open > 0.5),
        cracks: extra("cracks"),
        weight_g: extra("weightG"),
        ..Default::default()
    }
}

/// The samples' values by channel. A channel that a sample lacks is missing there.
fn columns(samples: &[(Sample, Option<f64>)]) -> Vec<Column> {
    let mut by_channel: BTreeMap<Channel, Vec<Option<f64>>> = BTreeMap::new();
    for (i, (sample, ror)) in samples.iter().enumerate() {
        let ror = (Channel::Ror, *ror);
        for (channel, value) in sample.reading.values.iter().chain([&ror]) {
            let column =
                by_channel.entry(channel.clone()).or_insert_with(|| vec![None; samples.len()]);
            column[i] = *value;
        }
    }
    let columns = by_channel.into_iter().filter(|(_, values)| values.iter().any(Option::is_some));
    columns
        .map(|(channel, values)| {
            let quality = remarks(&channel, &values, samples);
            Column { quality, channel, values }
        })
        .collect()
}

/// What the driver says of values, and what no machine can mean.
fn remarks(
    channel: &Channel,
    values: &[Option<f64>],
    samples: &[(Sample, Option<f64>)],
) -> Vec<(u16, Quality)> {
    let valid = match channel {
        Channel::Bt | Channel::Et | Channel::Ambient => TEMPERATURE_C,
        Channel::Gas | Channel::Fan => 0.0..=100.0,
        _ => f64::NEG_INFINITY..=f64::INFINITY,
    };
    let remark = |i: usize, value: f64| {
        let told = samples[i].0.reading.quality_flags.iter().find(|(c, _)| c == channel);
        told.map(|(_, quality)| *quality)
            .or_else(|| (!valid.contains(&value)).then_some(Quality::Range))
    };
    let remarked = values.iter().enumerate().filter_map(|(i, value)| {
        let quality = remark(i, (*value)?)?;
        Some((u16::try_from(i).ok()?, quality))
    });
    remarked.collect()
}

#[cfg(test)]
#[allow(clippy::cast_possible_wrap, clippy::cast_possible_truncation)] // small numbers
mod tests;
