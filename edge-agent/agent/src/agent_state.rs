//! The state that the agent shows: the newest samples and the state of machine, disk and cloud.
//! Everything is bounded in size; writers never wait for slow readers.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use contract::{Channel, EpochMs, EventKind};
use serde::Serialize;
use tokio::sync::broadcast;
use utoipa::ToSchema;

use crate::journal::JournalTotals;

/// Twenty minutes at 10 Hz.
const POINTS_MAX: usize = 12_000;

/// One sample, or one event, as the local page draws it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
pub struct ChartPoint {
    /// Unix time, ms.
    pub t: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bt: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub et: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ror: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mark: Option<EventKind>,
}

/// The newest sample, with all its channels that have a value.
#[derive(Debug, Clone, PartialEq)]
pub struct NewestSample {
    /// When it was added, in ms since the agent started.
    pub mono_ms: u64,
    pub values: Vec<(Channel, f64)>,
}

/// The forecast for the running roast, rounded for people.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ForecastSummary {
    /// The bean temperature expected in one minute, in °C.
    pub bt_c: f64,
    /// Half the width of the 90 % interval around `bt_c`, in °C: `bt_c` ± this.
    pub bt_half_c: f64,
    pub expected: Vec<ExpectedEvent>,
}

/// When an event is expected, in seconds from now, with the 90 % interval `from_s` to `to_s`.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExpectedEvent {
    #[serde(rename = "type")]
    pub kind: EventKind,
    pub in_s: i64,
    pub from_s: i64,
    pub to_s: i64,
}

impl ForecastSummary {
    /// Converts a forecast: times become relative to now, temperatures are rounded to tenths.
    pub fn from_outlook(outlook: &roast::forecast::Forecast) -> Self {
        let tenths = |c: f64| (c * 10.0).round() / 10.0;
        let seconds = |ms: i64| ms.saturating_sub(outlook.t_ms) / 1000;
        let expected = outlook.expected.iter().map(|e| ExpectedEvent {
            kind: e.kind,
            in_s: seconds(e.at_ms),
            from_s: seconds(e.from_ms),
            to_s: seconds(e.to_ms),
        });
        Self {
            bt_c: tenths(outlook.bt.c),
            bt_half_c: tenths(outlook.bt.half_c),
            expected: expected.collect(),
        }
    }
}

/// The state of machine, disk, key and cloud, for `/status`, `/metrics` and the local page.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentStatus {
    pub machine: String,
    pub driver_error: Option<String>,
    pub journal_error: Option<String>,
    /// Why frames cannot be signed now; `None` while the key works.
    pub key_error: Option<String>,
    /// When the certificate expires; `None` if the gateway has not enrolled.
    pub certificate_until_ms: Option<i64>,
    /// Why there is no certificate, or why there will soon be none.
    pub identity_error: Option<String>,
    pub uplink_connected: bool,
    pub uplink_error: Option<String>,
    /// Why another agent seems to connect to the broker under this device's name; `None` if there
    /// is no sign of it.
    pub name_conflict: Option<String>,
    pub session: Option<String>,
    pub session_started_ms: Option<i64>,
    /// The estimated CHARGE, Unix time in ms, of a roast that may have begun before the agent
    /// started. A drum that warms up looks the same.
    pub begun_before_ms: Option<i64>,
    pub ahead: Option<ForecastSummary>,
    /// The newest NOTE event: for example a gap, or a control that was moved.
    pub noted: Option<LastNote>,
    pub last_sample_ms: Option<i64>,
    pub samples: u64,
    pub samples_dropped: u64,
    pub frames_lost: u64,
    pub journal: JournalTotals,
}

/// A note that the local page shows next to the curve.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct LastNote {
    /// Unix time, ms.
    pub t: i64,
    pub text: String,
}

/// A thread that the watchdog supervises: it must send heartbeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WatchedThread {
    Sampler,
    JournalWriter,
}

/// The newest points, and how many were removed before them. A point's index counts all points
/// since the agent started.
#[derive(Default)]
struct PointHistory {
    removed: u64,
    points: VecDeque<ChartPoint>,
}

impl PointHistory {
    fn push(&mut self, point: ChartPoint) {
        if self.points.len() >= POINTS_MAX {
            self.points.pop_front();
            self.removed = self.removed.saturating_add(1);
        }
        self.points.push_back(point);
    }

    /// Returns the index that the next point gets.
    fn next_index(&self) -> u64 {
        self.removed.saturating_add(self.points.len() as u64)
    }
}

/// The agent's shared state. Clones share the same content.
#[derive(Clone)]
pub struct AgentState {
    state: Arc<Mutex<AgentStatus>>,
    points: Arc<Mutex<PointHistory>>,
    /// Differs from start to start, so that an index of an earlier start is recognised.
    start_tag: u64,
    live: broadcast::Sender<ChartPoint>,
    newest: Arc<Mutex<Option<NewestSample>>>,
    /// The last heartbeat of each [`WatchedThread`], in ms since the agent started.
    heartbeats: Arc<[AtomicU64; 2]>,
}

impl AgentState {
    #[must_use]
    pub fn new(machine: String) -> Self {
        Self {
            state: Arc::new(Mutex::new(AgentStatus { machine, ..AgentStatus::default() })),
            points: Arc::default(),
            start_tag: trust::jitter(),
            live: broadcast::channel(256).0,
            newest: Arc::default(),
            heartbeats: Arc::default(),
        }
    }

    #[must_use]
    pub fn status(&self) -> AgentStatus {
        self.lock().clone()
    }

    pub fn update(&self, change: impl FnOnce(&mut AgentStatus)) {
        change(&mut self.lock());
    }

