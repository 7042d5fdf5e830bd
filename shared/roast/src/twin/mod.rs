//! A simulated roaster: physics ([`physics`]), an operator who leads the roast, probes with noise,
//! and faults on demand ([`fault`]). Upstream's generator is in [`legacy`].

pub mod fault;
pub mod legacy;
pub mod physics;
pub mod preset;

use contract::EventKind;
use serde::{Deserialize, Serialize};

use crate::noise::Noise;
use crate::sample::Sample;
use physics::{Beans, Inputs, ThermalState};
pub use preset::{PRESETS, Preset};

/// One simulation step, ms.
pub const STEP_MS: u64 = 100;
/// How often the simulated operator checks the curve, ms, and the smallest move of the burner.
const LOOKS_MS: u64 = 24_000;
const MOVE: f64 = 0.05;
/// The operator does not correct a smaller difference of the rate of rise, °C/min.
const CONTENT_C_PER_MIN: f64 = 0.7;
/// How long the drum has been warm when the simulation begins, ms.
const WARMED_MS: u64 = 1_800_000;
/// The moisture of green beans: kilograms of water per kilogram of dry beans.
const MOISTURE: f64 = 0.115;
/// The operator controls the rate of rise from this time on, s; before, the burner does not move.
const LED_FROM_S: u64 = 90;
/// The time at which the operator aims at first crack, s.
const CRACK_AIM_S: f64 = 480.0;
const AMBIENT_C: f64 = 24.0;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Stage {
    /// Waiting at charge temperature.
    Ready,
    Roasting,
    /// Beans out, drum on its way back to charge temperature.
    Between,
}

/// The readings of the machine at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading {
    /// Bean temperature, °C.
    pub bt_c: f64,
    /// Environment temperature, °C.
    pub et_c: f64,
    /// Burner power, %.
    pub gas_pct: f64,
    /// Fan, %.
    pub fan_pct: f64,
    /// Drum speed, 1/min.
    pub drum_rpm: f64,
    /// Room temperature, °C.
    pub ambient_c: f64,
}

impl Reading {
    /// Converts the reading to a sample of a recording, `t_ms` after its start.
    #[must_use]
    pub fn sample(&self, t_ms: i64) -> Sample {
        Sample {
            t_ms,
            bt_c: Some(self.bt_c),
            et_c: Some(self.et_c),
            gas_pct: Some(self.gas_pct),
            fan_pct: Some(self.fan_pct),
            ..Sample::default()
        }
    }
}

/// A simulated machine with its simulated operator.
#[derive(Debug, Clone)]
pub struct Twin {
    preset: Preset,
    noise: Noise,
    stage: Stage,
    stage_ms: u64,
    /// How long the operator waits before the next charge.
    ready_ms: u64,
    state: ThermalState,
    inputs: Inputs,
    /// Charge mass, of the design batch.
    load: f64,
    cracked_ms: Option<u64>,
    /// The probe at the operator's last look, °C.
    last_look_bt_c: f64,
    /// `Some`: the controls are held at these values, and the operator is disabled.
    fixed: Option<Inputs>,
}

impl Twin {
    /// Creates a machine at charge temperature, whose operator charges the first batch after
    /// `ready_ms`.
    #[must_use]
    pub fn new(preset: Preset, seed: u64, ready_ms: u64) -> Self {
        let inputs = Inputs { gas: 0.3, fan: 0.3, drum: 1.0, ambient_c: AMBIENT_C };
        let mut twin = Self {
            preset,
            noise: Noise::new(seed, 0),
            stage: Stage::Ready,
            stage_ms: 0,
            ready_ms,
            state: ThermalState::warm(preset.habit.charge_c),
            inputs,
            load: 1.0,
            cracked_ms: None,
            last_look_bt_c: preset.habit.charge_c,
            fixed: None,
        };
        // The drum has been kept warm for a while: metal, air and probes are in balance.
        for _ in 0..WARMED_MS / STEP_MS {
            twin.keep_warm();
            twin.state.step(&preset.machine, twin.inputs);
        }
        twin
    }

    /// Sets the batch size, as a share of the design batch, and the room temperature, °C.
    #[must_use]
    pub const fn with_conditions(mut self, load: f64, ambient_c: f64) -> Self {
        self.load = load;
        self.inputs.ambient_c = ambient_c;
        self
    }

    /// Disables the simulated operator: the controls stay at these values, 0..1 each.
    pub const fn hold(&mut self, gas: f64, fan: f64, drum: f64) {
        self.fixed = Some(Inputs { gas, fan, drum, ambient_c: self.inputs.ambient_c });
    }

    /// Returns the true temperatures, which the probes only approximate.
    #[must_use]
    pub const fn state(&self) -> &ThermalState {
        &self.state
    }

    /// Advances the simulation by `ms` and returns the events that the machine reports.
    pub fn advance(&mut self, ms: u64) -> Vec<EventKind> {
        (0..ms / STEP_MS).filter_map(|_| self.step()).collect()
    }

