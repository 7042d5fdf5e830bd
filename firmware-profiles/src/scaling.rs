//! The conversion of a raw value to a value with a unit, and back.

use crate::document::{Channel, Control, Unit};

impl Channel {
    /// Returns the value of a raw reading, temperatures in °C; `None` when the raw value means "no
    /// reading".
    #[must_use]
    pub fn value(&self, raw: f64) -> Option<f64> {
        if !raw.is_finite() || self.missing.contains(&raw) {
            return None;
        }
        let value = raw / f64::from(self.divisor.max(1));
        Some(if self.unit == Some(Unit::F) { (value - 32.0) / 1.8 } else { value })
    }

    /// Returns the raw reading of a value: what a machine that shows it would answer.
    #[must_use]
    pub fn raw(&self, value: f64) -> f64 {
        let value = if self.unit == Some(Unit::F) { value * 1.8 + 32.0 } else { value };
        value * f64::from(self.divisor.max(1))
    }
}

impl Control {
    /// Returns the raw value to write. Clamps the value to `range` first, then applies `map`.
    #[must_use]
    pub fn raw(&self, value: f64) -> f64 {
        let [low, high] = self.range.unwrap_or([f64::MIN, f64::MAX]);
        value.max(low).min(high) * self.map.factor + self.map.offset
    }

    /// Returns the value of a raw value, in the control's unit.
    #[must_use]
    pub fn value(&self, raw: f64) -> f64 {
        (raw - self.map.offset) / self.map.factor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_clamped_before_it_is_mapped() {
        let control: Control = toml::from_str(
            "name = \"burner\"\nrole = \"burner\"\naddr = \"DB2.14\"\nrange = [0, 100]\n\
             map = { factor = 1, offset = 1 }\nidempotent = true\nremote = \"guarded\"",
        )
        .unwrap();
        let raws: Vec<f64> = [-5.0, 0.0, 40.0, 400.0].map(|v| control.raw(v)).to_vec();
        assert_eq!(raws, [1.0, 1.0, 41.0, 101.0], "never 0, which is AUTO");
    }
}
