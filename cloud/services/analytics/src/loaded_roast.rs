//! A roast's session as ingestion stores it, prepared for analysis.

use std::collections::BTreeMap;

use contract::annotations::{EventOverride, SessionMeta};
use contract::point::{RoastEvent, TelemetryPoint};
use contract::profile::RoastProfile;
use contract::session::RoastSession;
use contract::{EpochMs, EventKind, OrgId};
use roast::analysis::{Analysis, Curve, Marks, analyze};
use roast::prediction::{ProfileTargets, predict};
use roast::recording::Recording;
use roast::sample::Sample;
use serde_json::{Map, Value, json};
use service_client::{ServiceClient, ServiceClientError};

/// The maximum number of points that ingestion returns: a day at 1 Hz.
const POINTS_MAX: &str = "100000";
/// The bean temperature at which drying ends, unless an event or an override sets `DRY_END`, °C.
const DRY_C: f64 = 150.0;
/// The turning point is searched for only until this time, s.
const TURNED_WITHIN_S: f64 = 240.0;
/// The analysis lists an override among its warnings if it moves an event by more than this, s.
const LARGE_DELTA_S: f64 = 30.0;

/// A roast: the measurements, the events, and what people added (metadata and overrides).
pub struct LoadedRoast {
    pub session: RoastSession,
    pub meta: SessionMeta,
    pub overrides: Vec<EventOverride>,
    pub recording: Recording,
    /// Whether ingestion returned all points that the session's summary counts.
    pub all_points_loaded: bool,
    /// The time of each kind of event without the overrides, s since the session began.
    inferred: BTreeMap<EventKind, f64>,
}

impl LoadedRoast {
    /// Reads a roast. Returns `None` if there is no session with this id.
    ///
    /// # Errors
    /// When ingestion does not answer.
    pub async fn read(
        ingestion: &ServiceClient,
        org: &OrgId,
        id: &str,
    ) -> Result<Option<Self>, ServiceClientError> {
        let Some(session) = ingestion.get::<RoastSession>(org, &["sessions", id], &[]).await?
        else {
            return Ok(None);
        };
        Self::read_rest(ingestion, org, session).await.map(Some)
    }

    /// Reads the points, events, metadata and overrides of a session.
    ///
    /// # Errors
    /// When ingestion does not answer.
    pub async fn read_rest(
        ingestion: &ServiceClient,
        org: &OrgId,
        session: RoastSession,
    ) -> Result<Self, ServiceClientError> {
        let name = session.summary.session_id.to_string();
        let id = name.as_str();
        let path = |what| ["sessions", id, what];
        let points: Vec<TelemetryPoint> = ingestion
            .get(org, &path("telemetry"), &[("limit", POINTS_MAX)])
            .await?
            .unwrap_or_default();
        let events: Vec<RoastEvent> =
            ingestion.get(org, &path("events"), &[]).await?.unwrap_or_default();
        let meta = ingestion.get(org, &path("meta"), &[]).await?.unwrap_or_default();
        let overrides = ingestion
            .get(org, &["sessions", id, "events", "overrides"], &[])
            .await?
            .unwrap_or_default();
        Ok(Self::of(session, &points, &events, meta, overrides))
    }

    fn of(
        session: RoastSession,
        points: &[TelemetryPoint],
        events: &[RoastEvent],
        meta: SessionMeta,
        overrides: Vec<EventOverride>,
    ) -> Self {
        let whole =
            u64::try_from(points.len()).is_ok_and(|n| n >= session.summary.telemetry_points);
        let mut recording = Recording {
            machine: session.summary.origin.machine.to_string(),
            beans: meta.bean_name.clone().unwrap_or_default(),
            weight_in_g: meta.weight_in_g,
            weight_out_g: meta.weight_out_g,
            ambient_c: meta.ambient_temp_c,
            samples: points.iter().map(Sample::from_point).collect(),
            ..Recording::default()
        };
        recording.samples.dedup_by_key(|sample| sample.t_ms);
        let mut inferred = BTreeMap::new();
        let mut told: Vec<_> = events.iter().filter_map(event_rank_and_time).collect();
        // Order of precedence: a person, the machine, a recording, then all other sources. Of two
        // events of the same rank, the first counts.
        told.sort_by_key(|(_, rank, _)| *rank);
        for (kind, _, seconds) in told {
            inferred.entry(kind).or_insert(seconds);
        }
        // A session begins with its CHARGE.
        inferred.entry(EventKind::Charge).or_insert(0.0);
        if let Some(seconds) = session.summary.drop_seconds {
            inferred.entry(EventKind::Drop).or_insert(seconds);
        }
        if let Some(turned) =
            turning_point_s(&recording.samples, inferred.get(&EventKind::Drop).copied())
        {
            inferred.entry(EventKind::Tp).or_insert(turned);
        }
        let mut roasted =
            Self { session, meta, overrides, recording, all_points_loaded: whole, inferred };
        roasted.mark();
        roasted
    }

