//! A simulated roaster: enough physics that its curve is a roast's, driven by a simulated operator.
//!
//! States: bean temperature, the drum's metal and air as one body, and the probe, which lags. The
//! turning point is not drawn: it emerges because cold beans surround a hot probe while the beans
//! themselves warm from the first second (`roasting.md` §4 lists the sources of the full model; this
//! is its three-body core). Fixed step, integer time, a counter-based generator and no
//! transcendental function, so every CPU computes the same roast.

use contract::EventKind;

use crate::noise::Noise;

/// One simulation step.
const STEP_MS: u64 = 100;

/// What makes one roaster differ from another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Preset {
    pub name: &'static str,
    /// Heating of the drum at full gas, °C/s.
    gas_c_per_s: f64,
    /// Loss of the drum to the room, 1/s.
    loss_per_s: f64,
    /// Heat taken from the drum by the beans, 1/s.
    load_per_s: f64,
    /// Heating of the beans by the drum, 1/s.
    bean_per_s: f64,
    /// The probe's lag, s.
    probe_s: f64,
    charge_c: f64,
    first_crack_c: f64,
    drop_c: f64,
    /// ET reads this much above the drum's air.
    et_offset_c: f64,
    noise_c: f64,
    drum_rpm: f64,
}

/// The makes the demo and the load generator choose from.
pub const PRESETS: [Preset; 3] = [
    Preset {
        name: "drum-15kg",
        gas_c_per_s: 0.90,
        loss_per_s: 0.0022,
        load_per_s: 0.0022,
        bean_per_s: 0.0036,
        probe_s: 24.0,
        charge_c: 190.0,
        first_crack_c: 192.0,
        drop_c: 208.0,
        et_offset_c: -8.0,
        noise_c: 0.05,
        drum_rpm: 52.0,
    },
    Preset {
        name: "sample-250g",
        gas_c_per_s: 0.87,
        loss_per_s: 0.0027,
        load_per_s: 0.0012,
        bean_per_s: 0.0036,
        probe_s: 24.0,
        charge_c: 160.0,
        first_crack_c: 178.0,
        drop_c: 190.0,
        et_offset_c: -20.0,
        noise_c: 0.04,
        drum_rpm: 64.0,
    },
    Preset {
        name: "air-5kg",
        gas_c_per_s: 1.07,
        loss_per_s: 0.0026,
        load_per_s: 0.0024,
        bean_per_s: 0.0038,
        probe_s: 24.0,
        charge_c: 182.0,
        first_crack_c: 196.0,
        drop_c: 214.0,
        et_offset_c: 6.0,
        noise_c: 0.12,
        drum_rpm: 46.0,
    },
];

impl Preset {
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        PRESETS.into_iter().find(|preset| preset.name == name)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Waiting at charge temperature.
    Ready,
    Roasting,
    /// Beans out, drum cooling back to charge temperature.
    Between,
}

/// What the machine shows at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading {
    pub bt_c: f64,
    pub et_c: f64,
    pub gas_pct: f64,
    pub fan_pct: f64,
    pub drum_rpm: f64,
    pub ambient_c: f64,
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
    bean_c: f64,
    drum_c: f64,
    probe_c: f64,
    gas: f64,
    fan: f64,
    cracked: bool,
}

const AMBIENT_C: f64 = 24.0;

impl Twin {
    /// A machine at charge temperature, whose first batch goes in after `ready_ms`.
    #[must_use]
    pub const fn new(preset: Preset, seed: u64, ready_ms: u64) -> Self {
        Self {
            preset,
            noise: Noise::new(seed, 0),
            stage: Stage::Ready,
            stage_ms: 0,
            ready_ms,
            bean_c: AMBIENT_C,
            drum_c: preset.charge_c + 40.0,
            probe_c: preset.charge_c,
            gas: 0.4,
            fan: 0.3,
            cracked: false,
        }
    }

    /// Lets `ms` pass and answers what the machine tells of itself meanwhile.
    pub fn advance(&mut self, ms: u64) -> Vec<EventKind> {
        (0..ms / STEP_MS).filter_map(|_| self.step()).collect()
    }

    /// What the instruments show now.
    pub fn reading(&mut self) -> Reading {
        let p = self.preset;
        let tenth = |v: f64| (v * 10.0).round() / 10.0;
        Reading {
            bt_c: tenth(self.probe_c + p.noise_c * self.noise.normal()),
            et_c: tenth(self.drum_c + p.et_offset_c + p.noise_c * self.noise.normal()),
            gas_pct: (self.gas * 100.0).round(),
            fan_pct: (self.fan * 100.0).round(),
            drum_rpm: p.drum_rpm,
            ambient_c: AMBIENT_C,
        }
    }

