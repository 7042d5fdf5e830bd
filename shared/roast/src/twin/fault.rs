//! Applies faults of probes, links and machines to a clean stream of samples, as real ones have
//! them.
//!
//! Each fault has a kind and a time window. The input is the complete stream; the output is what a
//! receiver would get: samples changed, lost, doubled or out of order.

use crate::noise::Noise;
use crate::sample::Sample;

/// A kind of fault, and its parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// The probes give no reading.
    Dropout,
    /// Single bean readings are wrong by `off_c`, °C; on average one in `one_in` samples.
    Spike {
        /// The error of a wrong reading, °C.
        off_c: f64,
        /// The mean number of samples for each wrong one.
        one_in: u32,
    },
    /// All readings stay at their first value of the window.
    Stuck,
    /// The bean probe reports °F.
    UnitFlip,
    /// Bean readings are rounded down to multiples of `step_c`, °C.
    Quantised {
        /// The step between two readings, °C.
        step_c: f64,
    },
    /// The probes measure only every `every_ms`, and are polled more often.
    Staircase {
        /// The time between two measurements, ms.
        every_ms: i64,
    },
    /// The clock is set forward by `by_ms` (backward if negative), and stays set after the window.
    ClockStep {
        /// The change of the clock, ms.
        by_ms: i64,
    },
    /// No sample arrives.
    LinkCut,
    /// Every sample arrives twice.
    Doubled,
    /// Samples arrive out of order: neighbours are swapped.
    Shuffled,
}

/// A fault and its time window, in ms of the stream. `to_ms` is exclusive.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Window {
    /// The fault.
    pub fault: Fault,
    /// The start, included.
    pub from_ms: i64,
    /// The end, excluded.
    pub to_ms: i64,
}

/// Returns the stream as it arrives, with the faults applied in order. The same seed gives the same
/// stream.
#[must_use]
pub fn apply(samples: &[Sample], windows: &[Window], seed: u64) -> Vec<Sample> {
    let mut out = samples.to_vec();
    for (window, stream) in windows.iter().zip(1..) {
        out = apply_window(&out, *window, &mut Noise::new(seed, stream));
    }
    out
}

fn apply_window(samples: &[Sample], window: Window, noise: &mut Noise) -> Vec<Sample> {
    let mut out: Vec<Sample> = Vec::with_capacity(samples.len());
    let mut frozen: Option<(i64, Sample)> = None;
    for sample in samples {
        if !(window.from_ms..window.to_ms).contains(&sample.t_ms) {
            // A clock that was set stays set after the window.
            if let Fault::ClockStep { by_ms } = window.fault
                && sample.t_ms >= window.to_ms
            {
                out.push(Sample { t_ms: sample.t_ms.saturating_add(by_ms), ..*sample });
            } else {
                out.push(*sample);
            }
            continue;
        }
        let mut hurt = *sample;
        match window.fault {
            Fault::Dropout => (hurt.bt_c, hurt.et_c) = (None, None),
            Fault::Spike { off_c, one_in } => {
                if noise.uniform() * f64::from(one_in.max(1)) < 1.0 {
                    hurt.bt_c = hurt.bt_c.map(|bt| bt + off_c);
                }
            }
            Fault::Stuck => {
                let (_, first) = *frozen.get_or_insert((hurt.t_ms, hurt));
                hurt = Sample { t_ms: hurt.t_ms, ..first };
            }
            Fault::UnitFlip => hurt.bt_c = hurt.bt_c.map(|bt| bt * 1.8 + 32.0),
            Fault::Quantised { step_c } => {
                hurt.bt_c = hurt.bt_c.map(|bt| (bt / step_c).floor() * step_c);
            }
            Fault::Staircase { every_ms } => {
                let (since, old) = *frozen.get_or_insert((hurt.t_ms, hurt));
                if hurt.t_ms.saturating_sub(since) >= every_ms {
                    frozen = Some((hurt.t_ms, hurt));
                } else {
                    (hurt.bt_c, hurt.et_c) = (old.bt_c, old.et_c);
                }
            }
            Fault::ClockStep { by_ms } => hurt.t_ms = hurt.t_ms.saturating_add(by_ms),
            Fault::LinkCut => continue,
            Fault::Doubled => out.push(hurt),
            Fault::Shuffled => {
                if let Some(last) = out.pop() {
                    out.push(hurt);
                    hurt = last;
                }
            }
        }
        out.push(hurt);
    }
    out
}
