//! A roast's session as ingestion stores it, prepared for analysis.

use std::collections::BTreeMap;

use contract::annotations::{EventOverride, SessionMeta};
use contract::point::{RoastEvent, TelemetryPoint};
use contract::profile::RoastProfile;
use contract::session::RoastSession;
use contract::{EpochMs, EventKind, OrgId};
use roast::analysis::advice::{Severity, Warning};
use roast::analysis::{Analysis, Curve, Marks, analyze};
use roast::prediction::{ProfileTargets, predict};
use roast::recording::Recording;
use roast::sample::Sample;
use serde_json::Map;
use service_client::{ServiceClient, ServiceClientError};

use crate::responses::{
    AnalysisConfig, ConfidenceComponents, EtaSeconds, EventTimeSource, LastObserved,
    PredictedTimes, PredictionConfidence, PredictionExplanation, PredictionInputs, RoastAnalysis,
    RoastPrediction,
};

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
    /// The confidence in those events that were detected with one.
    confidence: BTreeMap<EventKind, f64>,
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
        let mut ranked: Vec<_> = events.iter().filter_map(event_rank_and_time).collect();
        // Order of precedence: a person, the machine, a recording, then all other sources. Of two
        // events of the same rank, the first counts.
        ranked.sort_by_key(|(_, rank, ..)| *rank);
        let mut confidence = BTreeMap::new();
        for (kind, _, seconds, confident) in ranked {
            if inferred.contains_key(&kind) {
                continue;
            }
            inferred.insert(kind, seconds);
            confidence.extend(confident.map(|confident| (kind, confident)));
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
        let mut roasted = Self {
            session,
            meta,
            overrides,
            recording,
            all_points_loaded: whole,
            inferred,
            confidence,
        };
        roasted.mark();
        roasted
    }

    /// Returns the time of an event, s. An override takes precedence over the inferred time.
    fn seconds(&self, kind: EventKind) -> Option<f64> {
        let overridden = self.overrides.iter().find(|one| one.event_type == kind);
        overridden.map(|one| one.elapsed_seconds).or_else(|| self.inferred.get(&kind).copied())
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
        let mut marks = Marks::of(&self.recording, &[]);
        for (kind, confidence) in &self.confidence {
            if self.overrides.iter().all(|one| one.event_type != *kind) {
                marks = marks.with_confidence(*kind, *confidence);
            }
        }
        marks
    }

    pub fn curve(&self) -> Curve {
        Curve::of(&self.recording)
    }

    pub fn analysis(&self) -> Option<Analysis> {
        analyze(&self.recording, &self.marks())
    }

    /// Predicts first crack and drop, with the targets of a profile if there is one.
    pub fn prediction(&self, profile: Option<&RoastProfile>, at: EpochMs) -> RoastPrediction {
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
        let prediction = predict(&self.recording, &self.marks(), aims.as_ref());
        let confidence = &prediction.confidence;
        RoastPrediction {
            session_id: self.session.summary.session_id.clone(),
            at_ts: at,
            phase: prediction.phase,
            inputs: PredictionInputs {
                points_used: prediction.points_used,
                channels_available: self.channels(),
                profile_id: profile.map(|profile| profile.profile_id.clone()),
                profile_version: profile.map(|profile| profile.version),
            },
            eta_seconds: EtaSeconds {
                to_fc: prediction.eta_to_fc,
                to_drop: prediction.eta_to_drop,
            },
            predicted_times: PredictedTimes {
                fc_at_elapsed_seconds: prediction.fc_at_elapsed_seconds,
                drop_at_elapsed_seconds: prediction.drop_at_elapsed_seconds,
            },
            predicted_dev_ratio: prediction.predicted_dev_ratio,
            confidence: PredictionConfidence {
                overall: confidence.overall,
                components: ConfidenceComponents {
                    data_quality: confidence.data_quality,
                    model_fit: confidence.model_fit,
                    phase_fit: confidence.phase_fit,
                    profile_fit: confidence.profile_fit,
                },
                reasons: prediction.reasons,
            },
            suggestions: prediction.suggestions,
            explain: PredictionExplanation {
                method: "HEURISTIC_V1",
                features: prediction.features,
                last_observed: LastObserved {
                    elapsed_seconds: prediction.last_elapsed_seconds,
                    bt_c: prediction.last_bt_c,
                    ror_c_per_min: prediction.last_ror_c_per_min,
                },
            },
        }
    }

    /// Returns the names of the channels that have at least one value.
    fn channels(&self) -> Vec<&'static str> {
        let has = |read: fn(&Sample) -> Option<f64>| {
            self.recording.samples.iter().any(|sample| read(sample).is_some())
        };
        let channels = [
            ("btC", has(|sample| sample.bt_c)),
            ("etC", has(|sample| sample.et_c)),
            ("gasPct", has(|sample| sample.gas_pct)),
            ("fanPct", has(|sample| sample.fan_pct)),
        ];
        channels.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect()
    }

    /// Returns the analysis with the roast's metadata, and what the overrides changed.
    pub fn full_analysis(&self, computed_at: EpochMs) -> RoastAnalysis {
        let mut analysis = self.analysis().unwrap_or_default();
        let (mut sources, mut deltas) = (BTreeMap::new(), BTreeMap::new());
        for kind in EventKind::ALL {
            let overridden = self.overrides.iter().find(|one| one.event_type == kind);
            let inferred = self.inferred.get(&kind);
            let source = match (overridden, inferred) {
                (Some(_), _) => EventTimeSource::Overridden,
                (None, Some(_)) => EventTimeSource::Inferred,
                (None, None) => continue,
            };
            sources.insert(kind, source);
            if let Some((overridden, inferred)) = overridden.zip(inferred) {
                let delta = overridden.elapsed_seconds - inferred;
                deltas.insert(kind, delta);
                if delta.abs() > LARGE_DELTA_S {
                    analysis.warnings.push(large_override(kind, overridden.elapsed_seconds, delta));
                }
            }
        }
        let summary = &self.session.summary;
        RoastAnalysis {
            session_id: summary.session_id.clone(),
            origin: summary.origin.clone(),
            computed_at,
            completeness: summary.completeness,
            charge_elapsed_seconds: self.seconds(EventKind::Charge),
            meta: self.meta.clone(),
            config: AnalysisConfig {
                dry_end_bt_c: DRY_C,
                large_override_delta_seconds: LARGE_DELTA_S,
            },
            event_time_source: sources,
            override_deltas_seconds: deltas,
            analysis,
        }
    }
}

