//! Follows machines and detects the events that they do not send. Pure: it takes points, events and
//! the time, and returns the detected events.

use std::collections::BTreeMap;

use contract::point::{RoastEvent, TelemetryPoint};
use contract::{EpochMs, EventKind, OrgId, Origin};
use roast::event::{DetectedMark, MarkChange, Method};
use roast::live::LiveRoast;
use roast::machine_model::MachineModel;
use roast::sample::Sample;
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use crate::config::Settings;

/// How long a detected event may still be refined or withdrawn before it is published, ms.
const SETTLE_MS: i64 = 15_000;
/// How long a machine that has sent an event is assumed to send all of its events, ms.
const OWN_EVENTS_MS: i64 = 6 * 3_600_000;
/// The gap that ends a roast if the machine has no setting for it, ms of event time.
const SESSION_GAP_MS: i64 = 30 * 60_000;
/// Elapsed time that decreases by more than this means that the publisher has started over, s.
const RESTART_S: f64 = 5.0;
/// A publisher whose elapsed time starts below this starts it at CHARGE, s.
const CHARGE_ELAPSED_S_MAX: f64 = 5.0;
/// The longest elapsed time of a roast, s: a machine whose first point is below it is roasting
/// already.
const ROAST_S_MAX: f64 = 3_600.0;
/// A point further ahead of our clock than this comes from a wrong clock and is ignored, ms.
const FUTURE_MS_MAX: i64 = 86_400_000;
/// A point further behind the last one than this comes from a clock that was corrected, ms.
const CLOCK_STEP_BACK_MS: i64 = 60_000;
/// A machine that has been silent for this long may be replaced by another, ms.
const SILENT_MS: i64 = 600_000;
/// How far back an instance that acquires the lease publishes events again, ms.
const REPUBLISH_MS: i64 = 120_000;
/// The `source` in the payload of our own events, by which they are recognised.
pub const EVENT_SOURCE: &str = "inference";

/// A detected event that waits until it is `due` for publication.
#[derive(Debug, Clone, PartialEq)]
struct PendingEvent {
    event: RoastEvent,
    due: EpochMs,
}

/// The state of one followed machine.
#[derive(Debug)]
struct TrackedMachine {
    live: LiveRoast,
    settings: Settings,
    /// When the session began according to the publisher's elapsed time.
    started: EpochMs,
    last_point: EpochMs,
    last_seen: EpochMs,
    points: u64,
    last_bt: Option<f64>,
    /// Until then nothing is published for the machine, since it sends its own events.
    sends_events_until: EpochMs,
    pending: BTreeMap<EventKind, PendingEvent>,
    published: BTreeMap<EventKind, PendingEvent>,
    /// Detected in the previous roast, and not published yet.
    previous_roast: Vec<PendingEvent>,
}

/// A followed machine in the response of `/status`.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FollowedMachine {
    #[serde(flatten)]
    pub origin: Origin,
    /// Inference's own session id; ingestion assigns different ones.
    pub session_id: String,
    pub started_at_iso: EpochMs,
    pub last_seen_at_iso: EpochMs,
    pub emitted: Emitted,
    pub telemetry_count: u64,
    /// True if the machine sends its events itself.
    pub speaks: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[allow(clippy::struct_excessive_bools)] // the fields of upstream Sim-Corp
pub struct Emitted {
    pub charge: bool,
    pub tp: bool,
    pub fc: bool,
    pub drop: bool,
}

/// All followed machines, at most `most`.
#[derive(Debug)]
pub struct MachineTracker {
    machines: BTreeMap<Origin, TrackedMachine>,
    /// The number of machines of each organisation.
    counts: BTreeMap<OrgId, usize>,
    machines_max: usize,
}

impl TrackedMachine {
    fn new(settings: Settings, started: EpochMs, now: EpochMs) -> Self {
        Self {
            live: LiveRoast::new(MachineModel::default(), true),
            settings,
            started,
            last_point: EpochMs(i64::MIN),
            last_seen: now,
            points: 0,
            last_bt: None,
            sends_events_until: EpochMs(i64::MIN),
            pending: BTreeMap::new(),
            published: BTreeMap::new(),
            previous_roast: Vec::new(),
        }
    }

