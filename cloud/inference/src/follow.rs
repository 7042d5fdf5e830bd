//! Follows machines and finds the marks that they do not tell. Pure: points, events and time in,
//! marks out.

use std::collections::BTreeMap;

use contract::point::{RoastEvent, TelemetryPoint};
use contract::{EpochMs, EventKind, Origin};
use roast::event::{Change, Inference};
use roast::learn::Learned;
use roast::live::Live;
use roast::sample::Sample;
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use crate::config::Settings;

/// A mark may be known better, or withdrawn, for so long, ms; then it is told.
const SETTLES_MS: i64 = 15_000;
/// A machine that has told an event of its own is believed to tell them all for so long, ms.
const SPEAKS_MS: i64 = 6 * 3_600_000;
/// Without a setting a gap of this ends a roast, ms of event time.
const GAP_MS: i64 = 30 * 60_000;
/// Elapsed time that falls back by more than this has started over, s.
const RESTART_S: f64 = 5.0;
/// A publisher that begins to count here begins at its CHARGE, s.
const BEGINS_S: f64 = 5.0;
/// Elapsed time within this is a roast's, s: whoever is first heard there is in the middle of one.
const ROAST_S_MAX: f64 = 3_600.0;
/// A point further ahead than this is of a clock that is wrong; one further back than this is of one
/// that was set right. ms
const AHEAD_MS: i64 = 86_400_000;
const BACK_MS: i64 = 60_000;
/// A machine that has been silent for so long may be forgotten for another, ms.
const SILENT_MS: i64 = 600_000;
/// What was told within this is told again by whoever takes over, ms.
const AGAIN_MS: i64 = 120_000;
/// The word by which our own events are known.
pub const SOURCE: &str = "inference";

/// A mark on its way.
#[derive(Debug, Clone, PartialEq)]
struct Pending {
    event: RoastEvent,
    due: EpochMs,
}

/// One machine.
#[derive(Debug)]
struct Machine {
    live: Live,
    settings: Settings,
    /// When the session began by the publisher's count.
    started: EpochMs,
    last: EpochMs,
    seen: EpochMs,
    points: u64,
    last_bt: Option<f64>,
    /// Its own events make ours needless until then.
    speaks_until: EpochMs,
    pending: BTreeMap<EventKind, Pending>,
    told: BTreeMap<EventKind, Pending>,
    /// Of the roast before.
    left: Vec<Pending>,
}

/// A machine as `/status` shows it.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Shown {
    #[serde(flatten)]
    pub origin: Origin,
    /// Of ours; ingestion names roasts by itself.
    pub session_id: String,
    pub started_at_iso: EpochMs,
    pub last_seen_at_iso: EpochMs,
    pub emitted: Emitted,
    pub telemetry_count: u64,
    /// It tells its events itself.
    pub speaks: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[allow(clippy::struct_excessive_bools)] // the reference's words
pub struct Emitted {
    pub charge: bool,
    pub tp: bool,
    pub fc: bool,
    pub drop: bool,
}

/// All machines, at most so many.
#[derive(Debug)]
pub struct Followed {
    machines: BTreeMap<Origin, Machine>,
    most: usize,
}

impl Machine {
    fn new(settings: Settings, started: EpochMs, now: EpochMs) -> Self {
        Self {
            live: Live::new(Learned::default(), true),
            settings,
            started,
            last: EpochMs(i64::MIN),
            seen: now,
            points: 0,
            last_bt: None,
            speaks_until: EpochMs(i64::MIN),
            pending: BTreeMap::new(),
            told: BTreeMap::new(),
            left: Vec::new(),
        }
    }

    /// Another roast begins. What was found of the one before is told at once, by its time.
    fn restart(&mut self, started: EpochMs, now: EpochMs) {
        for (kind, mut pending) in std::mem::take(&mut self.pending) {
            if !self.told.contains_key(&kind) {
                pending.due = now;
                self.left.push(pending);
            }
        }
        self.live.restart();
        self.started = started;
        self.points = 0;
        self.last_bt = None;
        self.told.clear();
    }

