//! The roaster's physics: beans with their water, the drum's metal, its air, and probes that lag.
//!
//! A lumped model after Schwartzberg and Al-Shemmeri et al. (Beverages 2025, 11(6), 162), reduced
//! to five states and scaled to one kilogram of the machine's design batch: bean temperature and
//! moisture, metal temperature, and two probes. The air's heat capacity is so small that the air is
//! in thermal balance at every step. Metal and air warm the beans; evaporating water cools them.
//! The turning point is a result and not an input: cold beans surround a hot probe, while the beans
//! themselves warm from the first second.
//!
//! The step is fixed, and the only operations are additions, subtractions, multiplications and
//! divisions, so that every CPU computes the same roast.

use serde::{Deserialize, Serialize};

/// The length of a step, s.
pub const STEP_S: f64 = 0.1;
/// Heat capacities of dry beans and of water, kJ/(kg·K), and the heat of evaporation including the
/// binding energy of the water, kJ/kg.
const BEAN_KJ_K: f64 = 1.65;
const WATER_KJ_K: f64 = 4.19;
const EVAPORATION_KJ: f64 = 2_700.0;
/// The rate at which water evaporates at 150 °C, 1/s, and the rise in °C that doubles that rate.
const DRYING_PER_S: f64 = 0.0011;
const DRYING_DOUBLES_C: f64 = 24.0;
/// The heat that exothermic reactions release, kW/kg, and the temperature at which they begin, °C.
const EXOTHERM_KW: f64 = 0.06;
const EXOTHERM_C: f64 = 190.0;

/// The parameters of a roaster; heat and flow are for one kilogram of its design batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MachineParameters {
    /// The burner's full power, kW/kg.
    pub power_kw: f64,
    /// The share of the burner's power that heats the air, 0..1.
    pub to_air: f64,
    /// Heat capacity of the metal that takes part, kJ/K.
    pub metal_kj_k: f64,
    /// The air's heat flow with the fan off and at full, kW/K.
    pub flow_kw_k: (f64, f64),
    /// Heat transfer between metal and air, kW/K.
    pub metal_air_kw_k: f64,
    /// Heat transfer between metal and beans, kW/K.
    pub metal_bean_kw_k: f64,
    /// Heat transfer between air and beans, kW/K.
    pub air_bean_kw_k: f64,
    /// Heat transfer from the metal to the room, kW/K.
    pub loss_kw_k: f64,
    /// The bean probe's lag, s.
    pub bt_lag_s: f64,
    /// The share of the air's temperature in the bean probe's reading, 0..1.
    pub bt_feels_air: f64,
    /// The environment probe's lag, s.
    pub et_lag_s: f64,
    /// The share of the room's temperature in the environment probe's reading, 0..1.
    pub et_feels_room: f64,
}

/// The controls and the surroundings.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Inputs {
    /// Burner, 0..1.
    pub gas: f64,
    /// Air, 0..1.
    pub fan: f64,
    /// Drum speed, 0..1.
    pub drum: f64,
    /// Room temperature, °C.
    pub ambient_c: f64,
}

/// The state of the roaster.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ThermalState {
    /// `None` while the drum is empty.
    pub beans: Option<Beans>,
    /// Temperature of the metal, °C.
    pub metal_c: f64,
    /// Temperature of the air in the drum, °C.
    pub air_c: f64,
    /// Temperature of the bean probe, °C.
    pub bt_probe_c: f64,
    /// Temperature of the environment probe, °C.
    pub et_probe_c: f64,
}

/// The beans in the drum.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Beans {
    /// Temperature of the beans, °C.
    pub c: f64,
    /// Mass of water for each mass of dry beans, kg/kg.
    pub moisture: f64,
    /// The batch size as a share of the design batch.
    pub load: f64,
}

impl ThermalState {
    /// Returns an empty drum, about in thermal balance, whose bean probe reads `c`.
    #[must_use]
    pub const fn warm(c: f64) -> Self {
        Self { beans: None, metal_c: c + 12.0, air_c: c, bt_probe_c: c, et_probe_c: c + 8.0 }
    }

    /// Advances the state by one step of [`STEP_S`].
    pub fn step(&mut self, machine: &MachineParameters, inputs: Inputs) {
        let m = machine;
        let burner = m.power_kw * inputs.gas;
        let flow = m.flow_kw_k.0 + (m.flow_kw_k.1 - m.flow_kw_k.0) * inputs.fan;
        // A drum that turns slowly mixes the beans less, which reduces the heat transfer.
        let stir = 0.5 + 0.5 * inputs.drum;
        let load = self.beans.map_or(0.0, |beans| beans.load);
        let bean_c = self.beans.map_or(self.air_c, |beans| beans.c);
        // Half of the flow's own effect on heat transfer: faster air makes thinner boundary layers.
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
    /// Advances the beans by one step in which they receive `heat`, kW/kg.
    fn step(&mut self, heat: f64) {
        let drying = DRYING_PER_S * exp2((self.c - 150.0) / DRYING_DOUBLES_C);
        let leaves = (drying * self.moisture).min(self.moisture / STEP_S);
        let exotherm = EXOTHERM_KW * ((self.c - EXOTHERM_C) / 10.0).clamp(0.0, 1.0);
        let capacity = BEAN_KJ_K + WATER_KJ_K * self.moisture;
        self.c += STEP_S * (heat + exotherm - EVAPORATION_KJ * leaves) / capacity;
        self.moisture -= STEP_S * leaves;
    }
}

/// Returns 2 to the power of `x`, with arithmetic whose result is the same on all CPUs. Accurate to
/// 2·10⁻⁷ for `x` in −60..60.
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
    let n = whole as i32;
    let mut power = 1.0;
    for _ in 0..n {
        power *= 2.0;
    }
    for _ in n..0 {
        power *= 0.5;
    }
    series * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp2_agrees_with_powf() {
        for x in [-20.0, -3.7, -0.5, 0.0, 0.3, 1.0, 4.9, 20.0] {
            assert!((exp2(x) / f64::powf(2.0, x) - 1.0).abs() < 1e-6, "{x}");
        }
    }
}