    /// Returns the time of an event, s. An override takes precedence over the inferred time.
    fn seconds(&self, kind: EventKind) -> Option<f64> {
        let said = self.overrides.iter().find(|one| one.event_type == kind);
        said.map(|one| one.elapsed_seconds).or_else(|| self.inferred.get(&kind).copied())
    }

    fn mark(&mut self) {
        for kind in EventKind::ALL {
            let Some(seconds) = self.seconds(kind) else { continue };
            if let Some(at) = nearest(&self.recording.samples, seconds) {
                self.recording.marks.push((kind, at));
            }
        }
        if self.seconds(EventKind::DryEnd).is_none()
            && let Some(at) = self.dry_end_index()
        {
            self.recording.marks.push((EventKind::DryEnd, at));
        }
        self.recording.marks.sort_by_key(|(_, at)| *at);
    }

    /// Returns the index of the first sample after the turning point with at least [`DRY_C`].
    fn dry_end_index(&self) -> Option<usize> {
        let turned = self.recording.mark_ms(EventKind::Tp)?;
        let warm = |s: &Sample| s.t_ms >= turned && s.bt_c.is_some_and(|bt| bt >= DRY_C);
        self.recording.samples.iter().position(warm)
    }

    pub fn marks(&self) -> Marks {
        Marks::of(&self.recording, &[])
    }

    pub fn curve(&self) -> Curve {
        Curve::of(&self.recording)
    }

    pub fn analysis(&self) -> Option<Analysis> {
        analyze(&self.recording, &self.marks())
    }

    /// Returns the prediction as JSON in the format of `RoastPrediction`.
    pub fn to_prediction_json(&self, profile: Option<&RoastProfile>, at: EpochMs) -> Value {
        let aims = profile.map(|profile| {
            let targets = &profile.body.targets;
            ProfileTargets {
                first_crack_c: targets.first_crack_temp_c,
                drop_c: targets.drop_temp_c,
                first_crack_s: targets.target_time_to_fc_seconds,
                drop_s: targets.target_drop_seconds,
                development_ratio: targets.target_dev_ratio,
            }
        });
        let found = predict(&self.recording, &self.marks(), aims.as_ref());
        let has = |read: fn(&Sample) -> Option<f64>| {
            self.recording.samples.iter().any(|sample| read(sample).is_some())
        };
        let channels = [
            ("btC", has(|sample| sample.bt_c)),
            ("etC", has(|sample| sample.et_c)),
            ("gasPct", has(|sample| sample.gas_pct)),
            ("fanPct", has(|sample| sample.fan_pct)),
        ];
        let available: Vec<_> =
            channels.iter().filter(|(_, has)| *has).map(|(name, _)| *name).collect();
        let sure = &found.confidence;
        without_nulls(json!({
            "sessionId": self.session.summary.session_id,
            "atTs": at,
            "phase": found.phase,
            "inputs": {"pointsUsed": found.points_used, "channelsAvailable": available,
                       "profileId": profile.map(|p| &p.profile_id),
                       "profileVersion": profile.map(|p| p.version)},
            "etaSeconds": {"toFC": found.eta_to_fc, "toDrop": found.eta_to_drop},
            "predictedTimes": {"fcAtElapsedSeconds": found.fc_at_elapsed_seconds,
                               "dropAtElapsedSeconds": found.drop_at_elapsed_seconds},
            "predictedDevRatio": found.predicted_dev_ratio,
            "confidence": {"overall": sure.overall, "reasons": found.reasons,
                "components": {"dataQuality": sure.data_quality, "modelFit": sure.model_fit,
                               "phaseFit": sure.phase_fit, "profileFit": sure.profile_fit}},
            "suggestions": found.suggestions,
            "explain": {"method": "HEURISTIC_V1", "features": found.features,
                "lastObserved": {"elapsedSeconds": found.last_elapsed_seconds,
                                 "btC": found.last_bt_c, "rorCPerMin": found.last_ror_c_per_min}},
        }))
    }