    /// Starts another roast. Events detected in the previous one become due at once, with their own
    /// times.
    fn restart(&mut self, started: EpochMs, now: EpochMs) {
        for (kind, mut pending) in std::mem::take(&mut self.pending) {
            if !self.published.contains_key(&kind) {
                pending.due = now;
                self.previous_roast.push(pending);
            }
        }
        self.live.restart();
        self.started = started;
        self.points = 0;
        self.last_bt = None;
        self.published.clear();
    }

    fn push_point(&mut self, point: &TelemetryPoint, now: EpochMs) {
        if point.ts.ms_since(now) > FUTURE_MS_MAX {
            return; // the clock that dated it is wrong
        }
        let back = self.last_point.0 != i64::MIN
            && self.last_point.ms_since(point.ts) > CLOCK_STEP_BACK_MS;
        if point.ts <= self.last_point && !back {
            return; // repeated, or late
        }
        #[allow(clippy::cast_possible_truncation)] // seconds of a roast, as ms
        let started = point.ts.minus_ms((point.elapsed_seconds * 1000.0) as i64);
        let gap_ms =
            self.settings.session_gap_seconds.map_or(SESSION_GAP_MS as f64, |s| s * 1000.0);
        let idle = self.points > 0 && point.ts.ms_since(self.last_point) as f64 > gap_ms;
        let since_start_s = point.ts.ms_since(self.started) as f64 / 1000.0;
        let over = self.points > 0 && point.elapsed_seconds + RESTART_S < since_start_s;
        if idle || over || back || self.points == 0 {
            self.restart(started, now);
            if point.elapsed_seconds <= ROAST_S_MAX {
                // Beans are in the drum: a fall in temperature is now a drop, not a charge.
                self.live.resume(started.0, &[]);
            }
            if point.elapsed_seconds <= CHARGE_ELAPSED_S_MAX {
                let mark = (EventKind::Charge, started, 0.0, point.bt_c);
                self.add_pending(point, mark, "told", 1.0, now);
            }
        }
        self.last_point = point.ts;
        self.last_seen = now;
        self.points = self.points.saturating_add(1);
        let sample = Sample { t_ms: point.ts.0, ..Sample::from_point(point) };
        for change in self.live.push(&sample) {
            match change {
                MarkChange::Detected(mark) => self.accept_inference(point, &mark, now),
                MarkChange::Withdrawn(kind) => {
                    self.pending.remove(&kind);
                }
            }
        }
        self.check_fc_threshold(point, now);
        self.last_bt = point.bt_c.or(self.last_bt);
    }

    fn accept_inference(&mut self, point: &TelemetryPoint, mark: &DetectedMark, now: EpochMs) {
        let at = EpochMs(mark.at_ms);
        let elapsed_s = at.ms_since(self.started).max(0) as f64 / 1000.0;
        let by_threshold = mark.kind == EventKind::Fc && self.settings.fc_bt_threshold_c.is_some();
        let too_late = mark.kind == EventKind::Tp
            && self.settings.tp_search_window_seconds.is_some_and(|most| elapsed_s > most);
        let too_early = mark.kind == EventKind::Fc
            && self.settings.min_first_crack_seconds.is_some_and(|least| elapsed_s < least);
        // Clients written for upstream Sim-Corp know only these.
        let supported = matches!(
            mark.kind,
            EventKind::Charge | EventKind::Tp | EventKind::Fc | EventKind::Drop
        );
        // An estimated CHARGE is not an event of the machine.
        let estimated = mark.method == Method::BegunBefore;
        if !supported || estimated || by_threshold || too_late || too_early {
            return;
        }
        let detected = (mark.kind, at, elapsed_s, mark.bt_c);
        self.add_pending(point, detected, mark.method.as_str(), mark.confidence, now);
    }

    /// Detects first crack at the configured temperature.
    fn check_fc_threshold(&mut self, point: &TelemetryPoint, now: EpochMs) {
        let Some((threshold, bt)) = self.settings.fc_bt_threshold_c.zip(point.bt_c) else { return };
        let crossed = bt >= threshold && self.last_bt.is_some_and(|before| before < threshold);
        let least = self.settings.min_first_crack_seconds;
        let late_enough = least.is_none_or(|least| point.elapsed_seconds >= least);
        let ror = point.ror_c_per_min.or_else(|| self.live.ror().map(|(_, ror)| ror));
        let most = self.settings.fc_ror_max_threshold;
        let slow_enough = most.is_none_or(|most| ror.is_none_or(|ror| ror <= most));
        if crossed && late_enough && slow_enough {
            let mark = (EventKind::Fc, point.ts, point.elapsed_seconds, Some(bt));
            self.add_pending(point, mark, "threshold", 0.5, now);
        }
    }

