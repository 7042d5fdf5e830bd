//! The encoding of numbers in registers and bytes.

use serde::{Deserialize, Serialize};

/// The form of a raw value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Type {
    Bool,
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F32,
    F64,
    /// Four decimal digits in 16 bits.
    Bcd16,
    /// Eight decimal digits in 32 bits.
    Bcd32,
}

/// The order of a value's words, and of the bytes in each word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Order {
    /// The most significant word first: ABCD.
    #[default]
    HighFirst,
    /// The least significant word first: CDAB.
    LowFirst,
    /// As `high-first`, with the bytes of each word swapped: BADC, and BA for one word.
    HighFirstSwapped,
    /// As `low-first`, with the bytes of each word swapped: DCBA, and BA for one word.
    LowFirstSwapped,
}

impl Order {
    /// Every order.
    pub const ALL: [Self; 4] =
        [Self::HighFirst, Self::LowFirst, Self::HighFirstSwapped, Self::LowFirstSwapped];

    const fn has_low_word_first(self) -> bool {
        matches!(self, Self::LowFirst | Self::LowFirstSwapped)
    }

    const fn swaps_bytes(self) -> bool {
        matches!(self, Self::HighFirstSwapped | Self::LowFirstSwapped)
    }

    /// Returns the bits of at most four words that are in this order.
    fn join(self, words: &[u16]) -> u64 {
        let add = |bits: u64, word: &u16| {
            let word = if self.swaps_bytes() { word.swap_bytes() } else { *word };
            (bits << 16) | u64::from(word)
        };
        if self.has_low_word_first() {
            words.iter().rev().fold(0, add)
        } else {
            words.iter().fold(0, add)
        }
    }

    /// Returns the lowest `count` words of `bits` in this order.
    #[allow(clippy::cast_possible_truncation)] // one word at a time
    fn split(self, bits: u64, count: u16) -> Vec<u16> {
        let mut rest = bits;
        let low_first = (0..count).map(|_| {
            let word = rest as u16;
            rest >>= 16;
            if self.swaps_bytes() { word.swap_bytes() } else { word }
        });
        let mut words: Vec<u16> = low_first.collect();
        if !self.has_low_word_first() {
            words.reverse();
        }
        words
    }
}

impl Type {
    /// Every type.
    pub const ALL: [Self; 13] = [
        Self::Bool,
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::U64,
        Self::I64,
        Self::F32,
        Self::F64,
        Self::Bcd16,
        Self::Bcd32,
    ];

    /// Returns the number of 16-bit words of one value.
    #[must_use]
    pub const fn words(self) -> u16 {
        match self {
            Self::Bool | Self::U8 | Self::I8 | Self::U16 | Self::I16 | Self::Bcd16 => 1,
            Self::U32 | Self::I32 | Self::F32 | Self::Bcd32 => 2,
            Self::U64 | Self::I64 | Self::F64 => 4,
        }
    }

    /// Returns the number of bytes of one value, where bytes have addresses of their own.
    #[must_use]
    pub const fn bytes(self) -> u16 {
        if self.is_byte() { 1 } else { self.words().saturating_mul(2) }
    }

    /// Returns whether a value is a single byte.
    #[must_use]
    pub const fn is_byte(self) -> bool {
        matches!(self, Self::U8 | Self::I8)
    }

    /// Returns the smallest and largest raw value.
    #[must_use]
    pub const fn bounds(self) -> (f64, f64) {
        match self {
            Self::Bool => (0.0, 1.0),
            Self::U8 => (0.0, u8::MAX as f64),
            Self::I8 => (i8::MIN as f64, i8::MAX as f64),
            Self::U16 => (0.0, u16::MAX as f64),
            Self::I16 => (i16::MIN as f64, i16::MAX as f64),
            Self::U32 => (0.0, u32::MAX as f64),
            Self::I32 => (i32::MIN as f64, i32::MAX as f64),
            Self::U64 => (0.0, u64::MAX as f64),
            Self::I64 => (i64::MIN as f64, i64::MAX as f64),
            Self::F32 => (f32::MIN as f64, f32::MAX as f64),
            Self::F64 => (f64::MIN, f64::MAX),
            Self::Bcd16 => (0.0, 9_999.0),
            Self::Bcd32 => (0.0, 99_999_999.0),
        }
    }

    /// Returns the order in which the value is read and written: a single byte has none.
    const fn effective_order(self, order: Order) -> Order {
        if self.is_byte() { Order::HighFirst } else { order }
    }

