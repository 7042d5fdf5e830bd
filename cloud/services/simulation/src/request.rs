//! The request to the twin, and the simulated roast that the twin returns.

use contract::point::{RoastEvent, TelemetryPoint};
use contract::{EpochMs, EventKind, MachineId};
use roast::ror::RateOfRise;
use roast::twin::{PRESETS, Twin, legacy};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

/// A request for more points than this is refused.
pub const POINTS_MAX: usize = legacy::POINTS_MAX;
/// The twin ends a roast that has no DROP by this time, s.
const ROAST_S_MAX: f64 = 3_600.0;
/// The longest permitted roast: the limit of the target times, s.
const LONGEST_S: f64 = 86_400.0;
/// The twin's presets are calibrated for a batch of this size.
const DESIGN_KG: f64 = 5.0;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// Upstream Sim-Corp's curve between targets: for the same seed, identical to it to the last
    /// digit.
    #[default]
    Reference,
    /// The physics of a roaster with a simulated operator; the targets may be missed.
    Twin,
}

/// Upstream Sim-Corp's request. Every field has a default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SimRoastRequest {
    pub machine_id: String,
    pub batch_size_kg: f64,
    pub charge_temp_c: f64,
    pub target_first_crack_seconds: f64,
    pub target_drop_seconds: f64,
    pub max_temp_c: f64,
    pub sample_interval_seconds: f64,
    pub noise_std_dev: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<i64>,
    pub ambient_temp_c: f64,
    pub engine: Engine,
    /// Only for the engine `twin`: the machine to simulate. If absent, the seed selects it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preset: Option<String>,
}

impl Default for SimRoastRequest {
    fn default() -> Self {
        Self {
            machine_id: "SIM-MACHINE".to_owned(),
            batch_size_kg: 5.0,
            charge_temp_c: 180.0,
            target_first_crack_seconds: 480.0,
            target_drop_seconds: 600.0,
            max_temp_c: 220.0,
            sample_interval_seconds: 2.0,
            noise_std_dev: 0.5,
            seed: None,
            ambient_temp_c: 25.0,
            engine: Engine::default(),
            preset: None,
        }
    }
}

/// A problem in a request: the field, and the reason.
pub type Problem = (&'static str, String);

/// One moment of a simulated roast.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Moment {
    /// s since CHARGE
    pub t_s: f64,
    pub bt_c: f64,
    pub et_c: f64,
    pub ror_c_per_min: Option<f64>,
    pub gas_pct: Option<f64>,
    pub fan_pct: Option<f64>,
}

/// A simulated roast, from CHARGE to DROP.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SimRoast {
    pub moments: Vec<Moment>,
    /// (kind, s since CHARGE)
    pub events: Vec<(EventKind, f64)>,
}

