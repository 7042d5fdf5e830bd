//! Detection of crash and flick. After first crack the rate of rise should fall further, smoothly.
//! A crash is a fall far below its trend before first crack; a flick is a rise after that fall.
//!
//! Both are measured relative to the machine's own rate at first crack (7 °C/min on one drum is 12
//! on another) and must last for some time, because a fixed limit for one sample suits no machine.

use serde::Serialize;

use super::{Curve, fit_line, tenths};

/// The trend is fitted over this time before first crack.
const BEFORE_MS: i64 = 90_000;
/// The rate is compared with the trend for this time after first crack.
const AFTER_MS: i64 = 180_000;
/// A crash or flick must reach this share of the rate at first crack and this many °C/min, for
/// [`LASTS_MS`].
const CRASH_SHARE: f64 = 0.35;
const CRASH_C_PER_MIN: f64 = 1.5;
const FLICK_SHARE: f64 = 0.25;
const FLICK_C_PER_MIN: f64 = 1.0;
const LASTS_MS: i64 = 10_000;

/// The crash and the flick after first crack.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CrashFlick {
    /// Whether the rate of rise crashed.
    pub crash_detected: bool,
    /// Whether the rate of rise flicked.
    pub flick_detected: bool,
    /// When the rate of rise was furthest below its trend, s from CHARGE.
    pub crash_at_seconds: Option<f64>,
    /// When the flick began, s from CHARGE.
    pub flick_at_seconds: Option<f64>,
    /// The evidence.
    pub details: CrashFlickDetails,
}

/// The evidence for a crash or a flick, °C/min.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CrashFlickDetails {
    /// The rate of rise at first crack, by the trend before it, °C/min.
    pub ror_at_fc: Option<f64>,
    /// The deepest fall below the trend, °C/min.
    pub deepest_c_per_min: Option<f64>,
    /// The highest rise after the lowest rate, °C/min.
    pub rise_c_per_min: Option<f64>,
}

/// Detects a crash and a flick between first crack (`cracked`) and `until`; times are ms of the
/// recording. Nothing is detected without a first crack.
pub fn crash_flick(curve: &Curve, charge: i64, cracked: Option<i64>, until: i64) -> CrashFlick {
    let mut result = CrashFlick::default();
    let Some(cracked) = cracked else { return result };
    let minutes = |t: i64| t.saturating_sub(cracked) as f64 / 60_000.0;
    let from = cracked.saturating_sub(BEFORE_MS);
    let before: Vec<(f64, f64)> =
        curve.ror_between(from, cracked).map(|(t, r)| (minutes(t), r)).collect();
    let Some((slope, at_fc, _)) = fit_line(&before) else { return result };
    result.details.ror_at_fc = Some(tenths(at_fc));
    // A rate that rose into first crack is not expected to continue to rise.
    let slope = slope.clamp(-4.0, 0.0);
    let end = until.min(cracked.saturating_add(AFTER_MS));
    let after: Vec<(i64, f64)> = curve.ror_between(cracked, end).collect();
    let under = |t: i64, ror: f64| (at_fc + slope * minutes(t)).max(0.0) - ror;
    let limit = CRASH_C_PER_MIN.max(CRASH_SHARE * at_fc);
    let Some(low) = after.iter().copied().reduce(|a, b| if b.1 < a.1 { b } else { a }) else {
        return result;
    };
    let deepest = after.iter().map(|(t, r)| under(*t, *r)).fold(f64::MIN, f64::max);
    result.details.deepest_c_per_min = Some(tenths(deepest));
    if let Some(at) = first_sustained(&after, |t, ror| under(t, ror) >= limit) {
        result.crash_detected = true;
        let worst = after.iter().filter(|(t, _)| *t >= at).copied();
        let worst = worst.reduce(|a, b| if under(b.0, b.1) > under(a.0, a.1) { b } else { a });
        result.crash_at_seconds =
            worst.map(|(t, _)| tenths(t.saturating_sub(charge) as f64 / 1000.0));
    }
    let rise = FLICK_C_PER_MIN.max(FLICK_SHARE * at_fc);
    let later: Vec<(i64, f64)> = after.into_iter().filter(|(t, _)| *t > low.0).collect();
    let highest = later.iter().map(|(_, r)| r - low.1).fold(0.0, f64::max);
    result.details.rise_c_per_min = Some(tenths(highest));
    if let Some(at) = first_sustained(&later, |_, ror| ror - low.1 >= rise) {
        result.flick_detected = true;
        result.flick_at_seconds = Some(tenths(at.saturating_sub(charge) as f64 / 1000.0));
    }
    result
}

/// Returns the start of the first span of at least [`LASTS_MS`] in which `holds` is always true.
fn first_sustained(rates: &[(i64, f64)], holds: impl Fn(i64, f64) -> bool) -> Option<i64> {
    let mut since = None;
    for (t, ror) in rates {
        if !holds(*t, *ror) {
            since = None;
            continue;
        }
        let from = *since.get_or_insert(*t);
        if t.saturating_sub(from) >= LASTS_MS {
            return Some(from);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(scale: f64, ror: impl Fn(f64) -> f64) -> CrashFlick {
        let ror = (0..=700).map(|s| (s * 1000, scale * ror(s as f64))).collect();
        let curve = Curve { ror, ..Curve::default() };
        crash_flick(&curve, 0, Some(480_000), 620_000)
    }

    #[test]
    fn crash_and_flick_are_the_same_on_a_slow_drum_and_on_a_fast_one() {
        let smooth = |s: f64| 20.0 - s / 48.0;
        let crash = |s: f64| match s {
            s if s < 490.0 => smooth(s),
            s if s < 530.0 => smooth(s) - 5.0,
            s if s < 580.0 => smooth(s) - 4.5 + (s - 530.0) / 9.0,
            s => smooth(s) + 1.0,
        };
        for scale in [0.7, 1.0, 1.5] {
            let none = shape(scale, smooth);
            assert!(!none.crash_detected && !none.flick_detected, "{none:?}");
            let both = shape(scale, crash);
            assert!(both.crash_detected && both.flick_detected, "{scale}: {both:?}");
            assert!((490.0..=530.0).contains(&both.crash_at_seconds.unwrap()), "{both:?}");
            assert!(both.flick_at_seconds > both.crash_at_seconds);
        }
    }

    #[test]
    fn a_short_dip_is_not_a_crash() {
        let blip = |s: f64| if (500.0..505.0).contains(&s) { 1.0 } else { 20.0 - s / 48.0 };
        assert!(!shape(1.0, blip).crash_detected);
    }
}
