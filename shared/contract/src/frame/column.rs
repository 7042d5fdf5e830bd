//! The columns of a frame: the values of one channel, and what is wrong with them.

use super::SAMPLES_MAX;
use crate::cbor::{DecodeError, NUMBER_MAX, Reader, infallible};

/// The largest scale a column may use: six decimals.
const DECIMALS_MAX: u8 = 6;

/// A quality flag: what is wrong with one value. A value without a flag is good; a missing value
/// is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quality {
    /// Outside the range of the channel.
    Range,
    /// Further from its neighbours than the bean mass can physically change.
    Spike,
    /// The machine repeats an old value.
    Stale,
    /// Probably °F where °C is expected, or the reverse.
    UnitSuspect,
}

impl Quality {
    /// Returns the number on the wire.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Range => 1,
            Self::Spike => 2,
            Self::Stale => 3,
            Self::UnitSuspect => 4,
        }
    }

    /// Returns the flag of a number on the wire; `None` if the number is unknown.
    #[must_use]
    pub const fn from_code(code: u64) -> Option<Self> {
        match code {
            1 => Some(Self::Range),
            2 => Some(Self::Spike),
            3 => Some(Self::Stale),
            4 => Some(Self::UnitSuspect),
            _ => None,
        }
    }
}

/// What a column holds. The unit is part of its name, as in upstream Sim-Corp's JSON.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Channel {
    /// Bean temperature, °C.
    Bt,
    /// Environment (exhaust) temperature, °C.
    Et,
    /// Rate of rise of BT, °C/min. The edge agent derives it with the same estimator as the cloud.
    Ror,
    /// Burner power, %.
    Gas,
    /// Fan, %.
    Fan,
    /// Drum speed, 1/min.
    Drum,
    /// Room temperature, °C.
    Ambient,
    /// Any other value that a machine offers, by its own name.
    Extra(Box<str>),
}

impl Channel {
    /// The channels with a name of their own: all but [`Channel::Extra`].
    pub const STANDARD: [Self; 7] =
        [Self::Bt, Self::Et, Self::Ror, Self::Gas, Self::Fan, Self::Drum, Self::Ambient];

    /// Returns the name on the wire.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Bt => "btC",
            Self::Et => "etC",
            Self::Ror => "rorCPerMin",
            Self::Gas => "gasPct",
            Self::Fan => "fanPct",
            Self::Drum => "drumRpm",
            Self::Ambient => "ambientC",
            Self::Extra(name) => name,
        }
    }

    /// Parses a name. Returns `None` if it is neither a standard name nor 1–32 characters of
    /// `A–Z a–z 0–9 _`.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        if let Some(standard) = Self::STANDARD.into_iter().find(|c| c.as_str() == name) {
            return Some(standard);
        }
        let fits = (1..=32).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        fits.then(|| Self::Extra(name.into()))
    }
}

/// One channel's values over the frame's samples.
#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    /// What the values are.
    pub channel: Channel,
    /// One value a sample; `None` means missing, never zero.
    pub values: Vec<Option<f64>>,
    /// Quality flags by sample index, ascending. A value without a flag is good.
    pub quality: Vec<(u16, Quality)>,
}

/// Returns the smallest number of decimals that keeps every value exactly, if there is one.
#[allow(clippy::float_cmp)] // exact equality is intended
fn decimals_of(values: &[Option<f64>]) -> Option<u8> {
    const WHOLE_MAX: f64 = 1e12;
    let mut decimals = 0_u8;
    for value in values.iter().flatten() {
        while {
            let scaled = value * power_of_ten(decimals);
            scaled.abs() > WHOLE_MAX || scaled.round() / power_of_ten(decimals) != *value
        } {
            if decimals >= DECIMALS_MAX {
                return None;
            }
            decimals = decimals.saturating_add(1);
        }
    }
    // A later value may have needed more decimals than an earlier one was checked with.
    let exact = |v: &f64| {
        let scaled = v * power_of_ten(decimals);
        scaled.abs() <= WHOLE_MAX && scaled.round() / power_of_ten(decimals) == *v
    };
    values.iter().flatten().all(exact).then_some(decimals)
}

