//! Upstream Sim-Corp's own generator: no physics, only a curve between targets. Kept for clients
//! that compare with it; selected by `engine=reference`.

use contract::EventKind;

/// The parameters of a simulated roast, with upstream's defaults.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LegacyRequest {
    /// The weight of the green beans, kg.
    pub batch_kg: f64,
    /// The bean temperature at CHARGE, °C.
    pub charge_c: f64,
    /// The time of first crack, s.
    pub first_crack_s: f64,
    /// The time of DROP, s.
    pub drop_s: f64,
    /// The highest bean temperature, °C.
    pub max_c: f64,
    /// The time between two points, s.
    pub interval_s: f64,
    /// The standard deviation of the noise, °C.
    pub noise_c: f64,
    /// The seed of the random numbers: the same seed gives the same roast.
    pub seed: u32,
}

impl Default for LegacyRequest {
    fn default() -> Self {
        Self {
            batch_kg: 5.0,
            charge_c: 180.0,
            first_crack_s: 480.0,
            drop_s: 600.0,
            max_c: 220.0,
            interval_s: 2.0,
            noise_c: 0.5,
            seed: 42,
        }
    }
}

/// One point, with all values rounded to two decimals.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LegacyPoint {
    /// Time from CHARGE, s.
    pub t_s: f64,
    /// Bean temperature, °C.
    pub bt_c: f64,
    /// Environment temperature, °C.
    pub et_c: f64,
    /// Rise from the point before, °C/min.
    pub ror_c_per_min: f64,
}

/// The maximum number of points. Upstream has no bound and crashes on larger requests.
pub const POINTS_MAX: usize = 100_000;

/// The reason why a request is invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// A number is not finite, is negative, or is 0 where that is not allowed.
    #[error("every number must be finite and above zero")]
    Number,
    /// The roast would have more than [`POINTS_MAX`] points.
    #[error("more than {POINTS_MAX} points: ask for a longer interval or a shorter roast")]
    TooLong,
}

/// Upstream's generator of uniform numbers (a linear congruence) and normal ones (Box–Muller).
struct Random {
    state: u32,
    spare: Option<f64>,
}

impl Random {
    const fn new(seed: u32) -> Self {
        Self { state: if seed == 0 { 0x1ab_cdef } else { seed }, spare: None }
    }

    fn uniform(&mut self) -> f64 {
        self.state = self.state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f64::from(self.state) / f64::from(u32::MAX)
    }

    fn normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        let u = self.uniform().max(f64::EPSILON);
        let v = self.uniform();
        let radius = (-2.0 * u.ln()).sqrt();
        let angle = 2.0 * std::f64::consts::PI * v;
        self.spare = Some(radius * angle.sin());
        radius * angle.cos()
    }
}

/// A simulated roast: its points, and its events with their times, s.
#[derive(Debug, Clone, PartialEq)]
pub struct LegacyRoast {
    /// The points, in the order of time.
    pub points: Vec<LegacyPoint>,
    /// The events, each with its time from CHARGE, s.
    pub events: Vec<(EventKind, f64)>,
}