    /// Returns the raw value in `words`, a single byte from the low half of its word. Integers
    /// beyond 2⁵³ are rounded. `None` when there are too few words, a BCD digit is not decimal, or
    /// the value is not a number.
    #[must_use]
    #[allow(clippy::cast_possible_truncation)] // the other bits do not belong to the value
    pub fn decode(self, order: Order, words: &[u16]) -> Option<f64> {
        let words = words.get(..usize::from(self.words()))?;
        let bits = self.effective_order(order).join(words);
        let raw = match self {
            Self::Bool => f64::from(u8::from(bits != 0)),
            Self::U8 => f64::from(bits as u8),
            Self::I8 => f64::from((bits as u8).cast_signed()),
            Self::U16 => f64::from(bits as u16),
            Self::I16 => f64::from((bits as u16).cast_signed()),
            Self::U32 => f64::from(bits as u32),
            Self::I32 => f64::from((bits as u32).cast_signed()),
            Self::U64 => bits as f64,
            Self::I64 => bits.cast_signed() as f64,
            Self::F32 => f64::from(f32::from_bits(bits as u32)),
            Self::F64 => f64::from_bits(bits),
            Self::Bcd16 | Self::Bcd32 => f64::from(from_bcd(bits as u32)?),
        };
        raw.is_finite().then_some(raw)
    }

    /// Returns the raw value in the bytes of its words; `None` also when their number is another
    /// than [`Type::bytes`].
    #[must_use]
    pub fn decode_bytes(self, order: Order, bytes: &[u8]) -> Option<f64> {
        if bytes.len() != usize::from(self.bytes()) {
            return None;
        }
        if let [byte] = bytes {
            return self.decode(order, &[u16::from(*byte)]);
        }
        let words = bytes.as_chunks::<2>().0.iter().map(|pair| u16::from_be_bytes(*pair));
        self.decode(order, &words.collect::<Vec<u16>>())
    }

    /// Returns the words of `raw`, rounded to what the type can represent; `None` when `raw` is
    /// outside the type's bounds.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // inside `bounds`
    pub fn encode(self, order: Order, raw: f64) -> Option<Vec<u16>> {
        let (low, high) = self.bounds();
        let raw = if matches!(self, Self::F32 | Self::F64) { raw } else { raw.round() };
        if !(low..=high).contains(&raw) {
            return None;
        }
        let bits = match self {
            Self::Bool | Self::U8 | Self::U16 | Self::U32 | Self::U64 => raw as u64,
            Self::I8 => u64::from((raw as i8).cast_unsigned()),
            Self::I16 => u64::from((raw as i16).cast_unsigned()),
            Self::I32 => u64::from((raw as i32).cast_unsigned()),
            Self::I64 => (raw as i64).cast_unsigned(),
            Self::F32 => u64::from((raw as f32).to_bits()),
            Self::F64 => raw.to_bits(),
            Self::Bcd16 | Self::Bcd32 => u64::from(to_bcd(raw as u32)),
        };
        Some(self.effective_order(order).split(bits, self.words()))
    }

    /// Returns the bytes of `raw`, as [`Type::decode_bytes`] reads them.
    #[must_use]
    pub fn encode_bytes(self, order: Order, raw: f64) -> Option<Vec<u8>> {
        let words = self.encode(order, raw)?;
        let bytes = words.iter().flat_map(|word| word.to_be_bytes());
        Some(bytes.skip(usize::from(self.is_byte())).collect())
    }
}

fn from_bcd(bits: u32) -> Option<u32> {
    (0..8)
        .try_fold((0_u32, bits), |(number, bits), _| {
            let digit = bits >> 28;
            let number = number.saturating_mul(10).saturating_add(digit);
            (digit <= 9).then_some((number, bits << 4))
        })
        .map(|(number, _)| number)
}

