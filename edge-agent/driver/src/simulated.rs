//! The driver of the simulated roaster: `roast::twin`, advanced by the sampler's clock.

use contract::{Channel, EventKind};
use roast::twin::{PRESETS, Preset, STEP_MS, Twin};

use crate::{Driver, ReadFuture, Reading};

pub struct Simulated {
    twin: Twin,
    speed: u64,
    at_ms: u64,
}

impl Simulated {
    /// Creates a twin of the preset (the first preset if the name is unknown). It is charged for
    /// the first time after `charge_after_s` and runs at `speed` simulated seconds per second.
    #[must_use]
    pub fn new(preset: &str, seed: u64, charge_after_s: u64, speed: u64) -> Self {
        let preset = Preset::named(preset).unwrap_or(PRESETS[0]);
        Self { twin: Twin::new(preset, seed, charge_after_s.saturating_mul(1000)), speed, at_ms: 0 }
    }
}

impl Driver for Simulated {
    fn read(&mut self, mono_ms: u64) -> ReadFuture<'_> {
        // The twin moves in whole steps.
        let passed = (mono_ms.saturating_sub(self.at_ms) / STEP_MS).saturating_mul(STEP_MS);
        self.at_ms = self.at_ms.saturating_add(passed);
        let marks: Vec<EventKind> = self.twin.advance(passed.saturating_mul(self.speed));
        let r = self.twin.reading();
        let values = vec![
            (Channel::Bt, Some(r.bt_c)),
            (Channel::Et, Some(r.et_c)),
            (Channel::Gas, Some(r.gas_pct)),
            (Channel::Fan, Some(r.fan_pct)),
            (Channel::Drum, Some(r.drum_rpm)),
            (Channel::Ambient, Some(r.ambient_c)),
        ];
        Box::pin(std::future::ready(Ok(Reading { values, events: marks, ..Reading::default() })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_time_before_the_charge_does_not_end_the_driver() {
        let mut machine = Simulated::new("drum-15kg", 1, u64::MAX, 1);
        drop(machine.read(1_000));
        assert_eq!(machine.at_ms, 1_000);
    }
}
