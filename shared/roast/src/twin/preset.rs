//! The makes of simulated roasters, and how their operators roast.

use super::physics::MachineParameters;

/// A make of roaster: its physics, and the habits of its operator.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Preset {
    /// The name by which clients select the preset.
    pub name: &'static str,
    /// The physics.
    pub machine: MachineParameters,
    /// How its operator roasts.
    pub habit: OperatorHabits,
    /// The standard deviation of the noise of the probes, °C.
    pub noise_c: f64,
    /// The resolution of the probes, °C.
    pub step_c: f64,
    /// The drum speed, 1/min.
    pub drum_rpm: f64,
}

/// How an operator controls a roast: by the rate of rise, moving the burner in steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OperatorHabits {
    /// The bean temperature at which the operator charges, °C.
    pub charge_c: f64,
    /// The aimed rate of rise two minutes after CHARGE, °C/min.
    pub ror_early: f64,
    /// The aimed rate of rise at first crack, °C/min.
    pub ror_late: f64,
    /// The burner just after CHARGE, 0..1.
    pub gas_early: f64,
    /// The fan at the start and at the end of a roast, 0..1.
    pub fan: (f64, f64),
    /// The temperature of the beans themselves at first crack, °C.
    pub crack_c: f64,
    /// The share of development in the roast at which the operator drops, 0..1.
    pub development: f64,
}

/// The makes that the demo and the load generator choose from. Each roasts within the limits that
/// were measured on real ones: a one-kilogram drum with a fast probe, a small electric drum, a drum
/// whose environment probe reads below its beans.
pub const PRESETS: [Preset; 3] = [
    Preset {
        name: "drum-15kg",
        machine: MachineParameters {
            power_kw: 2.76,
            to_air: 0.304,
            metal_kj_k: 1.0,
            flow_kw_k: (0.00594, 0.00811),
            metal_air_kw_k: 0.0117,
            metal_bean_kw_k: 0.00419,
            air_bean_kw_k: 0.0115,
            loss_kw_k: 0.0008,
            bt_lag_s: 28.9,
            bt_feels_air: 0.174,
            et_lag_s: 24.4,
            et_feels_room: 0.0374,
        },
        habit: OperatorHabits {
            charge_c: 182.9,
            ror_early: 16.3,
            ror_late: 14.0,
            gas_early: 0.799,
            fan: (0.25, 0.60),
            crack_c: 184.3,
            development: 0.295,
        },
        noise_c: 0.10,
        step_c: 0.1,
        drum_rpm: 52.0,
    },
    Preset {
        name: "sample-250g",
        machine: MachineParameters {
            power_kw: 2.82,
            to_air: 0.3,
            metal_kj_k: 1.65,
            flow_kw_k: (0.006, 0.00776),
            metal_air_kw_k: 0.00406,
            metal_bean_kw_k: 0.00653,
            air_bean_kw_k: 0.00291,
            loss_kw_k: 0.00274,
            bt_lag_s: 30.0,
            bt_feels_air: 0.5,
            et_lag_s: 8.12,
            et_feels_room: 0.109,
        },
        habit: OperatorHabits {
            charge_c: 159.9,
            ror_early: 13.7,
            ror_late: 6.33,
            gas_early: 0.838,
            fan: (0.30, 0.70),
            crack_c: 172.7,
            development: 0.32,
        },
        noise_c: 0.06,
        step_c: 0.01,
        drum_rpm: 64.0,
    },
    Preset {
        name: "air-5kg",
        machine: MachineParameters {
            power_kw: 2.99,
            to_air: 0.85,
            metal_kj_k: 1.08,
            flow_kw_k: (0.00193, 0.0117),
            metal_air_kw_k: 0.0106,
            metal_bean_kw_k: 0.00235,
            air_bean_kw_k: 0.00803,
            loss_kw_k: 0.0005,
            bt_lag_s: 30.0,
            bt_feels_air: 0.245,
            et_lag_s: 20.3,
            et_feels_room: 0.345,
        },
        habit: OperatorHabits {
            charge_c: 189.9,
            ror_early: 13.3,
            ror_late: 10.9,
            gas_early: 0.638,
            fan: (0.35, 0.70),
            crack_c: 183.2,
            development: 0.153,
        },
        noise_c: 0.03,
        step_c: 0.1,
        drum_rpm: 46.0,
    },
];

impl Preset {
    /// Returns the preset of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        PRESETS.into_iter().find(|preset| preset.name == name)
    }
}