impl SimRoastRequest {
    /// Returns the problems of the request.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (field, value) in [
            ("batchSizeKg", self.batch_size_kg),
            ("targetFirstCrackSeconds", self.target_first_crack_seconds),
            ("targetDropSeconds", self.target_drop_seconds),
            ("maxTempC", self.max_temp_c),
            ("sampleIntervalSeconds", self.sample_interval_seconds),
        ] {
            if !(value.is_finite() && value > 0.0) {
                problems.push((field, "not above 0".to_owned()));
            }
        }
        for (field, value, most) in [
            ("sampleIntervalSeconds", self.sample_interval_seconds, 60.0),
            ("targetFirstCrackSeconds", self.target_first_crack_seconds, LONGEST_S),
            ("targetDropSeconds", self.target_drop_seconds, LONGEST_S),
        ] {
            if value > most {
                problems.push((field, format!("more than {most}")));
            }
        }
        if !(self.noise_std_dev.is_finite() && self.noise_std_dev >= 0.0) {
            problems.push(("noiseStdDev", "below 0".to_owned()));
        }
        for (field, value) in
            [("chargeTempC", self.charge_temp_c), ("ambientTempC", self.ambient_temp_c)]
        {
            if !(-50.0..=500.0).contains(&value) {
                problems.push((field, "not between -50 and 500".to_owned()));
            }
        }
        if MachineId::new(self.machine_id.clone()).is_err() {
            problems.push(("machineId", "not a name of letters, digits and . _ -".to_owned()));
        }
        if self.points_max() > POINTS_MAX as f64 {
            let problem = format!("more than {POINTS_MAX} points");
            problems.push(("sampleIntervalSeconds", problem));
        }
        if self.preset.as_deref().is_some_and(|name| preset(name).is_none()) {
            let known: Vec<_> = PRESETS.iter().map(|preset| preset.name).collect();
            problems.push(("preset", format!("not one of {}", known.join(", "))));
        }
        problems
    }

    /// Returns the maximum number of points that the roast can have.
    #[must_use]
    pub fn points_max(&self) -> f64 {
        let longest = match self.engine {
            Engine::Reference => self.target_drop_seconds,
            Engine::Twin => ROAST_S_MAX,
        };
        longest / self.sample_interval_seconds
    }

    /// Returns the seed, or `now` in ms if the request has none.
    #[must_use]
    pub fn seed_or(&self, now: EpochMs) -> i64 {
        self.seed.unwrap_or(now.0)
    }

    /// Simulates the roast. The same seed gives the same roast.
    ///
    /// # Errors
    /// As [`SimRoastRequest::problems`].
    pub fn simulate(&self, seed: i64) -> Result<SimRoast, Problem> {
        if let Some(problem) = self.problems().into_iter().next() {
            return Err(problem);
        }
        match self.engine {
            Engine::Reference => self.simulate_curve(seed),
            Engine::Twin => Ok(self.simulate_twin(seed)),
        }
    }

    fn simulate_curve(&self, seed: i64) -> Result<SimRoast, Problem> {
        let request = legacy::LegacyRequest {
            batch_kg: self.batch_size_kg,
            charge_c: self.charge_temp_c,
            first_crack_s: self.target_first_crack_seconds,
            drop_s: self.target_drop_seconds,
            max_c: self.max_temp_c,
            interval_s: self.sample_interval_seconds,
            noise_c: self.noise_std_dev,
            seed: u32::try_from(seed.rem_euclid(1 << 32)).unwrap_or(0),
        };
        let drawn = legacy::simulate(&request)
            .map_err(|error| ("sampleIntervalSeconds", error.to_string()))?;
        let moment = |p: &legacy::LegacyPoint| Moment {
            t_s: p.t_s,
            bt_c: p.bt_c,
            et_c: p.et_c,
            ror_c_per_min: Some(p.ror_c_per_min),
            gas_pct: None,
            fan_pct: None,
        };
        Ok(SimRoast { moments: drawn.points.iter().map(moment).collect(), events: drawn.events })
    }

    fn simulate_twin(&self, seed: i64) -> SimRoast {
        let by_seed = seed.unsigned_abs().checked_rem(PRESETS.len() as u64).unwrap_or(0);
        let preset = self
            .preset
            .as_deref()
            .and_then(preset)
            .unwrap_or(PRESETS[usize::try_from(by_seed).unwrap_or(0)]);
        let load = (self.batch_size_kg / DESIGN_KG).clamp(0.3, 1.5);
        #[allow(clippy::cast_sign_loss)] // any bit pattern is a valid seed
        let mut twin = Twin::new(preset, seed as u64, 0).with_conditions(load, self.ambient_temp_c);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // checked: above 0
        let step_ms = ((self.sample_interval_seconds * 1000.0) as u64)
            .max(roast::twin::STEP_MS)
            .next_multiple_of(roast::twin::STEP_MS);
        let mut roast = SimRoast::default();
        let mut rate = RateOfRise::default();
        // The drum warms until the operator charges it.
        while !twin.advance(roast::twin::STEP_MS).contains(&EventKind::Charge) {}
        roast.events.push((EventKind::Charge, 0.0));
        let mut t_ms = 0_u64;
        loop {
            let reading = twin.reading();
            let t_s = t_ms as f64 / 1000.0;
            let rise = rate.push(i64::try_from(t_ms).unwrap_or(i64::MAX), Some(reading.bt_c));
            roast.moments.push(Moment {
                t_s,
                bt_c: reading.bt_c,
                et_c: reading.et_c,
                ror_c_per_min: rise.map(|rise| (rise.c_per_min * 100.0).round() / 100.0),
                gas_pct: Some(reading.gas_pct),
                fan_pct: Some(reading.fan_pct),
            });
            if t_s > ROAST_S_MAX || roast.events.iter().any(|(kind, _)| *kind == EventKind::Drop) {
                return roast;
            }
            t_ms = t_ms.saturating_add(step_ms);
            for kind in twin.advance(step_ms) {
                roast.events.push((kind, t_ms as f64 / 1000.0));
            }
        }
    }
}

