//! The state that the agent shows: the newest samples and the state of machine, disk and cloud.
//! Everything is bounded in size; writers never wait for slow readers.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use contract::{Channel, EventKind};
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
        let seconds = |ms: i64| (ms - outlook.t_ms) / 1000;
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
    pub session: Option<String>,
    pub session_started_ms: Option<i64>,
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

/// The agent's shared state. Clones share the same content.
#[derive(Clone)]
pub struct AgentState {
    state: Arc<Mutex<AgentStatus>>,
    points: Arc<Mutex<VecDeque<ChartPoint>>>,
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
        let mut points = self.points.lock().unwrap_or_else(PoisonError::into_inner);
        #[allow(clippy::cast_possible_truncation)] // for a chart
        let value = |channel: &Channel, i: usize| frame.value(channel, i).map(|v| v as f32);
        for i in 0..frame.sample_count() {
            let seq = frame.first_seq + i as u64;
            let point = ChartPoint {
                t: frame.wall_at(i).0,
                bt: value(&Channel::Bt, i),
                et: value(&Channel::Et, i),
                ror: value(&Channel::Ror, i),
                mark: marks().find(|e| e.seq == seq).map(|e| e.kind),
            };
            if points.len() >= POINTS_MAX {
                points.pop_front();
            }
            points.push_back(point);
            // An error only means that the page has no reader now.
            let _ = self.live.send(point);
        }
        // An event may belong to a sample of an earlier frame: it was inferred later than it
        // happened, or a person recorded it right after a frame was completed.
        let seqs = frame.first_seq..frame.first_seq + frame.sample_count() as u64;
        for event in marks().filter(|event| !seqs.contains(&event.seq)) {
            let mark = Some(event.kind);
            let point = ChartPoint { t: event.at.0, bt: None, et: None, ror: None, mark };
            if points.len() >= POINTS_MAX {
                points.pop_front();
            }
            points.push_back(point);
            let _ = self.live.send(point);
        }
    }

    /// Returns the newest points, oldest first.
    #[must_use]
    pub fn points(&self) -> Vec<ChartPoint> {
        self.points.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }

    /// Subscribes to the points that are added from now on.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<ChartPoint> {
        self.live.subscribe()
    }
}