    /// Returns what the instruments show now, with the noise and the resolution of the probes.
    pub fn reading(&mut self) -> Reading {
        let p = self.preset;
        let shown = |c: f64, noise: f64| ((c + noise) / p.step_c).round() * p.step_c;
        Reading {
            bt_c: hundredths(shown(self.state.bt_probe_c, p.noise_c * self.noise.normal())),
            et_c: hundredths(shown(self.state.et_probe_c, p.noise_c * self.noise.normal())),
            gas_pct: (self.inputs.gas * 100.0).round(),
            fan_pct: (self.inputs.fan * 100.0).round(),
            drum_rpm: p.drum_rpm * self.inputs.drum,
            ambient_c: self.inputs.ambient_c,
        }
    }

    fn step(&mut self) -> Option<EventKind> {
        self.stage_ms = self.stage_ms.saturating_add(STEP_MS);
        let event = self.operate();
        if let Some(fixed) = self.fixed {
            self.inputs = fixed;
        }
        self.state.step(&self.preset.machine, self.inputs);
        event
    }

    fn operate(&mut self) -> Option<EventKind> {
        match self.stage {
            Stage::Ready | Stage::Between => self.wait_and_charge(),
            Stage::Roasting => self.control_roast(),
        }
    }

    /// Brings the drum to charge temperature, and charges.
    fn wait_and_charge(&mut self) -> Option<EventKind> {
        let habit = self.preset.habit;
        self.keep_warm();
        let near = (self.state.bt_probe_c - habit.charge_c).abs() < 6.0;
        if self.stage_ms < self.ready_ms || !near {
            return None;
        }
        self.state.beans =
            Some(Beans { c: self.inputs.ambient_c, moisture: MOISTURE, load: self.load });
        self.cracked_ms = None;
        self.enter(Stage::Roasting, 60_000);
        Some(EventKind::Charge)
    }

    /// Keeps the empty drum at the charge temperature, as a thermostat on the bean probe.
    fn keep_warm(&mut self) {
        let short_c = self.preset.habit.charge_c - self.state.bt_probe_c;
        self.inputs.gas = (0.3 + 0.12 * short_c).clamp(0.0, 0.9);
        self.inputs.fan = 0.3;
    }

    /// Leads the roast by its rate of rise, and drops it when it has developed.
    fn control_roast(&mut self) -> Option<EventKind> {
        let habit = self.preset.habit;
        let since_s = self.stage_ms as f64 / 1000.0;
        let late = (since_s / CRACK_AIM_S).clamp(0.0, 1.0);
        self.inputs.fan =
            ((habit.fan.0 + (habit.fan.1 - habit.fan.0) * late) * 20.0).round() / 20.0;
        if self.stage_ms == STEP_MS {
            self.inputs.gas = habit.gas_early;
        }
        if self.stage_ms.is_multiple_of(LOOKS_MS) {
            let per_min = 60_000.0 / LOOKS_MS as f64;
            let ror = (self.state.bt_probe_c - self.last_look_bt_c) * per_min;
            self.last_look_bt_c = self.state.bt_probe_c;
            if self.stage_ms >= LED_FROM_S * 1000 + LOOKS_MS {
                self.move_burner(ror, since_s);
            }
        }
        let bean_c = self.state.beans.map_or(0.0, |beans| beans.c);
        if self.cracked_ms.is_none() && bean_c >= habit.crack_c {
            self.cracked_ms = Some(self.stage_ms);
            return Some(EventKind::Fc);
        }
        let developed = self.cracked_ms.is_some_and(|cracked| {
            self.stage_ms.saturating_sub(cracked) as f64 >= habit.development * self.stage_ms as f64
        });
        if !developed {
            return None;
        }
        self.state.beans = None;
        self.enter(Stage::Between, 60_000);
        Some(EventKind::Drop)
    }

    /// Moves the burner by one step towards the rate of rise aimed at.
    fn move_burner(&mut self, ror: f64, since_s: f64) {
        let habit = self.preset.habit;
        let early = 130.0;
        let way = ((since_s - early) / (CRACK_AIM_S - early)).clamp(0.0, 1.0);
        let aim = habit.ror_early + (habit.ror_late - habit.ror_early) * way;
        let off = aim - ror;
        if off.abs() < CONTENT_C_PER_MIN {
            return;
        }
        let steps = (off / 2.2).clamp(-2.0, 2.0).round();
        let steps = if steps == 0.0 { off.signum() } else { steps };
        self.inputs.gas = ((self.inputs.gas + steps * MOVE) * 20.0).round() / 20.0;
        self.inputs.gas = self.inputs.gas.clamp(0.05, 1.0);
    }

    const fn enter(&mut self, stage: Stage, ready_ms: u64) {
        self.stage = stage;
        self.stage_ms = 0;
        self.ready_ms = ready_ms;
        self.last_look_bt_c = self.state.bt_probe_c;
    }
}

fn hundredths(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests;