    fn add_pending(
        &mut self,
        point: &TelemetryPoint,
        (kind, at, elapsed_s, bt_c): (EventKind, EpochMs, f64, Option<f64>),
        method: &str,
        confidence: f64,
        now: EpochMs,
    ) {
        // The elapsed time of some publishers never restarts: a CHARGE after a DROP starts a roast.
        if kind == EventKind::Charge && self.published.contains_key(&EventKind::Drop) {
            self.published.clear();
            self.started = at;
        }
        if self.published.contains_key(&kind) {
            return; // already published: it is final
        }
        let mut payload = json!({"elapsedSeconds": elapsed_s, "source": EVENT_SOURCE,
                                 "method": method, "confidence": confidence});
        if let Some(bt_c) = bt_c {
            payload["btC"] = bt_c.into();
        }
        let event = RoastEvent {
            ts: at,
            machine_id: point.machine_id.clone(),
            batch_id: point.batch_id.clone(),
            kind,
            payload: payload.as_object().cloned(),
        };
        // A refined detection keeps its due time, so that it cannot be postponed for ever.
        let due = match self.pending.get(&kind) {
            Some(pending) => pending.due,
            None => now.plus_ms(SETTLE_MS),
        };
        self.pending.insert(kind, PendingEvent { event, due });
    }

    fn take_due(&mut self, now: EpochMs) -> Vec<RoastEvent> {
        let speaks = now < self.sends_events_until;
        let ready: Vec<EventKind> = self
            .pending
            .iter()
            .filter(|(_, pending)| pending.due <= now)
            .map(|(kind, _)| *kind)
            .collect();
        let mut events: Vec<RoastEvent> = Vec::new();
        for pending in std::mem::take(&mut self.previous_roast) {
            if !speaks {
                events.push(pending.event);
            }
        }
        for kind in ready {
            let Some(pending) = self.pending.remove(&kind) else { continue };
            if !speaks {
                events.push(pending.event.clone());
                self.published.insert(kind, PendingEvent { due: now, ..pending });
            }
        }
        events.sort_by_key(|event| event.ts);
        events
    }
}

impl MachineTracker {
    #[must_use]
    pub const fn new(machines_max: usize) -> Self {
        Self { machines: BTreeMap::new(), counts: BTreeMap::new(), machines_max }
    }

    /// Returns true if a machine is not followed yet: the caller must read its settings.
    #[must_use]
    pub fn is_new(&self, origin: &Origin) -> bool {
        !self.machines.contains_key(origin)
    }

    /// Applies new settings to a machine from now on.
    pub fn apply_settings(&mut self, origin: &Origin, settings: Settings) {
        if let Some(machine) = self.machines.get_mut(origin) {
            machine.settings = settings;
        }
    }

    /// Returns the followed machines.
    #[must_use]
    pub fn followed(&self) -> Vec<Origin> {
        self.machines.keys().cloned().collect()
    }

    /// Applies the settings of these machines; one that has none of its own gets empty settings.
    pub fn apply_all_settings(&mut self, of: &[Origin], settings: &BTreeMap<Origin, Settings>) {
        for origin in of {
            if let Some(machine) = self.machines.get_mut(origin) {
                machine.settings = settings.get(origin).copied().unwrap_or_default();
            }
        }
    }

    /// Processes a point of a machine. `settings` apply only if the machine is new.
    pub fn push_point(
        &mut self,
        origin: &Origin,
        point: &TelemetryPoint,
        settings: Settings,
        now: EpochMs,
    ) {
        self.ensure_tracked(origin, settings, now);
        if let Some(machine) = self.machines.get_mut(origin) {
            machine.push_point(point, now);
        }
    }

