//! The roaster's physics: beans with their water, the drum's metal, its air, and probes that lag.
//!
//! A lumped model after Schwartzberg and Al-Shemmeri et al. (Beverages 2025, 11(6), 162), reduced to
//! five states and scaled to one kilogram of the machine's design batch: bean temperature and
//! moisture, metal temperature, and two probes; the air has so little heat of its own that it is in
//! balance at every step. Beans are warmed by metal and air and cooled by the water that leaves
//! them. The turning point is not drawn: cold beans surround a hot probe while they themselves warm
//! from the first second.
//!
//! Fixed step, and only additions, multiplications and divisions: every CPU computes the same roast.

use serde::{Deserialize, Serialize};

/// One step, s.
pub const STEP_S: f64 = 0.1;
/// Heat of dry beans and of water, kJ/(kg·K), and of evaporation with what binds it, kJ/kg.
const BEAN_KJ_K: f64 = 1.65;
const WATER_KJ_K: f64 = 4.19;
const EVAPORATION_KJ: f64 = 2_700.0;
/// Water leaves at this rate at 150 °C, 1/s, and twice as fast each so many °C more.
const DRYING_PER_S: f64 = 0.0011;
const DRYING_DOUBLES_C: f64 = 24.0;
/// Reactions from 190 °C on give back a little heat, kW/kg.
const EXOTHERM_KW: f64 = 0.06;
const EXOTHERM_C: f64 = 190.0;

/// What makes one roaster differ from another; heat and flow for one kilogram of its design batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Machine {
    /// The burner at full, kW/kg, and the share of it that goes into the air.
    pub power_kw: f64,
    pub to_air: f64,
    /// Heat of the metal that takes part, kJ/K.
    pub metal_kj_k: f64,
    /// The air's heat flow with the fan off and at full, kW/K.
    pub flow_kw_k: (f64, f64),
    /// Transfer metal–air, metal–bean, air–bean, and from the metal to the room, kW/K.
    pub metal_air_kw_k: f64,
    pub metal_bean_kw_k: f64,
    pub air_bean_kw_k: f64,
    pub loss_kw_k: f64,
    /// The bean probe's lag, s, and how much of the air and the metal it feels beside the beans.
    pub bt_lag_s: f64,
    pub bt_feels_air: f64,
    /// The environment probe's lag, s, and how much of the room it feels beside the air.
    pub et_lag_s: f64,
    pub et_feels_room: f64,
}

/// What is set and what is given.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Inputs {
    /// Burner, air and drum, 0..1.
    pub gas: f64,
    pub fan: f64,
    pub drum: f64,
    pub ambient_c: f64,
}

/// The state.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// `None`: the drum is empty.
    pub beans: Option<Beans>,
    pub metal_c: f64,
    pub air_c: f64,
    pub bt_probe_c: f64,
    pub et_probe_c: f64,
}

/// The beans in the drum.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Beans {
    pub c: f64,
    /// Water for each kilogram of dry beans.
    pub moisture: f64,
    /// Of the design batch.
    pub load: f64,
}

impl State {
    /// An empty drum in balance at about this probe reading.
    #[must_use]
    pub const fn warm(c: f64) -> Self {
        Self { beans: None, metal_c: c + 12.0, air_c: c, bt_probe_c: c, et_probe_c: c + 8.0 }
    }

    /// One step of [`STEP_S`].
    pub fn step(&mut self, machine: &Machine, inputs: Inputs) {
        let m = machine;
        let burner = m.power_kw * inputs.gas;
        let flow = m.flow_kw_k.0 + (m.flow_kw_k.1 - m.flow_kw_k.0) * inputs.fan;
        // A drum that turns slowly stirs less.
        let stir = 0.5 + 0.5 * inputs.drum;
        let load = self.beans.map_or(0.0, |beans| beans.load);
        let bean_c = self.beans.map_or(self.air_c, |beans| beans.c);
        // Half of the flow's own effect on transfer: faster air, thinner films.
        let film = 0.6 + 0.8 * inputs.fan;
        let air_bean = m.air_bean_kw_k * load * film * stir;
        let metal_bean = m.metal_bean_kw_k * load * stir;
        let metal_air = m.metal_air_kw_k * film;
        let warmed = flow * inputs.ambient_c + burner * m.to_air;
        self.air_c =
            (warmed + metal_air * self.metal_c + air_bean * bean_c) / (flow + metal_air + air_bean);
        let to_metal = burner * (1.0 - m.to_air)
            - metal_air * (self.metal_c - self.air_c)
            - metal_bean * (self.metal_c - bean_c)
            - m.loss_kw_k * (self.metal_c - inputs.ambient_c);
        let mut around = self.air_c;
        if let Some(beans) = &mut self.beans {
            let heat = air_bean * (self.air_c - beans.c) + metal_bean * (self.metal_c - beans.c);
            beans.step(heat / beans.load);
            around = beans.c + m.bt_feels_air * (self.air_c - beans.c);
        }
        self.metal_c += STEP_S * to_metal / m.metal_kj_k;
        self.bt_probe_c += STEP_S * (around - self.bt_probe_c) / m.bt_lag_s;
        let air_seen = self.air_c - m.et_feels_room * (self.air_c - inputs.ambient_c);
        self.et_probe_c += STEP_S * (air_seen - self.et_probe_c) / m.et_lag_s;
    }
}

impl Beans {
    /// Takes `heat` kW/kg for one step.
    fn step(&mut self, heat: f64) {
        let drying = DRYING_PER_S * exp2((self.c - 150.0) / DRYING_DOUBLES_C);
        let leaves = (drying * self.moisture).min(self.moisture / STEP_S);
        let exotherm = EXOTHERM_KW * ((self.c - EXOTHERM_C) / 10.0).clamp(0.0, 1.0);
        let capacity = BEAN_KJ_K + WATER_KJ_K * self.moisture;
        self.c += STEP_S * (heat + exotherm - EVAPORATION_KJ * leaves) / capacity;
        self.moisture -= STEP_S * leaves;
    }
}

/// 2 to the power of `x`, of arithmetic that all CPUs do alike; to 2·10⁻⁷, for −60..60.
fn exp2(x: f64) -> f64 {
    let x = x.clamp(-60.0, 60.0);
    let whole = x.floor();
    let f = x - whole;
    // Taylor's series of 2^f about 0, to the seventh power.
    let series = 1.0
        + f * (std::f64::consts::LN_2
            + f * (0.240_226_51
                + f * (0.055_504_11
                    + f * (0.009_618_13
                        + f * (0.001_333_36 + f * (0.000_154_04 + f * 0.000_015_25))))));
    #[allow(clippy::cast_possible_truncation)] // clamped above
    let mut n = whole as i32;
    let mut power = 1.0;
    while n > 0 {
        power *= 2.0;
        n -= 1;
    }
    while n < 0 {
        power *= 0.5;
        n += 1;
    }
    series * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_of_two_are_powers_of_two() {
        for x in [-20.0, -3.7, -0.5, 0.0, 0.3, 1.0, 4.9, 20.0] {
            assert!((exp2(x) / f64::powf(2.0, x) - 1.0).abs() < 1e-6, "{x}");
        }
    }
}