    fn take(&mut self, point: &TelemetryPoint, now: EpochMs) {
        if point.ts.since(now) > AHEAD_MS {
            return; // nobody's clock is right there
        }
        let back = self.last.0 != i64::MIN && self.last.since(point.ts) > BACK_MS;
        if point.ts <= self.last && !back {
            return; // twice, or late
        }
        #[allow(clippy::cast_possible_truncation)] // seconds of a roast, as ms
        let started = point.ts.plus(-((point.elapsed_seconds * 1000.0) as i64));
        let gap_ms = self.settings.session_gap_seconds.map_or(GAP_MS as f64, |s| s * 1000.0);
        let idle = self.points > 0 && point.ts.since(self.last) as f64 > gap_ms;
        let since_start_s = point.ts.since(self.started) as f64 / 1000.0;
        let over = self.points > 0 && point.elapsed_seconds + RESTART_S < since_start_s;
        if idle || over || back || self.points == 0 {
            self.restart(started, now);
            if point.elapsed_seconds <= ROAST_S_MAX {
                // Beans are in it: what falls now is a drop, not a charge.
                self.live.resume(started.0, &[]);
            }
            if point.elapsed_seconds <= BEGINS_S {
                let mark = (EventKind::Charge, started, 0.0, point.bt_c);
                self.found(point, mark, "told", 1.0, now);
            }
        }
        self.last = point.ts;
        self.seen = now;
        self.points += 1;
        let sample = Sample { t_ms: point.ts.0, ..Sample::of(point) };
        for change in self.live.push(&sample) {
            match change {
                Change::Known(mark) => self.mark(point, &mark, now),
                Change::Withdrawn(kind) => {
                    self.pending.remove(&kind);
                }
            }
        }
        self.threshold(point, now);
        self.last_bt = point.bt_c.or(self.last_bt);
    }

    fn mark(&mut self, point: &TelemetryPoint, mark: &Inference, now: EpochMs) {
        let at = EpochMs(mark.at_ms);
        let elapsed_s = at.since(self.started).max(0) as f64 / 1000.0;
        let by_threshold = mark.kind == EventKind::Fc && self.settings.fc_bt_threshold_c.is_some();
        let too_late = mark.kind == EventKind::Tp
            && self.settings.tp_search_window_seconds.is_some_and(|most| elapsed_s > most);
        let too_early = mark.kind == EventKind::Fc
            && self.settings.min_first_crack_seconds.is_some_and(|least| elapsed_s < least);
        // The reference's clients know no others.
        let known = matches!(
            mark.kind,
            EventKind::Charge | EventKind::Tp | EventKind::Fc | EventKind::Drop
        );
        if !known || by_threshold || too_late || too_early {
            return;
        }
        let place = (mark.kind, at, elapsed_s, mark.bt_c);
        self.found(point, place, mark.method.as_str(), mark.confidence, now);
    }

    /// First crack where somebody has said that it is.
    fn threshold(&mut self, point: &TelemetryPoint, now: EpochMs) {
        let Some((threshold, bt)) = self.settings.fc_bt_threshold_c.zip(point.bt_c) else { return };
        let crossed = bt >= threshold && self.last_bt.is_some_and(|before| before < threshold);
        let least = self.settings.min_first_crack_seconds;
        let late_enough = least.is_none_or(|least| point.elapsed_seconds >= least);
        let ror = point.ror_c_per_min.or_else(|| self.live.ror().map(|(_, ror)| ror));
        let most = self.settings.fc_ror_max_threshold;
        let slow_enough = most.is_none_or(|most| ror.is_none_or(|ror| ror <= most));
        if crossed && late_enough && slow_enough {
            let mark = (EventKind::Fc, point.ts, point.elapsed_seconds, Some(bt));
            self.found(point, mark, "threshold", 0.5, now);
        }
    }

