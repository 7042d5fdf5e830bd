//! Curves that the tests make.

use roast::recording::Recording;
use roast::sample::Sample;

/// Returns a recording at 1 Hz of a bean curve over the seconds.
pub fn made(seconds: i64, bt: impl Fn(f64) -> f64) -> Recording {
    let samples = (0..seconds).map(|s| Sample::bean(s * 1000, Some(bt(s as f64)))).collect();
    Recording { samples, ..Recording::default() }
}

/// Returns a bean curve: 60 s at 190 °C, CHARGE, turning point about a minute later, DROP at
/// `end`, then cooling.
pub fn curve(end: f64, warmer: f64) -> impl Fn(f64) -> f64 {
    let rising =
        move |t: f64| 230.0 + warmer - 205.0 * (-t / 230.0).exp() + 165.0 * (-t / 18.0).exp();
    move |s| match s {
        s if s <= 60.0 => 190.0 + warmer,
        s if s <= end => rising(s - 60.0),
        s => (rising(end - 60.0) - (s - end) * 1.5).max(60.0),
    }
}