    /// Adds a machine if there is room. At the limit, the machine that has been silent longest is
    /// removed, if it has been silent for `SILENT_MS`; or else one of the organisation with the most
    /// machines, if that has more than the one of the new machine would have. Otherwise the new one
    /// is not followed.
    fn ensure_tracked(&mut self, origin: &Origin, settings: Settings, now: EpochMs) {
        if self.machines.contains_key(origin) {
            return;
        }
        if self.machines.len() >= self.machines_max {
            let Some(removed) = self.replaceable(origin, now) else {
                metrics::counter!("simcorp_inference_refused_total").increment(1);
                return;
            };
            self.forget(&removed);
        }
        self.machines.insert(origin.clone(), TrackedMachine::new(settings, now, now));
        let count = self.counts.entry(origin.org.clone()).or_default();
        *count = count.saturating_add(1);
    }

    /// Removes what is known of a machine; its next message adds it again.
    pub fn forget(&mut self, origin: &Origin) {
        if self.machines.remove(origin).is_none() {
            return;
        }
        if let Some(count) = self.counts.get_mut(&origin.org) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.counts.remove(&origin.org);
            }
        }
    }

    /// Returns the machine that gives its place to a new one.
    fn replaceable(&self, new: &Origin, now: EpochMs) -> Option<Origin> {
        let by_silence = |(_, machine): &(&Origin, &TrackedMachine)| machine.last_seen;
        let (oldest, machine) = self.machines.iter().min_by_key(by_silence)?;
        if now.ms_since(machine.last_seen) > SILENT_MS {
            return Some(oldest.clone());
        }
        let own = self.counts.get(&new.org).copied().unwrap_or(0);
        let (most, count) = self.counts.iter().max_by_key(|(_, count)| **count)?;
        if own.saturating_add(1) >= *count {
            return None;
        }
        let of_most = self.machines.iter().filter(|(origin, _)| origin.org == *most);
        of_most.min_by_key(by_silence).map(|(origin, _)| origin.clone())
    }

    /// Processes an event: unless it is ours, the machine sends its own, and detected ones are
    /// discarded.
    pub fn observe_event(&mut self, origin: &Origin, event: &RoastEvent, now: EpochMs) {
        let ours = event.payload.as_ref().and_then(|payload| payload.get("source"));
        if ours.and_then(serde_json::Value::as_str) == Some(EVENT_SOURCE) {
            return;
        }
        // Also before the machine's first point.
        self.ensure_tracked(origin, Settings::default(), now);
        if let Some(machine) = self.machines.get_mut(origin) {
            machine.sends_events_until = now.plus_ms(OWN_EVENTS_MS);
            machine.pending.clear();
        }
    }

    /// Returns the events that have settled and are to be published.
    pub fn take_due(&mut self, now: EpochMs) -> Vec<(Origin, RoastEvent)> {
        let due = self.machines.iter_mut().flat_map(|(origin, machine)| {
            machine
                .take_due(now)
                .into_iter()
                .map(|event| (origin.clone(), event))
                .collect::<Vec<_>>()
        });
        due.collect()
    }

    /// Returns the events that became due in the last `AGAIN_MS`: an instance that acquires the
    /// lease publishes them again, since its predecessor may not have. Ingestion discards
    /// duplicates.
    #[must_use]
    pub fn recently_published(&self, now: EpochMs) -> Vec<(Origin, RoastEvent)> {
        let published = self.machines.iter().flat_map(|(origin, machine)| {
            let recent = machine
                .published
                .values()
                .filter(|published| now.ms_since(published.due) < REPUBLISH_MS);
            recent.map(|published| (origin.clone(), published.event.clone()))
        });
        published.collect()
    }

    /// Returns an organisation's machines for `/status`.
    #[must_use]
    pub fn statuses(&self, org: &OrgId, now: EpochMs) -> Vec<FollowedMachine> {
        let own = self.machines.iter().filter(|(origin, _)| origin.org == *org);
        own.map(|(origin, machine)| {
            let is_published = |kind| machine.published.contains_key(&kind);
            FollowedMachine {
                origin: origin.clone(),
                session_id: format!("{origin}@{}", machine.started),
                started_at_iso: machine.started,
                last_seen_at_iso: machine.last_seen,
                emitted: Emitted {
                    charge: is_published(EventKind::Charge),
                    tp: is_published(EventKind::Tp),
                    fc: is_published(EventKind::Fc),
                    drop: is_published(EventKind::Drop),
                },
                telemetry_count: machine.points,
                speaks: now < machine.sends_events_until,
            }
        })
        .collect()
    }
}

#[cfg(test)]
mod tests;