/// The largest number of items in a column's remarks: an index and a code for each sample.
const QUALITY_ITEMS_MAX: u64 = 2 * SAMPLES_MAX as u64;

fn power_of_ten(decimals: u8) -> f64 {
    10_f64.powi(i32::from(decimals))
}

impl Column {
    /// Encodes the column as `[name, decimals|null, values, quality]`. With decimals, the values
    /// are integers, each the difference to the one before; without, they are doubles. Both forms
    /// may contain nulls.
    pub(super) fn encode(&self, e: &mut minicbor::Encoder<&mut Vec<u8>>) {
        infallible(e.array(4));
        infallible(e.str(self.channel.as_str()));
        if let Some(decimals) = decimals_of(&self.values) {
            infallible(e.u8(decimals));
            infallible(e.array(self.values.len() as u64));
            let mut before = 0_i64;
            for value in &self.values {
                match value {
                    Some(value) => {
                        // |scaled| ≤ 1e12, checked by `decimals_of`.
                        #[allow(clippy::cast_possible_truncation)]
                        let scaled = (value * power_of_ten(decimals)).round() as i64;
                        infallible(e.i64(scaled.saturating_sub(before)));
                        before = scaled;
                    }
                    None => {
                        infallible(e.null());
                    }
                }
            }
        } else {
            infallible(e.null());
            infallible(e.array(self.values.len() as u64));
            for value in &self.values {
                match value {
                    Some(value) => infallible(e.f64(*value)),
                    None => infallible(e.null()),
                };
            }
        }
        infallible(e.array((self.quality.len() as u64).saturating_mul(2)));
        for (index, quality) in &self.quality {
            infallible(infallible(e.u16(*index)).u8(quality.code()));
        }
    }

    pub(super) fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        r.tuple("columns[]", 4)?;
        let name = r.text("columns[].name")?;
        let channel = Channel::parse(name).ok_or_else(|| {
            r.malformed("columns[].name", format!("{name:.40?} is not 1–32 letters, digits or _"))
        })?;
        let decimals = if r.take_null("columns[].decimals")? {
            None
        } else {
            Some(r.up_to("columns[].decimals", u64::from(DECIMALS_MAX), "at most 6")?)
        };
        let count = r.array("columns[].values", SAMPLES_MAX as u64)?;
        let mut values = Vec::with_capacity(count);
        let mut sum = 0_i64;
        for _ in 0..count {
            values.push(if r.take_null("columns[].values")? {
                None
            } else if let Some(decimals) = decimals {
                sum = sum
                    .checked_add(r.i64("columns[].values")?)
                    .filter(|sum| sum.unsigned_abs() <= NUMBER_MAX)
                    .ok_or_else(|| r.malformed("columns[].values", "larger than 2^53"))?;
                #[allow(clippy::cast_possible_truncation)]
                let value = sum as f64 / power_of_ten(decimals as u8);
                Some(value)
            } else {
                Some(r.f64("columns[].values")?)
            });
        }
        let length = r.array("columns[].quality", QUALITY_ITEMS_MAX)?;
        if length % 2 != 0 {
            return Err(r.malformed("columns[].quality", "pairs of index and code"));
        }
        let mut quality: Vec<(u16, Quality)> = Vec::with_capacity(length / 2);
        for _ in 0..length / 2 {
            let index = r.up_to("columns[].quality", SAMPLES_MAX as u64, "an index of a value")?;
            let code = r.u64("columns[].quality")?;
            let remark = Quality::from_code(code)
                .ok_or_else(|| r.malformed("columns[].quality", format!("unknown code {code}")))?;
            #[allow(clippy::cast_possible_truncation)] // at most SAMPLES_MAX = 4096
            let index = index as u16;
            if quality.last().is_some_and(|(before, _)| *before >= index) {
                return Err(r.malformed("columns[].quality", "indexes that do not ascend"));
            }
            quality.push((index, remark));
        }
        Ok(Self { channel, values, quality })
    }
}
