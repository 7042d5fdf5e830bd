//! Draws a roast as a self-contained SVG: temperatures, rate of rise, controls, marks and phases.

use std::fmt::Write as _;

use contract::EventKind;

use crate::analysis::phase::{Phase, PhaseLimits};
use crate::analysis::{Curve, Marks};
use crate::forecast::Forecast;
use crate::recording::Recording;

const WIDTH: f64 = 1200.0;
const HEIGHT: f64 = 640.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 56.0;
const TOP: f64 = 48.0;
const BOTTOM: f64 = 44.0;
/// The top of the rate of rise's own scale, on the right, °C/min.
const ROR_MAX: f64 = 35.0;
/// The largest number of lines that divide the time: a file whose clock jumped may claim years.
const MINUTE_LINES_MAX: i64 = 500;

const STYLE: &str = "\
text{font:13px system-ui,sans-serif;fill:#33302b}.small{font-size:11px;fill:#6b655c}.end{text-anchor:end}\
.grid{stroke:#e4dfd6}.bt{stroke:#8a3b12;stroke-width:2.2;fill:none}\
.et{stroke:#c58a2b;stroke-width:1.4;fill:none}.ror{stroke:#2f6f7e;stroke-width:1.4;fill:none}\
.ahead{stroke:#8a3b12;stroke-width:1.6;stroke-dasharray:5 4;fill:none}\
.gas{stroke:#b7410e;stroke-opacity:.5;fill:none}.fan{stroke:#5b7fa6;stroke-opacity:.5;fill:none}\
.mark{stroke:#33302b;stroke-dasharray:2 3}.phase{fill-opacity:.10}";

struct PlotArea {
    from_ms: i64,
    to_ms: i64,
    low_c: f64,
    high_c: f64,
}

impl PlotArea {
    fn x(&self, t_ms: i64) -> f64 {
        let span_ms = self.to_ms.saturating_sub(self.from_ms).max(1);
        let share = t_ms.saturating_sub(self.from_ms) as f64 / span_ms as f64;
        LEFT + share * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, c: f64) -> f64 {
        let share = (c - self.low_c) / (self.high_c - self.low_c);
        HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
    }

    fn y_ror(&self, ror: f64) -> f64 {
        self.y(self.low_c + ror / ROR_MAX * (self.high_c - self.low_c))
    }
}