    /// Returns the analysis as JSON in the format of `RoastAnalysis`. A roast without measurements
    /// yet has empty phases.
    pub fn to_analysis_json(&self, computed_at: EpochMs) -> Value {
        let analysis = self.analysis().unwrap_or_default();
        let mut body = match serde_json::to_value(&analysis) {
            Ok(Value::Object(map)) => map,
            _ => Map::new(),
        };
        let origin = &self.session.summary.origin;
        let mut put = |name: &str, value: Value| body.insert(name.to_owned(), value);
        put("sessionId", json!(self.session.summary.session_id));
        put("orgId", json!(origin.org));
        put("siteId", json!(origin.site));
        put("machineId", json!(origin.machine));
        put("computedAt", json!(computed_at));
        put("completeness", json!(self.session.summary.completeness));
        put("chargeElapsedSeconds", json!(self.seconds(EventKind::Charge)));
        put("meta", json!(self.meta));
        put("config", json!({"dryEndBtC": DRY_C, "largeOverrideDeltaSeconds": LARGE_DELTA_S}));
        let (mut source, mut deltas) = (Map::new(), Map::new());
        let mut large = Vec::new();
        for kind in EventKind::ALL {
            let said = self.overrides.iter().find(|one| one.event_type == kind);
            let found = self.inferred.get(&kind);
            let word = match (said, found) {
                (Some(_), _) => "OVERRIDDEN",
                (None, Some(_)) => "INFERRED",
                (None, None) => continue,
            };
            source.insert(kind.as_str().to_owned(), word.into());
            if let Some((said, found)) = said.zip(found) {
                let delta = said.elapsed_seconds - found;
                deltas.insert(kind.as_str().to_owned(), delta.into());
                if delta.abs() > LARGE_DELTA_S {
                    large.push(json!({"code": "LARGE_OVERRIDE_DELTA", "severity": "INFO",
                        "message": format!("{kind} was moved by {delta:+.0} s"),
                        "atSeconds": said.elapsed_seconds, "details": {"deltaSeconds": delta}}));
                }
            }
        }
        put("eventTimeSource", source.into());
        put("overrideDeltasSeconds", deltas.into());
        if let Some(warnings) = body.get_mut("warnings").and_then(Value::as_array_mut) {
            warnings.extend(large);
        }
        without_nulls(body.into())
    }
}

/// Returns an event's kind, the rank of its source (a lower rank takes precedence) and its time, s.
/// Kinds of events that upstream Sim-Corp does not have arrive as notes whose payload has the kind
/// in `mark`.
fn event_rank_and_time(event: &RoastEvent) -> Option<(EventKind, u8, f64)> {
    let word = |name: &str| event.payload.as_ref()?.get(name)?.as_str();
    let kind = word("mark").and_then(EventKind::parse).unwrap_or(event.kind);
    let rank = match word("source") {
        Some("person") => 0,
        Some("machine") => 1,
        Some("recording") => 2,
        _ => 3,
    };
    Some((kind, rank, event.elapsed_seconds()?))
}

/// Returns the time of the lowest bean temperature, s, within the first minutes and the first half
/// of the roast. If several readings are equally low, it is the middle between the first and the
/// last of them. Returns `None` if the first or the last reading of that period is among the
/// lowest: a curve that only rises, or only falls, has no turning point.
fn turning_point_s(samples: &[Sample], dropped: Option<f64>) -> Option<f64> {
    let until = dropped.map_or(TURNED_WITHIN_S, |s| (s / 2.0).min(TURNED_WITHIN_S));
    let early = |s: &&Sample| s.t_ms as f64 <= until * 1000.0;
    let read: Vec<(i64, f64)> =
        samples.iter().take_while(early).filter_map(|s| Some((s.t_ms, s.bt_c?))).collect();
    let low = read.iter().map(|(_, bt)| *bt).fold(f64::MAX, f64::min);
    let first = read.iter().position(|(_, bt)| *bt <= low)?;
    let last = read.iter().rposition(|(_, bt)| *bt <= low)?;
    let inside = first > 0 && last + 1 < read.len();
    inside.then(|| i64::midpoint(read[first].0, read[last].0) as f64 / 1000.0)
}

fn nearest(samples: &[Sample], seconds: f64) -> Option<usize> {
    #[allow(clippy::cast_possible_truncation)] // seconds of a roast, as ms
    let t_ms = (seconds * 1000.0).round() as i64;
    let after = samples.partition_point(|sample| sample.t_ms < t_ms);
    let far = |i: usize| samples.get(i).map_or(i64::MAX, |s| (s.t_ms - t_ms).abs());
    let best = if after > 0 && far(after - 1) <= far(after) { after - 1 } else { after };
    (best < samples.len()).then_some(best)
}

/// Removes all `null` values: clients expect that a value that is not set is absent, never `null`.
pub fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let known = map.into_iter().filter(|(_, value)| !value.is_null());
            known.map(|(name, value)| (name, without_nulls(value))).collect::<Map<_, _>>().into()
        }
        Value::Array(list) => list.into_iter().map(without_nulls).collect::<Vec<_>>().into(),
        other => other,
    }
}