    fn step(&mut self) -> Option<EventKind> {
        const DT_S: f64 = 0.1;
        let p = self.preset;
        self.stage_ms += STEP_MS;
        let event = self.operate();
        let beans = self.stage == Stage::Roasting;
        let gain = p.gas_c_per_s * self.gas;
        let loss = p.loss_per_s * (0.7 + 0.6 * self.fan) * (self.drum_c - AMBIENT_C);
        let load = if beans { p.load_per_s * (self.drum_c - self.bean_c) } else { 0.0 };
        self.drum_c += DT_S * (gain - loss - load);
        if beans {
            self.bean_c += DT_S * p.bean_per_s * (self.drum_c - self.bean_c);
        }
        // The probe sits in the bean mass and sees a little of the drum's air.
        let around = if beans {
            self.bean_c + 0.12 * (self.drum_c - self.bean_c)
        } else {
            self.drum_c - 40.0
        };
        self.probe_c += DT_S * (around - self.probe_c) / p.probe_s;
        event
    }

    /// The operator: holds charge temperature, charges, steps the gas down, drops by colour.
    fn operate(&mut self) -> Option<EventKind> {
        let p = self.preset;
        let since = self.stage_ms / 1000;
        match self.stage {
            Stage::Ready | Stage::Between => {
                self.gas = if self.drum_c < p.charge_c + 40.0 { 0.7 } else { 0.15 };
                self.fan = 0.4;
                let waited = self.stage == Stage::Ready || self.drum_c <= p.charge_c + 44.0;
                if self.stage_ms < self.ready_ms || !waited {
                    return None;
                }
                (self.bean_c, self.cracked) = (AMBIENT_C, false);
                self.enter(Stage::Roasting, 45_000);
                Some(EventKind::Charge)
            }
            Stage::Roasting => {
                (self.gas, self.fan) = match since {
                    0..60 => (0.90, 0.25),
                    60..180 => (0.82, 0.30),
                    180..300 => (0.72, 0.40),
                    300..420 => (0.64, 0.50),
                    _ => (0.55, 0.60),
                };
                if !self.cracked && self.bean_c >= p.first_crack_c {
                    self.cracked = true;
                    return Some(EventKind::Fc);
                }
                if self.bean_c < p.drop_c {
                    return None;
                }
                self.enter(Stage::Between, 45_000);
                Some(EventKind::Drop)
            }
        }
    }

    const fn enter(&mut self, stage: Stage, ready_ms: u64) {
        self.stage = stage;
        self.stage_ms = 0;
        self.ready_ms = ready_ms;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (TP s, TP °C, FC s, drop s, drop BT) of the `n`th roast of a preset.
    fn roast(preset: Preset, n: usize) -> (u64, f64, u64, u64, f64) {
        let mut twin = Twin::new(preset, 42, 10_000);
        let (mut charged, mut tp, mut fc) = (None, (0, f64::MAX), 0);
        let mut count = 0;
        for s in 0..20_000_u64 {
            for event in twin.advance(1_000) {
                match event {
                    EventKind::Charge => (charged, tp) = (Some(s), (0, f64::MAX)),
                    EventKind::Fc => fc = s - charged.unwrap(),
                    _ if count == n => {
                        let t = s - charged.unwrap();
                        return (tp.0, tp.1, fc, t, twin.reading().bt_c);
                    }
                    _ => (count, charged) = (count + 1, None),
                }
            }
            let bt = twin.reading().bt_c;
            if let Some(charged) = charged
                && bt < tp.1
                && s - charged < 200
            {
                tp = (s - charged, bt);
            }
        }
        panic!("no roast {n} within hours");
    }

    #[test]
    fn every_preset_roasts_inside_the_measured_envelope() {
        for preset in PRESETS {
            for n in [0, 2] {
                let (tp_s, tp_c, fc_s, drop_s, drop_c) = roast(preset, n);
                let figures = format!(
                    "{} #{n}: TP {tp_s} s {tp_c} °C, FC {fc_s} s, drop {drop_s} s {drop_c} °C",
                    preset.name
                );
                assert!((50..=82).contains(&tp_s), "{figures}");
                assert!((70.0..=130.0).contains(&tp_c), "{figures}");
                assert!((366..=658).contains(&fc_s), "{figures}");
                assert!((482..=748).contains(&drop_s), "{figures}");
                assert!((181.0..=221.0).contains(&drop_c), "{figures}");
            }
        }
    }

    #[test]
    fn the_same_seed_is_the_same_roast_bit_for_bit() {
        let run = || {
            let mut twin = Twin::new(PRESETS[0], 7, 0);
            (0..600)
                .flat_map(|_| {
                    twin.advance(1_000);
                    let r = twin.reading();
                    [r.bt_c.to_bits(), r.et_c.to_bits()]
                })
                .fold(0_u64, |hash, bits| hash.rotate_left(5) ^ bits)
        };
        assert_eq!(run(), run());
    }
}
