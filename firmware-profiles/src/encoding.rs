//! The encoding of numbers in registers and bytes.

use serde::{Deserialize, Serialize};

/// The form of a raw value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Type {
    Bool,
    U16,
    I16,
    U32,
    I32,
    F32,
    /// Four decimal digits in 16 bits.
    Bcd16,
    /// Eight decimal digits in 32 bits.
    Bcd32,
}

/// Which word of two comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Order {
    #[default]
    HighFirst,
    LowFirst,
}

impl Type {
    /// Returns the number of 16-bit words of one value.
    #[must_use]
    pub const fn words(self) -> u16 {
        match self {
            Self::Bool | Self::U16 | Self::I16 | Self::Bcd16 => 1,
            Self::U32 | Self::I32 | Self::F32 | Self::Bcd32 => 2,
        }
    }

    /// Returns the smallest and largest raw value.
    #[must_use]
    pub const fn bounds(self) -> (f64, f64) {
        match self {
            Self::Bool => (0.0, 1.0),
            Self::U16 => (0.0, u16::MAX as f64),
            Self::I16 => (i16::MIN as f64, i16::MAX as f64),
            Self::U32 => (0.0, u32::MAX as f64),
            Self::I32 => (i32::MIN as f64, i32::MAX as f64),
            Self::F32 => (f32::MIN as f64, f32::MAX as f64),
            Self::Bcd16 => (0.0, 9_999.0),
            Self::Bcd32 => (0.0, 99_999_999.0),
        }
    }

    /// Returns the raw value in `words`; `None` when there are too few words, a BCD digit is not
    /// decimal, or the value is not a number.
    #[must_use]
    pub fn decode(self, order: Order, words: &[u16]) -> Option<f64> {
        let word = *words.first()?;
        let long = || {
            let second = *words.get(1)?;
            let (high, low) = match order {
                Order::HighFirst => (word, second),
                Order::LowFirst => (second, word),
            };
            Some((u32::from(high) << 16) | u32::from(low))
        };
        let raw = match self {
            Self::Bool => f64::from(u8::from(word != 0)),
            Self::U16 => f64::from(word),
            Self::I16 => f64::from(word.cast_signed()),
            Self::U32 => f64::from(long()?),
            Self::I32 => f64::from(long()?.cast_signed()),
            Self::F32 => f64::from(f32::from_bits(long()?)),
            Self::Bcd16 => f64::from(from_bcd(u32::from(word))?),
            Self::Bcd32 => f64::from(from_bcd(long()?)?),
        };
        raw.is_finite().then_some(raw)
    }

    /// Returns the words of `raw`, rounded to what the type can represent; `None` when `raw` is
    /// outside the type's bounds.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // inside `bounds`
    pub fn encode(self, order: Order, raw: f64) -> Option<Vec<u16>> {
        let (low, high) = self.bounds();
        let raw = if self == Self::F32 { raw } else { raw.round() };
        if !(low..=high).contains(&raw) {
            return None;
        }
        let long = |bits: u32| {
            let (high, low) = ((bits >> 16) as u16, bits as u16);
            match order {
                Order::HighFirst => vec![high, low],
                Order::LowFirst => vec![low, high],
            }
        };
        Some(match self {
            Self::Bool | Self::U16 => vec![raw as u16],
            Self::I16 => vec![(raw as i16).cast_unsigned()],
            Self::U32 => long(raw as u32),
            Self::I32 => long((raw as i32).cast_unsigned()),
            Self::F32 => long((raw as f32).to_bits()),
            Self::Bcd16 => vec![to_bcd(raw as u32) as u16],
            Self::Bcd32 => long(to_bcd(raw as u32)),
        })
    }
}

fn from_bcd(bits: u32) -> Option<u32> {
    (0..8).rev().try_fold(0_u32, |number, digit| {
        let digit = (bits >> (4 * digit)) & 0xf;
        (digit <= 9).then(|| number * 10 + digit)
    })
}

/// Encodes at most eight digits; `Type::bounds` ensures this.
fn to_bcd(number: u32) -> u32 {
    (0..8).fold(0, |bits, digit| bits | ((number / 10_u32.pow(digit) % 10) << (4 * digit)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Type; 8] = [
        Type::Bool,
        Type::U16,
        Type::I16,
        Type::U32,
        Type::I32,
        Type::F32,
        Type::Bcd16,
        Type::Bcd32,
    ];

    proptest::proptest! {
        #[test]
        fn decode_returns_what_encode_wrote(raw in 0_u32..100_000_000, low_first: bool) {
            let order = if low_first { Order::LowFirst } else { Order::HighFirst };
            for kind in ALL {
                if let Some(words) = kind.encode(order, f64::from(raw)) {
                    let read = kind.decode(order, &words).unwrap();
                    let held = if kind == Type::F32 { f64::from(raw as f32) } else { f64::from(raw) };
                    proptest::prop_assert!((read - held).abs() < f64::EPSILON);
                }
            }
        }

        #[test]
        fn any_words_decode_to_a_finite_number_or_none(a: u16, b: u16) {
            for kind in ALL {
                if let Some(raw) = kind.decode(Order::HighFirst, &[a, b]) {
                    proptest::prop_assert!(raw.is_finite());
                }
            }
        }
    }

    #[test]
    fn special_values_decode_and_encode_correctly() {
        assert_eq!(Type::Bcd32.decode(Order::LowFirst, &[0x3915, 0x0000]), Some(3915.0));
        assert_eq!(Type::Bcd16.decode(Order::HighFirst, &[0x3a15]), None);
        assert_eq!(Type::Bcd16.encode(Order::HighFirst, 10_000.0), None);
        assert_eq!(Type::I16.encode(Order::HighFirst, -1.0), Some(vec![0xffff]));
        assert_eq!(Type::F32.decode(Order::HighFirst, &[0x7fc0, 0]), None, "not a number");
        assert_eq!(Type::U32.decode(Order::HighFirst, &[1]), None, "one word of two");
    }
}