/// Returns the warning about an override that moved an event by much.
fn large_override(kind: EventKind, at_seconds: f64, delta: f64) -> Warning {
    Warning {
        code: "LARGE_OVERRIDE_DELTA",
        severity: Severity::Info,
        message: format!("{kind} was moved by {delta:+.0} s"),
        at_seconds: Some(at_seconds),
        details: Map::from_iter([("deltaSeconds".to_owned(), delta.into())]),
    }
}

/// Returns an event's kind, the rank of its source (a lower rank takes precedence) and its time, s.
/// Kinds of events that upstream Sim-Corp does not have arrive as notes whose payload has the kind
/// in `mark`.
fn event_rank_and_time(event: &RoastEvent) -> Option<(EventKind, u8, f64, Option<f64>)> {
    let field = |name: &str| event.payload.as_ref()?.get(name)?.as_str();
    let kind = field("mark").and_then(EventKind::parse).unwrap_or(event.kind);
    let rank = match field("source") {
        Some("person") => 0,
        Some("machine") => 1,
        Some("recording") => 2,
        _ => 3,
    };
    let confidence = event.payload.as_ref().and_then(|payload| payload.get("confidence")?.as_f64());
    Some((kind, rank, event.elapsed_seconds()?, confidence))
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
    let inside = first > 0 && last.saturating_add(1) < read.len();
    inside.then(|| i64::midpoint(read[first].0, read[last].0) as f64 / 1000.0)
}

fn nearest(samples: &[Sample], seconds: f64) -> Option<usize> {
    #[allow(clippy::cast_possible_truncation)] // seconds of a roast, as ms
    let t_ms = (seconds * 1000.0).round() as i64;
    let after = samples.partition_point(|sample| sample.t_ms < t_ms);
    let far = |i: usize| samples.get(i).map_or(u64::MAX, |s| s.t_ms.abs_diff(t_ms));
    let before = after.checked_sub(1).filter(|before| far(*before) <= far(after));
    let best = before.unwrap_or(after);
    (best < samples.len()).then_some(best)
}