/// Draws a recording with these marks and, if `ahead` is given, with the forecast made at its time.
#[must_use]
pub fn svg(recording: &Recording, marks: &Marks, ahead: Option<&Forecast>) -> String {
    let curve = Curve::of(recording);
    let end = recording.samples.last().map_or(1, |s| s.t_ms);
    let charge = marks.ms(EventKind::Charge);
    let from_ms = charge.map_or(0, |t| t.saturating_sub(60_000).max(0));
    let to_ms = marks.ms(EventKind::Drop).map_or(end, |t| t.saturating_add(60_000).min(end));
    let to_ms = to_ms.max(from_ms.saturating_add(1));
    let shown = |t: i64| (from_ms..=to_ms).contains(&t);
    let values = curve.bt.iter().chain(&curve.et).filter(|c| shown(c.t_ms)).filter_map(|c| c.value);
    let high = values.fold(100.0, f64::max);
    let frame = PlotArea { from_ms, to_ms, low_c: 0.0, high_c: (high / 25.0).ceil() * 25.0 };
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\">\
         <style>{STYLE}</style><rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fffdf9\"/>"
    );
    let title = if recording.title.is_empty() { "Roast" } else { &recording.title };
    text(&mut out, LEFT, 26.0, "", title);
    grid(&mut out, &frame, charge.unwrap_or(from_ms));
    if let Some(charge) = charge {
        phases(&mut out, &frame, marks, charge, to_ms);
    }
    let percent = |value: fn(&crate::sample::Sample) -> Option<f64>| {
        let points = recording.samples.iter().filter(|s| shown(s.t_ms));
        points
            .map(move |s| (s.t_ms, value(s).map(|v| v * frame.high_c / 250.0)))
            .collect::<Vec<_>>()
    };
    line(&mut out, &frame, "gas", percent(|s| s.gas_pct));
    line(&mut out, &frame, "fan", percent(|s| s.fan_pct));
    let clean = |view: &[crate::clean::CleanValue]| {
        view.iter().filter(|c| shown(c.t_ms)).map(|c| (c.t_ms, c.value)).collect::<Vec<_>>()
    };
    line(&mut out, &frame, "et", clean(&curve.et));
    let falls_until_ms = charge.map(|charge| charge.saturating_add(30_000));
    let rate = curve
        .ror
        .iter()
        .filter(|(t, _)| shown(*t) && falls_until_ms.is_none_or(|until| *t > until));
    let scale = frame.high_c / ROR_MAX;
    line(
        &mut out,
        &frame,
        "ror",
        rate.map(|(t, r)| (*t, Some(r * scale).filter(|v| *v >= 0.0))).collect(),
    );
    line(&mut out, &frame, "bt", clean(&curve.bt));
    if let Some(outlook) = ahead.filter(|o| shown(o.t_ms))
        && let Some(now) = curve.bt_at(outlook.t_ms)
    {
        let later = outlook.t_ms.saturating_add(crate::forecast::HORIZON_MS);
        line(
            &mut out,
            &frame,
            "ahead",
            vec![(outlook.t_ms, Some(now)), (later, Some(outlook.bt.c))],
        );
    }
    for kind in EventKind::ALL {
        let Some(t) = marks.ms(kind).filter(|t| shown(*t)) else { continue };
        let (x, bt) = (frame.x(t), curve.bt_at(t));
        let _ = write!(
            out,
            "<line class=\"mark\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{:.1}\"/>",
            HEIGHT - BOTTOM
        );
        let name = kind.as_str().replace('_', " ");
        let label = bt.map_or_else(|| name.clone(), |bt| format!("{name} {bt:.0}°"));
        let y = frame.y(bt.unwrap_or(0.0)) - 8.0;
        // The label is left of its mark where the curve climbs and near the right edge.
        let climbs = matches!(kind, EventKind::DryEnd | EventKind::Fc | EventKind::Sc);
        if climbs || x > WIDTH - RIGHT - 110.0 {
            text(&mut out, x - 4.0, y, "small end", &label);
        } else {
            text(&mut out, x + 4.0, y, "small", &label);
        }
    }
    legend(&mut out);
    out.push_str("</svg>\n");
    out
}

fn grid(out: &mut String, frame: &PlotArea, zero: i64) {
    let mut c = 0.0;
    while c <= frame.high_c {
        let y = frame.y(c);
        let _ = write!(
            out,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>",
            WIDTH - RIGHT
        );
        text(out, 14.0, y + 4.0, "small", &format!("{c:.0}°"));
        c += 25.0;
    }
    for ror in [0.0, 10.0, 20.0, 30.0] {
        text(out, WIDTH - RIGHT + 8.0, frame.y_ror(ror) + 4.0, "small", &format!("{ror:.0}/min"));
    }
    let minute_of = |t_ms: i64| t_ms.saturating_sub(zero).div_euclid(60_000);
    let (first, last) = (minute_of(frame.from_ms).saturating_add(1), minute_of(frame.to_ms));
    let step = usize::try_from(last.saturating_sub(first) / MINUTE_LINES_MAX).unwrap_or(0);
    for minute in (first..=last).step_by(step.saturating_add(1)) {
        let x = frame.x(zero.saturating_add(minute.saturating_mul(60_000)));
        let _ = write!(
            out,
            "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{:.1}\"/>",
            HEIGHT - BOTTOM
        );
        text(out, x - 10.0, HEIGHT - BOTTOM + 18.0, "small", &format!("{minute}:00"));
    }
}

