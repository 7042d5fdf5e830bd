//! Turns the readings of a frame's samples into its columns.

use std::collections::BTreeMap;

use contract::{Channel, Column, Quality};
use driver::Reading;

use super::Sample;

/// The plausible temperatures, in °C: neither beans nor flame reach a value outside.
const VALID_TEMPERATURE_C: std::ops::RangeInclusive<f64> = -50.0..=600.0;

/// Selects the values of a reading that are used to track the roast.
pub(super) fn roast_sample(t_ms: i64, reading: &Reading) -> roast::sample::Sample {
    let value = |requested: Channel| {
        let found = reading.values.iter().find(|(channel, _)| *channel == requested);
        found.and_then(|(_, value)| *value)
    };
    // Values that not every machine provides are extra channels with these names.
    let extra = |name: &str| value(Channel::Extra(name.into()));
    roast::sample::Sample {
        t_ms,
        bt_c: value(Channel::Bt),
        et_c: value(Channel::Et),
        gas_pct: value(Channel::Gas),
        fan_pct: value(Channel::Fan),
        door_open: extra("doorOpen").map(|open| open > 0.5),
        cracks: extra("cracks"),
        weight_g: extra("weightG"),
        ..Default::default()
    }
}

/// Returns the samples' values by channel: `None` where a sample has no value. A channel without
/// any value gets no column.
pub(super) fn columns(samples: &[(Sample, Option<f64>)]) -> Vec<Column> {
    let mut by_channel: BTreeMap<Channel, Vec<Option<f64>>> = BTreeMap::new();
    for (i, (sample, ror)) in samples.iter().enumerate() {
        let ror = (Channel::Ror, *ror);
        for (channel, value) in sample.reading.values.iter().chain([&ror]) {
            let column =
                by_channel.entry(channel.clone()).or_insert_with(|| vec![None; samples.len()]);
            column[i] = *value;
        }
    }
    let columns = by_channel.into_iter().filter(|(_, values)| values.iter().any(Option::is_some));
    columns
        .map(|(channel, values)| {
            let quality = quality_flags(&channel, &values, samples);
            Column { quality, channel, values }
        })
        .collect()
}

/// Returns the quality flags of values: those that the driver set, and `Range` for values that are
/// not plausible.
fn quality_flags(
    channel: &Channel,
    values: &[Option<f64>],
    samples: &[(Sample, Option<f64>)],
) -> Vec<(u16, Quality)> {
    let valid = match channel {
        Channel::Bt | Channel::Et | Channel::Ambient => VALID_TEMPERATURE_C,
        Channel::Gas | Channel::Fan => 0.0..=100.0,
        _ => f64::NEG_INFINITY..=f64::INFINITY,
    };
    let remark = |i: usize, value: f64| {
        let flag = samples[i].0.reading.quality_flags.iter().find(|(c, _)| c == channel);
        flag.map(|(_, quality)| *quality)
            .or_else(|| (!valid.contains(&value)).then_some(Quality::Range))
    };
    let remarked = values.iter().enumerate().filter_map(|(i, value)| {
        let quality = remark(i, (*value)?)?;
        Some((u16::try_from(i).ok()?, quality))
    });
    remarked.collect()
}