/// Simulates the roast of a request.
///
/// # Errors
/// When a number is not above zero, or the roast would have too many points.
pub fn simulate(r: &LegacyRequest) -> Result<LegacyRoast, RequestError> {
    let positive = [r.batch_kg, r.first_crack_s, r.drop_s, r.max_c, r.interval_s];
    let sound = positive.iter().all(|v| v.is_finite() && *v > 0.0)
        && r.charge_c.is_finite()
        && r.noise_c.is_finite()
        && r.noise_c >= 0.0;
    if !sound {
        return Err(RequestError::Number);
    }
    if r.drop_s / r.interval_s > POINTS_MAX as f64 {
        return Err(RequestError::TooLong);
    }
    let mut random = Random::new(r.seed);
    // Like upstream's, these limits may cross on odd targets: the upper one wins.
    let clamp = |x: f64, low: f64, high: f64| x.max(low).min(high);
    let turning = clamp(60.0 + 30.0 * random.uniform(), 30.0, r.first_crack_s - 30.0);
    let crack = clamp(r.first_crack_s + 10.0 * random.normal(), turning + 30.0, r.drop_s - 30.0);
    let drop = clamp(r.drop_s + 8.0 * random.normal(), crack + 30.0, r.drop_s);
    let mut points: Vec<LegacyPoint> = Vec::new();
    let mut before: Option<(f64, f64)> = None;
    for i in 0_u32.. {
        let t_s = f64::from(i) * r.interval_s;
        let last = t_s >= r.drop_s;
        let t_s = t_s.min(r.drop_s);
        let (bt_c, et_c) = sample(r, t_s, before, random.normal());
        let rise = before.map_or(0.0, |(t0, bt0)| (bt_c - bt0) / f64::max(t_s - t0, 1e-9) * 60.0);
        before = Some((t_s, bt_c));
        points.push(LegacyPoint {
            t_s: round(t_s),
            bt_c: round(bt_c),
            et_c: round(et_c),
            ror_c_per_min: round(rise),
        });
        if last {
            break;
        }
    }
    let events = vec![
        (EventKind::Charge, 0.0),
        (EventKind::Tp, round(turning)),
        (EventKind::Fc, round(crack)),
        (EventKind::Drop, round(drop)),
    ];
    Ok(LegacyRoast { points, events })
}

/// Returns BT and ET at a time, °C; `before` is the time and BT of the sample before.
fn sample(r: &LegacyRequest, t_s: f64, before: Option<(f64, f64)>, normal: f64) -> (f64, f64) {
    let fc_ratio = (r.first_crack_s / r.drop_s).clamp(0.2, 0.9);
    let batch = (r.batch_kg / 5.0).clamp(0.5, 1.5);
    let fc_c = r.charge_c + (r.max_c - r.charge_c) * (0.7 + 0.05 * (1.0 - batch));
    let ratio = t_s / r.drop_s;
    let base = if ratio <= fc_ratio {
        let x = ratio / fc_ratio;
        r.charge_c + (fc_c - r.charge_c) * x * x * (3.0 - 2.0 * x)
    } else {
        let x = (ratio - fc_ratio) / (1.0 - fc_ratio);
        fc_c + (r.max_c - fc_c) * (1.0 - (1.0 - x) * (1.0 - x) * (1.0 - x))
    };
    let mut bt = (base + r.noise_c * normal).max(r.charge_c).min(r.max_c);
    if let Some((_, bt0)) = before.filter(|(_, bt0)| bt < *bt0) {
        bt = bt0 - f64::min(0.5, bt0 - r.charge_c);
    }
    let et = (bt + 12.0 * (-2.5 * ratio).exp() + 3.0).min(r.max_c + 10.0);
    (bt, et)
}

fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seed_42_reproduces_upstreams_roast() {
        let LegacyRoast { points, events } = simulate(&LegacyRequest::default()).unwrap();
        assert_eq!(points.len(), 301);
        let first: Vec<f64> = points.iter().take(4).map(|p| p.bt_c).collect();
        assert_eq!(first, [180.0, 180.61, 180.11, 180.45]);
        let last = points.last().unwrap();
        assert_eq!((last.bt_c, last.et_c, last.ror_c_per_min), (220.0, 223.99, 7.78));
        let times: Vec<f64> = events.iter().map(|(_, t)| *t).collect();
        assert_eq!(times, [0.0, 67.57, 460.51, 591.77]);
    }

    #[test]
    fn requests_that_crash_upstream_are_refused() {
        let tiny = LegacyRequest { interval_s: 1e-9, ..LegacyRequest::default() };
        assert_eq!(simulate(&tiny), Err(RequestError::TooLong));
        let none = LegacyRequest { drop_s: f64::NAN, ..LegacyRequest::default() };
        assert_eq!(simulate(&none), Err(RequestError::Number));
    }
}