fn phases(out: &mut String, frame: &PlotArea, marks: &Marks, charge: i64, to_ms: i64) {
    let inside = |kind| marks.ms(kind).filter(|t| *t > charge);
    let limits = PhaseLimits {
        charge,
        turned: inside(EventKind::Tp),
        dried: inside(EventKind::DryEnd),
        cracked: inside(EventKind::Fc),
        until: inside(EventKind::Drop).unwrap_or(to_ms),
    };
    for span in limits.spans() {
        #[allow(clippy::cast_possible_truncation)] // seconds of a roast
        let at = |seconds: f64| frame.x(charge.saturating_add((seconds * 1000.0) as i64));
        let (a, b) = (at(span.start_seconds), at(span.end_seconds));
        let colour = match span.phase {
            Phase::Drying => "#7a9a5a",
            Phase::Maillard => "#c58a2b",
            Phase::Development => "#8a3b12",
        };
        let _ = write!(
            out,
            "<rect class=\"phase\" x=\"{a:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{colour}\"/>",
            (b - a).max(0.0),
            HEIGHT - TOP - BOTTOM
        );
        let share = 100.0 * (span.end_seconds - span.start_seconds)
            / (limits.until.saturating_sub(charge).max(1) as f64 / 1000.0);
        let name = format!("{:?} {share:.0} %", span.phase);
        text(out, a + 6.0, TOP + 16.0, "small", &name);
    }
}

/// Draws a line that is interrupted wherever a value is missing.
fn line(out: &mut String, frame: &PlotArea, class: &str, points: Vec<(i64, Option<f64>)>) {
    let mut path = String::new();
    let mut pen = 'M';
    for (t, value) in points {
        match value {
            Some(v) => {
                let _ = write!(path, "{pen}{:.1} {:.1}", frame.x(t), frame.y(v));
                pen = 'L';
            }
            None => pen = 'M',
        }
    }
    if !path.is_empty() {
        let _ = write!(out, "<path class=\"{class}\" d=\"{path}\"/>");
    }
}

fn legend(out: &mut String) {
    let entries = [("bt", "BT"), ("et", "ET"), ("ror", "RoR"), ("gas", "gas"), ("fan", "air")];
    for ((class, name), i) in entries.into_iter().zip(0_u32..) {
        let x = WIDTH - 380.0 + f64::from(i) * 70.0;
        let _ = write!(out, "<path class=\"{class}\" d=\"M{x} 22h22\"/>");
        text(out, x + 28.0, 26.0, "small", name);
    }
}

fn text(out: &mut String, x: f64, y: f64, class: &str, content: &str) {
    let mut safe = String::with_capacity(content.len());
    for c in content.chars().take(80) {
        match c {
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '&' => safe.push_str("&amp;"),
            '"' => safe.push_str("&quot;"),
            c if c.is_control() => safe.push(' '),
            c => safe.push(c),
        }
    }
    let _ = write!(out, "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{safe}</text>");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Sample;

    #[test]
    fn nothing_of_a_recording_becomes_markup() {
        let recording = Recording { title: "<script>&\"".to_owned(), ..Recording::default() };
        let drawn = svg(&recording, &Marks::default(), None);
        assert!(drawn.contains("&lt;script&gt;&amp;&quot;") && !drawn.contains("<script"));
        assert!(drawn.ends_with("</svg>\n"));
    }

    fn grid_lines(samples_at_ms: &[i64]) -> usize {
        let samples = samples_at_ms.iter().map(|t_ms| Sample::bean(*t_ms, Some(150.0))).collect();
        let recording = Recording { samples, ..Recording::default() };
        svg(&recording, &Marks::default(), None).matches("class=\"grid\"").count()
    }

    #[test]
    fn a_recording_that_claims_a_year_is_drawn_with_few_lines() {
        const YEAR_MS: i64 = 365 * 86_400_000;
        assert_eq!(
            grid_lines(&[0, 90_000]).abs_diff(grid_lines(&[0, 690_000])),
            10,
            "one a minute"
        );
        assert!(grid_lines(&[0, 1_000, YEAR_MS]) < 1_000);
        assert!(grid_lines(&[i64::MIN, 0, i64::MAX]) < 1_000, "times at the limits of a number");
    }
}