    /// Returns when the running roast began; `None` between roasts.
    #[must_use]
    pub fn session_started(&self) -> Option<EpochMs> {
        self.lock().session_started_ms.map(EpochMs)
    }

    /// Records a heartbeat of a thread.
    pub fn heartbeat(&self, part: WatchedThread, mono_ms: u64) {
        self.heartbeats[part as usize].store(mono_ms, Ordering::Relaxed);
    }

    /// Returns a thread's last heartbeat, in ms since the agent started; 0 if it has sent none.
    #[must_use]
    pub fn last_heartbeat_ms(&self, part: WatchedThread) -> u64 {
        self.heartbeats[part as usize].load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, AgentStatus> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the newest sample, however old it is; its `mono_ms` tells the age.
    #[must_use]
    pub fn newest(&self) -> Option<NewestSample> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Adds a frame's samples and events to what the local page draws. `mono_ms` is now, in ms
    /// since the agent started.
    pub fn add_frame(&self, frame: &contract::Frame, mono_ms: u64) {
        if let Some(last) = frame.sample_count().checked_sub(1) {
            let value = |column: &contract::Column| {
                Some((column.channel.clone(), column.values.get(last).copied().flatten()?))
            };
            let values = frame.columns.iter().filter_map(value).collect();
            *self.newest.lock().unwrap_or_else(PoisonError::into_inner) =
                Some(NewestSample { mono_ms, values });
        }
        // A NOTE is text; the page does not draw it as a line across the chart.
        let marks = || frame.events.iter().filter(|event| event.kind != EventKind::Note);
        if let Some(note) = frame.events.iter().rfind(|event| event.kind == EventKind::Note) {
            let text = note.note.clone().unwrap_or_default();
            self.update(|state| state.noted = Some(LastNote { t: note.at.0, text }));
        }
        let mut points = self.lock_points();
        #[allow(clippy::cast_possible_truncation)] // for a chart
        let value = |channel: &Channel, i: usize| frame.value(channel, i).map(|v| v as f32);
        for i in 0..frame.sample_count() {
            let seq = frame.first_seq.saturating_add(i as u64);
            let point = ChartPoint {
                t: frame.wall_at(i).0,
                bt: value(&Channel::Bt, i),
                et: value(&Channel::Et, i),
                ror: value(&Channel::Ror, i),
                mark: marks().find(|e| e.seq == seq).map(|e| e.kind),
            };
            points.push(point);
            // An error only means that the page has no reader now.
            let _ = self.live.send(point);
        }
        // An event may belong to a sample of an earlier frame: it was inferred later than it
        // happened, or a person recorded it right after a frame was completed.
        let next_seq = frame.first_seq.saturating_add(frame.sample_count() as u64);
        let seqs = frame.first_seq..next_seq;
        for event in marks().filter(|event| !seqs.contains(&event.seq)) {
            let mark = Some(event.kind);
            let point = ChartPoint { t: event.at.0, bt: None, et: None, ror: None, mark };
            points.push(point);
            let _ = self.live.send(point);
        }
    }

    /// Shows a sample that is not recorded, so that people still see the machine. `wall_ms` is Unix
    /// time, `mono_ms` is the time since the agent started.
    pub fn show_dropped_sample(
        &self,
        values: &[(Channel, Option<f64>)],
        wall_ms: i64,
        mono_ms: u64,
    ) {
        let known = values.iter().filter_map(|(channel, value)| Some((channel.clone(), (*value)?)));
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(NewestSample { mono_ms, values: known.collect() });
        #[allow(clippy::cast_possible_truncation)] // for a chart
        let value = |requested: &Channel| {
            let found = values.iter().find(|(channel, _)| channel == requested);
            found.and_then(|(_, value)| *value).map(|value| value as f32)
        };
        let (bt, et) = (value(&Channel::Bt), value(&Channel::Et));
        let point = ChartPoint { t: wall_ms, bt, et, ror: None, mark: None };
        self.lock_points().push(point);
        let _ = self.live.send(point);
    }

    fn lock_points(&self) -> MutexGuard<'_, PointHistory> {
        self.points.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the newest points, oldest first, and the index that the next point gets.
    #[must_use]
    pub fn points(&self) -> (Vec<ChartPoint>, u64) {
        let held = self.lock_points();
        (held.points.iter().copied().collect(), held.next_index())
    }

    /// Returns the index that the next point gets.
    #[must_use]
    pub fn next_point_index(&self) -> u64 {
        self.lock_points().next_index()
    }

    /// Returns the point with the index `from`, or the oldest one after it that is still held, with
    /// its own index.
    #[must_use]
    pub fn point_at(&self, from: u64) -> Option<(u64, ChartPoint)> {
        let held = self.lock_points();
        let index = from.max(held.removed);
        let at = usize::try_from(index.saturating_sub(held.removed)).ok()?;
        held.points.get(at).map(|point| (index, *point))
    }

    /// Returns the number that distinguishes this start of the agent from others.
    #[must_use]
    pub const fn start_tag(&self) -> u64 {
        self.start_tag
    }

    /// Subscribes to the points that are added from now on.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<ChartPoint> {
        self.live.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_keep_their_index_when_older_ones_are_removed() {
        let state = AgentState::new("org/s/r-1".to_owned());
        let point = |t| ChartPoint { t, bt: None, et: None, ror: None, mark: None };
        for t in 0..12_010 {
            state.lock_points().push(point(t));
        }
        let (points, next) = state.points();
        assert_eq!((points.len(), next, state.next_point_index()), (POINTS_MAX, 12_010, 12_010));
        assert_eq!(state.point_at(12_009), Some((12_009, point(12_009))));
        assert_eq!(state.point_at(12_010), None);
        assert_eq!(state.point_at(3), Some((10, point(10))), "the oldest that is still held");
    }
}