/// Encodes at most eight digits; `Type::bounds` ensures this.
fn to_bcd(number: u32) -> u32 {
    // The lowest digit first: it moves down to its place as the others follow.
    (0..8)
        .fold((0, number), |(bits, number), _| ((bits >> 4) | ((number % 10) << 28), number / 10))
        .0
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn decode_returns_what_encode_wrote(raw in 0_u32..100_000_000, order in 0_usize..4) {
            let order = Order::ALL[order];
            for kind in Type::ALL {
                // Small types hold only small numbers.
                for raw in [raw, raw % 100] {
                    let held = if kind == Type::F32 { f64::from(raw as f32) } else { f64::from(raw) };
                    if let Some(words) = kind.encode(order, f64::from(raw)) {
                        proptest::prop_assert_eq!(words.len(), usize::from(kind.words()));
                        let read = kind.decode(order, &words).unwrap();
                        proptest::prop_assert!((read - held).abs() < f64::EPSILON);
                    }
                    if let Some(bytes) = kind.encode_bytes(order, f64::from(raw)) {
                        let read = kind.decode_bytes(order, &bytes).unwrap();
                        proptest::prop_assert!((read - held).abs() < f64::EPSILON);
                    }
                }
            }
        }

        #[test]
        fn any_words_decode_to_a_finite_number_or_none(words: [u16; 4], order in 0_usize..4) {
            for kind in Type::ALL {
                if let Some(raw) = kind.decode(Order::ALL[order], &words) {
                    proptest::prop_assert!(raw.is_finite());
                }
            }
        }
    }

    #[test]
    fn each_order_of_words_and_bytes_is_read_and_written() {
        // 187.25 as the bytes A B C D is 43 3b 40 00.
        let float = [
            (Order::HighFirst, [0x433b, 0x4000]),
            (Order::LowFirst, [0x4000, 0x433b]),
            (Order::HighFirstSwapped, [0x3b43, 0x0040]),
            (Order::LowFirstSwapped, [0x0040, 0x3b43]),
        ];
        for (order, words) in float {
            assert_eq!(Type::F32.decode(order, &words), Some(187.25), "{order:?}");
            assert_eq!(Type::F32.encode(order, 187.25), Some(words.to_vec()), "{order:?}");
        }
        let integer = [
            (Order::HighFirst, [0x0102, 0x0304]),
            (Order::LowFirst, [0x0304, 0x0102]),
            (Order::HighFirstSwapped, [0x0201, 0x0403]),
            (Order::LowFirstSwapped, [0x0403, 0x0201]),
        ];
        for (order, words) in integer {
            assert_eq!(Type::U32.decode(order, &words), Some(16_909_060.0), "{order:?}");
            assert_eq!(Type::I32.encode(order, 16_909_060.0), Some(words.to_vec()), "{order:?}");
        }
        for order in [Order::HighFirstSwapped, Order::LowFirstSwapped] {
            // 1872 is 0x0750.
            assert_eq!(Type::U16.decode(order, &[0x5007]), Some(1872.0), "{order:?}");
            assert_eq!(Type::I16.encode(order, 1872.0), Some(vec![0x5007]), "{order:?}");
            assert_eq!(Type::Bcd16.decode(order, &[0x7218]), Some(1872.0), "{order:?}");
        }
    }

    #[test]
    fn values_of_four_words_are_read_and_written_in_each_order() {
        // 187.25 is 40 67 68 00 00 00 00 00.
        for (order, words) in [
            (Order::HighFirst, [0x4067, 0x6800, 0, 0]),
            (Order::LowFirst, [0, 0, 0x6800, 0x4067]),
            (Order::HighFirstSwapped, [0x6740, 0x0068, 0, 0]),
            (Order::LowFirstSwapped, [0, 0, 0x0068, 0x6740]),
        ] {
            assert_eq!(Type::F64.decode(order, &words), Some(187.25), "{order:?}");
            assert_eq!(Type::F64.encode(order, 187.25), Some(words.to_vec()), "{order:?}");
        }
        let million = [0, 0, 0x000f, 0x4240];
        assert_eq!(Type::U64.decode(Order::HighFirst, &million), Some(1_000_000.0));
        assert_eq!(Type::U64.encode(Order::HighFirst, 1_000_000.0), Some(million.to_vec()));
        assert_eq!(
            Type::I64.decode(Order::LowFirst, &[0xfffe, 0xffff, 0xffff, 0xffff]),
            Some(-2.0)
        );
        assert_eq!(Type::I64.encode(Order::HighFirst, -1.0), Some(vec![0xffff; 4]));
        assert_eq!(Type::F64.decode(Order::HighFirst, &[0x7ff8, 0, 0, 0]), None, "not a number");
        assert_eq!(Type::F64.decode(Order::HighFirst, &[0x4067, 0x6800, 0]), None, "three words");
    }

    #[test]
    fn a_single_byte_has_a_sign_and_no_order() {
        for order in Order::ALL {
            assert_eq!(Type::U8.decode(order, &[0x00f6]), Some(246.0), "{order:?}");
            assert_eq!(Type::I8.decode(order, &[0x00f6]), Some(-10.0), "{order:?}");
            assert_eq!(Type::I8.encode(order, -10.0), Some(vec![0x00f6]), "{order:?}");
            assert_eq!(Type::U8.encode_bytes(order, 65.0), Some(vec![65]), "{order:?}");
            assert_eq!(Type::U8.decode_bytes(order, &[65]), Some(65.0), "{order:?}");
        }
        assert_eq!(Type::U8.encode(Order::HighFirst, 256.0), None);
        assert_eq!(Type::U16.decode_bytes(Order::HighFirst, &[65]), None, "one byte of two");
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