    fn found(
        &mut self,
        point: &TelemetryPoint,
        (kind, at, elapsed_s, bt_c): (EventKind, EpochMs, f64, Option<f64>),
        method: &str,
        confidence: f64,
        now: EpochMs,
    ) {
        // A publisher whose count never starts over charges again after its drop.
        if kind == EventKind::Charge && self.told.contains_key(&EventKind::Drop) {
            self.told.clear();
            self.started = at;
        }
        if self.told.contains_key(&kind) {
            return; // what is told is told
        }
        let mut payload = json!({"elapsedSeconds": elapsed_s, "source": SOURCE,
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
        // Known better it settles anew, but not for ever.
        let due = match self.pending.get(&kind) {
            Some(known) => known.due,
            None => now.plus(SETTLES_MS),
        };
        self.pending.insert(kind, Pending { event, due });
    }

    fn due(&mut self, now: EpochMs) -> Vec<RoastEvent> {
        let speaks = now < self.speaks_until;
        let ready: Vec<EventKind> = self
            .pending
            .iter()
            .filter(|(_, pending)| pending.due <= now)
            .map(|(kind, _)| *kind)
            .collect();
        let mut events: Vec<RoastEvent> = Vec::new();
        for pending in std::mem::take(&mut self.left) {
            if !speaks {
                events.push(pending.event);
            }
        }
        for kind in ready {
            let Some(pending) = self.pending.remove(&kind) else { continue };
            if !speaks {
                events.push(pending.event.clone());
                self.told.insert(kind, Pending { due: now, ..pending });
            }
        }
        events.sort_by_key(|event| event.ts);
        events
    }
}

impl Followed {
    #[must_use]
    pub const fn new(most: usize) -> Self {
        Self { machines: BTreeMap::new(), most }
    }

    /// True when nothing is known of a machine yet: its settings are to be looked up.
    #[must_use]
    pub fn is_new(&self, origin: &Origin) -> bool {
        !self.machines.contains_key(origin)
    }

    /// What was set for a machine counts from now on.
    pub fn set(&mut self, origin: &Origin, settings: Settings) {
        if let Some(machine) = self.machines.get_mut(origin) {
            machine.settings = settings;
        }
    }

    /// What is set for all machines: those that are not named have the defaults.
    pub fn set_all(&mut self, all: &BTreeMap<Origin, Settings>) {
        for (origin, machine) in &mut self.machines {
            machine.settings = all.get(origin).copied().unwrap_or_default();
        }
    }

    /// Takes a point of a machine; `settings` are for one that is new.
    pub fn point(
        &mut self,
        origin: &Origin,
        point: &TelemetryPoint,
        settings: Settings,
        now: EpochMs,
    ) {
        self.make_room(origin, settings, now);
        if let Some(machine) = self.machines.get_mut(origin) {
            machine.take(point, now);
        }
    }

    /// Makes a machine known, if there is room: at the bound one that is silent goes; while all speak
    /// a new one is not followed.
    fn make_room(&mut self, origin: &Origin, settings: Settings, now: EpochMs) {
        if self.machines.contains_key(origin) {
            return;
        }
        if self.machines.len() >= self.most {
            let oldest = self.machines.iter().min_by_key(|(_, machine)| machine.seen);
            let silent = oldest.filter(|(_, machine)| now.since(machine.seen) > SILENT_MS);
            let Some(silent) = silent.map(|(origin, _)| origin.clone()) else {
                metrics::counter!("simcorp_inference_refused_total").increment(1);
                return;
            };
            self.machines.remove(&silent);
        }
        self.machines.insert(origin.clone(), Machine::new(settings, now, now));
    }

    /// A machine has told an event itself.
    pub fn heard(&mut self, origin: &Origin, event: &RoastEvent, now: EpochMs) {
        let ours = event.payload.as_ref().and_then(|payload| payload.get("source"));
        if ours.and_then(serde_json::Value::as_str) == Some(SOURCE) {
            return;
        }
        // Before its first point, too.
        self.make_room(origin, Settings::default(), now);
        if let Some(machine) = self.machines.get_mut(origin) {
            machine.speaks_until = now.plus(SPEAKS_MS);
            machine.pending.clear();
        }
    }

    /// The marks that have settled, to be told.
    pub fn due(&mut self, now: EpochMs) -> Vec<(Origin, RoastEvent)> {
        let due = self.machines.iter_mut().flat_map(|(origin, machine)| {
            machine.due(now).into_iter().map(|event| (origin.clone(), event)).collect::<Vec<_>>()
        });
        due.collect()
    }

    /// What would have been told of late: whoever takes over tells it again. Ingestion knows a
    /// message that comes twice.
    #[must_use]
    pub fn again(&self, now: EpochMs) -> Vec<(Origin, RoastEvent)> {
        let told = self.machines.iter().flat_map(|(origin, machine)| {
            let recent = machine.told.values().filter(|told| now.since(told.due) < AGAIN_MS);
            recent.map(|told| (origin.clone(), told.event.clone()))
        });
        told.collect()
    }

    #[must_use]
    pub fn shown(&self, org: &contract::OrgId, now: EpochMs) -> Vec<Shown> {
        let own = self.machines.iter().filter(|(origin, _)| origin.org == *org);
        own.map(|(origin, machine)| {
            let told = |kind| machine.told.contains_key(&kind);
            Shown {
                origin: origin.clone(),
                session_id: format!("{origin}@{}", machine.started),
                started_at_iso: machine.started,
                last_seen_at_iso: machine.seen,
                emitted: Emitted {
                    charge: told(EventKind::Charge),
                    tp: told(EventKind::Tp),
                    fc: told(EventKind::Fc),
                    drop: told(EventKind::Drop),
                },
                telemetry_count: machine.points,
                speaks: now < machine.speaks_until,
            }
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use contract::MachineId;
    use roast::twin::{PRESETS, Twin};

    const NOW: EpochMs = EpochMs(1_760_000_000_000);

    fn origin() -> Origin {
        "org/s/m".parse().unwrap()
    }

    fn point(t_s: i64, bt_c: f64, et_c: f64) -> TelemetryPoint {
        serde_json::from_value(json!({
            "ts": NOW.plus(t_s * 1000), "machineId": MachineId::new("m").unwrap(),
            "elapsedSeconds": t_s, "btC": bt_c, "etC": et_c,
        }))
        .unwrap()
    }

    /// Follows a twin's first roast from its CHARGE for `seconds`; answers what was told.
    fn followed(settings: Settings, seconds: i64, speaks_at: Option<i64>) -> Vec<RoastEvent> {
        let mut twin = Twin::new(PRESETS[0], 5, 0);
        while !twin.advance(100).contains(&EventKind::Charge) {}
        let mut all = Followed::new(10);
        let mut told = Vec::new();
        for s in 0..seconds {
            let r = twin.reading();
            let now = NOW.plus(s * 1000);
            all.point(&origin(), &point(s, r.bt_c, r.et_c), settings, now);
            if speaks_at == Some(s) {
                let own: RoastEvent =
                    serde_json::from_value(json!({"ts": now, "machineId": "m", "type": "NOTE"}))
                        .unwrap();
                all.heard(&origin(), &own, now);
            }
            told.extend(all.due(now).into_iter().map(|(_, event)| event));
            twin.advance(1_000);
        }
        told
    }

    #[test]
    fn a_machine_that_tells_nothing_is_given_its_marks_once() {
        let told = followed(Settings::default(), 1_200, None);
        let kinds: Vec<_> = told.iter().map(|event| event.kind).collect();
        assert_eq!(kinds.first(), Some(&EventKind::Charge), "{kinds:?}");
        assert!(kinds.contains(&EventKind::Tp) && kinds.contains(&EventKind::Drop), "{kinds:?}");
        let mut once = kinds.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), kinds.len(), "{kinds:?}");
        assert!(told.iter().all(|e| e.payload.as_ref().unwrap()["source"] == SOURCE));
    }

    #[test]
    fn a_machine_that_tells_its_events_is_left_to_itself() {
        assert!(followed(Settings::default(), 1_200, Some(3)).is_empty());
    }

    #[test]
    fn first_crack_is_where_somebody_says_that_it_is() {
        let settings = Settings {
            fc_bt_threshold_c: Some(150.0),
            min_first_crack_seconds: Some(60.0),
            ..Settings::default()
        };
        let told = followed(settings, 900, None);
        let fc = told.iter().find(|event| event.kind == EventKind::Fc).unwrap();
        let bt = fc.number("btC").unwrap();
        assert!((150.0..152.0).contains(&bt), "{bt}");
    }

    #[test]
    fn a_silence_is_no_drop_and_the_oldest_goes_first() {
        let mut all = Followed::new(1);
        for s in 0..60 {
            all.point(&origin(), &point(s, 180.0, 200.0), Settings::default(), NOW.plus(s * 1000));
        }
        let told = all.due(NOW.plus(3_600_000));
        assert!(told.iter().all(|(_, event)| event.kind != EventKind::Drop), "{told:?}");
        let other: Origin = "org/s/other".parse().unwrap();
        all.point(&other, &point(61, 20.0, 20.0), Settings::default(), NOW.plus(61_000));
        assert!(!all.is_new(&origin()) && all.is_new(&other), "in the middle of a roast");
        let later = NOW.plus(3_600_000);
        all.point(&other, &point(3_600, 20.0, 20.0), Settings::default(), later);
        assert!(all.is_new(&origin()) && !all.is_new(&other));
    }
}