fn preset(name: &str) -> Option<roast::twin::Preset> {
    PRESETS.into_iter().find(|preset| preset.name == name)
}

impl SimRoast {
    /// Returns the time from CHARGE to the last moment, s.
    #[must_use]
    pub fn length_s(&self) -> f64 {
        self.moments.last().map_or(0.0, |moment| moment.t_s)
    }

    /// Returns the roast in upstream Sim-Corp's format, with CHARGE at `started`.
    #[must_use]
    pub fn to_wire(
        &self,
        machine: &MachineId,
        started: EpochMs,
        ambient_c: f64,
    ) -> (Vec<TelemetryPoint>, Vec<RoastEvent>) {
        let batch = Some(format!("SIM-BATCH-{}", started.0.div_euclid(1000)));
        let point = |m: &Moment| TelemetryPoint {
            ts: at(started, m.t_s),
            machine_id: machine.clone(),
            batch_id: batch.clone(),
            elapsed_seconds: m.t_s,
            bt_c: Some(m.bt_c),
            et_c: Some(m.et_c),
            ror_c_per_min: m.ror_c_per_min,
            gas_pct: m.gas_pct,
            fan_pct: m.fan_pct,
            drum_rpm: None,
            ambient_c: Some(ambient_c),
            extras: std::collections::BTreeMap::new(),
        };
        let event = |(kind, t_s): &(EventKind, f64)| RoastEvent {
            ts: at(started, *t_s),
            machine_id: machine.clone(),
            batch_id: batch.clone(),
            kind: *kind,
            payload: json!({"elapsedSeconds": t_s}).as_object().cloned(),
        };
        (self.moments.iter().map(point).collect(), self.events.iter().map(event).collect())
    }
}

/// Returns the time `t_s` seconds after `started`.
#[must_use]
pub fn at(started: EpochMs, t_s: f64) -> EpochMs {
    #[allow(clippy::cast_possible_truncation)] // seconds of a roast, as ms
    started.plus_ms((t_s * 1000.0).round() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_engines_return_the_same_roast_for_the_same_seed() {
        for engine in [Engine::Reference, Engine::Twin] {
            let request = SimRoastRequest { engine, ..SimRoastRequest::default() };
            let roast = request.simulate(42).unwrap();
            assert_eq!(roast, request.simulate(42).unwrap());
            assert_ne!(roast, request.simulate(43).unwrap());
            let times: Vec<_> = roast.events.iter().map(|(_, t)| *t).collect();
            assert!(times.is_sorted() && roast.length_s() >= *times.last().unwrap() - 10.0);
            assert_eq!(roast.events.first().unwrap().0, EventKind::Charge);
            assert_eq!(roast.events.last().unwrap().0, EventKind::Drop, "{engine:?}");
            assert!(roast.moments.len() > 200, "{engine:?} {}", roast.moments.len());
        }
    }

    #[test]
    fn upstreams_test_vector_is_reproduced() {
        let request: SimRoastRequest = serde_json::from_str(r#"{"seed":42}"#).unwrap();
        let roast = request.simulate(42).unwrap();
        let machine = MachineId::new("SIM-MACHINE").unwrap();
        let (points, events) = roast.to_wire(&machine, EpochMs(42_000), 25.0);
        assert_eq!(points.len(), 301);
        assert_eq!(points[0].ts.to_string(), "1970-01-01T00:00:42.000Z");
        assert_eq!(points[300].bt_c, Some(220.0));
        assert_eq!(events[2].elapsed_seconds(), Some(460.51));
    }

    #[test]
    fn an_invalid_request_names_the_field() {
        let of = |text: &str| {
            let request: SimRoastRequest = serde_json::from_str(text).unwrap();
            request.problems().into_iter().map(|(field, _)| field).collect::<Vec<_>>()
        };
        assert_eq!(of(r#"{"sampleIntervalSeconds":1e-9}"#), ["sampleIntervalSeconds"]);
        assert_eq!(of(r#"{"batchSizeKg":0,"machineId":"a/b"}"#), ["batchSizeKg", "machineId"]);
        assert_eq!(of(r#"{"preset":"spaceship"}"#), ["preset"]);
        assert!(of("{}").is_empty());
    }
}
