//! Parses the times of tables: numbers, clocks and dates, and puts them in order.
//!
//! A unit is never guessed from the numbers: it is the one that the column names, or seconds.

use contract::EpochMs;

use super::table::number;

const MINUTE_MS: i64 = 60_000;
const HOUR_MS: i64 = 60 * MINUTE_MS;
const HALF_DAY_MS: i64 = 12 * HOUR_MS;
const DAY_MS: i64 = 24 * HOUR_MS;
/// A larger number of ms is not a time.
const MS_MAX: f64 = 1e15;
/// 2000-01-01 and 10000-01-01: a number between them counts from 1970, because no recording is
/// thirty years long.
const SINCE_1970_MS: std::ops::Range<f64> = 946_684_800_000.0..253_402_300_800_000.0;
/// A wall clock that goes back by less repeats a row; by more, it was set.
const JITTER_MS: i64 = 2_000;
/// How often a wall clock may be set in one recording.
const CLOCK_SETS_MAX: u32 = 4;

/// The unit of a time that is a plain number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeUnit {
    Milliseconds,
    Seconds,
    Minutes,
}

impl TimeUnit {
    const fn ms(self) -> f64 {
        match self {
            Self::Milliseconds => 1.0,
            Self::Seconds => 1_000.0,
            Self::Minutes => 60_000.0,
        }
    }
}

/// A time of a row, in ms, by what it counts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowTime {
    /// A number from any origin.
    Elapsed(i64),
    /// Minutes and seconds, which may begin again after an hour.
    MinuteClock(i64),
    /// A time of day, or a date without a time zone.
    Local(i64),
    /// A date with a time zone, or a number since 1970.
    Instant(EpochMs),
}

impl RowTime {
    /// Returns the time as an instant; `None` if its origin or its time zone is unknown.
    pub const fn instant(self) -> Option<EpochMs> {
        match self {
            Self::Instant(at) => Some(at),
            Self::Elapsed(_) | Self::MinuteClock(_) | Self::Local(_) => None,
        }
    }

    const fn ms(self) -> i64 {
        match self {
            Self::Elapsed(ms) | Self::MinuteClock(ms) | Self::Local(ms) => ms,
            Self::Instant(at) => at.0,
        }
    }
}

/// Parses a time: a number, `mm:ss`, `hh:mm:ss`, or an ISO, German or US date with a clock. With
/// `day_first`, `1/2/2026` is 1 February.
pub fn parse(text: &str, unit: TimeUnit, day_first: bool) -> Option<RowTime> {
    let text = text.trim();
    if let Some(value) = number(text) {
        return plain(value * unit.ms());
    }
    if let Some(instant) = EpochMs::parse_iso(&text.replacen(' ', "T", 1)) {
        return Some(RowTime::Instant(instant));
    }
    if let Some((date, clock)) = split_date(text, day_first) {
        return dated(date, clock);
    }
    clock_ms(text, false)
}

/// Returns true for a date that can only be read with its day first, such as `25/10/2026`.
pub fn is_day_first(text: &str) -> bool {
    let first = text.split_once('/').and_then(|(first, _)| first.trim().parse::<u32>().ok());
    first.is_some_and(|first| (13..=31).contains(&first))
}

#[allow(clippy::cast_possible_truncation)] // checked against its bounds
fn plain(ms: f64) -> Option<RowTime> {
    if SINCE_1970_MS.contains(&ms) {
        return Some(RowTime::Instant(EpochMs(ms.round() as i64)));
    }
    (ms.abs() < MS_MAX).then(|| RowTime::Elapsed(ms.round() as i64))
}

/// Splits a text into year, month and day, and the clock after them.
fn split_date(text: &str, day_first: bool) -> Option<([u32; 3], &str)> {
    let end = text.find([' ', 'T']).unwrap_or(text.len());
    let (date, clock) = text.split_at(end);
    let date = date.trim_end_matches(',');
    let separator = ['-', '/', '.'].into_iter().find(|separator| date.contains(*separator))?;
    let parts: Option<Vec<u32>> = date.split(separator).map(|part| part.parse().ok()).collect();
    let &[a, b, c] = parts?.as_slice() else { return None };
    let [year, month, day] = match separator {
        _ if a > 31 => [a, b, c],
        '/' if !day_first => [c, a, b],
        _ => [c, b, a],
    };
    let year = if year < 100 { year.saturating_add(2000) } else { year };
    Some(([year, month, day], clock.trim_start_matches(['T', ' '])))
}

fn dated([year, month, day]: [u32; 3], clock: &str) -> Option<RowTime> {
    let midnight = EpochMs::parse_iso(&format!("{year:04}-{month:02}-{day:02}T00:00:00Z"))?;
    let (clock, zone_ms) = split_zone(clock)?;
    let local = midnight.plus_ms(clock_ms(clock, true)?.ms());
    Some(match zone_ms {
        Some(zone_ms) => RowTime::Instant(local.plus_ms(zone_ms.saturating_neg())),
        None => RowTime::Local(local.0),
    })
}

/// Splits a clock from its time zone, in ms east of UTC. `None`: the zone cannot be read.
fn split_zone(text: &str) -> Option<(&str, Option<i64>)> {
    for name in ["Z", "UTC", "GMT"] {
        if let Some(clock) = text.strip_suffix(name) {
            return Some((clock.trim_end(), Some(0)));
        }
    }
    let Some(at) = text.rfind(['+', '-']) else { return Some((text, None)) };
    let (clock, zone) = text.split_at(at);
    let digits: String = zone.chars().filter(char::is_ascii_digit).collect();
    let digits_value: i64 = digits.parse().ok()?;
    let minutes = match digits.len() {
        2 => digits_value.saturating_mul(60),
        4 => (digits_value / 100).saturating_mul(60).saturating_add(digits_value % 100),
        _ => return None,
    };
    let minute_ms = if zone.starts_with('-') { -MINUTE_MS } else { MINUTE_MS };
    Some((clock.trim_end(), Some(minutes.saturating_mul(minute_ms))))
}

/// Parses `h:mm:ss`, with a fraction of a second and AM or PM if there are any. Two parts are
/// `h:mm` in a time of day, else `m:ss`.
#[allow(clippy::cast_possible_truncation)] // checked against its bounds
fn clock_ms(text: &str, of_day: bool) -> Option<RowTime> {
    let upper = text.trim().to_ascii_uppercase();
    let (unsigned, sign) = match upper.strip_prefix('-') {
        Some(rest) => (rest, -1.0),
        None => (upper.as_str(), 1.0),
    };
    let (clock, afternoon) = match (unsigned.strip_suffix("AM"), unsigned.strip_suffix("PM")) {
        (Some(clock), _) => (clock, Some(0.0)),
        (_, Some(clock)) => (clock, Some(12.0)),
        (None, None) => (unsigned, None),
    };
    let of_day = of_day || afternoon.is_some();
    let parts: Option<Vec<f64>> = clock.split(':').map(clock_part).collect();
    let parts = parts?;
    let (hours, minutes, seconds) = match parts.as_slice() {
        [hours, minutes, seconds] => (*hours, *minutes, *seconds),
        [hours, minutes] if of_day => (*hours, *minutes, 0.0),
        [minutes, seconds] => (0.0, *minutes, *seconds),
        _ => return None,
    };
    if hours >= 10_000.0 || minutes >= 100_000.0 || seconds >= 1e9 {
        return None;
    }
    let hours = afternoon.map_or(hours, |afternoon| hours % 12.0 + afternoon);
    let ms = (sign * (hours * 3600.0 + minutes * 60.0 + seconds) * 1000.0).round() as i64;
    let whole = of_day || parts.len() == 3;
    Some(if whole { RowTime::Local(ms) } else { RowTime::MinuteClock(ms) })
}

/// Parses digits with at most one decimal separator.
fn clock_part(text: &str) -> Option<f64> {
    let plain = text.trim().replace(',', ".");
    let digits = plain.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    if digits { plain.parse().ok() } else { None }
}

/// What a row's time is, compared with the row before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Later: ms from the first row.
    To(i64),
    /// The same time again.
    Repeated,
    /// Earlier, and not because a clock was set.
    Back,
}

/// Turns the times of successive rows into ms from the first one. A clock that goes back an hour,
/// passes midnight or noon, or is set, goes on where it was.
#[derive(Debug, Default)]
pub struct Timeline {
    last: Option<i64>,
    elapsed: i64,
    step: i64,
    clock_sets: u32,
}

impl Timeline {
    /// Adds the next row's time. A row that is repeated or goes back does not count.
    pub fn advance(&mut self, time: RowTime) -> Step {
        let now = time.ms();
        let Some(last) = self.last else {
            self.last = Some(now);
            return Step::To(0);
        };
        let passed = now.saturating_sub(last);
        if passed == 0 {
            return Step::Repeated;
        }
        let step =
            if passed > 0 { Some(self.forward(passed, time)) } else { self.back(passed, time) };
        let Some(step) = step else { return Step::Back };
        self.last = Some(now);
        self.step = step;
        self.elapsed = self.elapsed.saturating_add(step);
        Step::To(self.elapsed)
    }

    /// Returns the ms that passed. A local clock that leaves out an hour was set to summer time.
    fn forward(&self, passed: i64, time: RowTime) -> i64 {
        let RowTime::Local(now) = time else { return passed };
        let without = passed.saturating_sub(HOUR_MS);
        let summer = (1..=MINUTE_MS).contains(&without) && now.rem_euclid(HOUR_MS) < MINUTE_MS;
        if summer && self.step > 0 && self.step <= MINUTE_MS { without } else { passed }
    }

    /// Returns the ms that passed while a clock went back by `passed`; `None` if it is not a clock.
    fn back(&mut self, passed: i64, time: RowTime) -> Option<i64> {
        // The end of summer time or the end of an hour, noon, midnight.
        let turns: &[i64] = match time {
            RowTime::MinuteClock(_) => &[HOUR_MS],
            RowTime::Local(_) => &[HOUR_MS, HALF_DAY_MS, DAY_MS],
            RowTime::Elapsed(_) | RowTime::Instant(_) => &[],
        };
        let mut steps = turns.iter().map(|turn| passed.saturating_add(*turn));
        if let Some(step) = steps.find(|step| (1..=MINUTE_MS).contains(step)) {
            return Some(step);
        }
        let is_clock = matches!(time, RowTime::Local(_) | RowTime::Instant(_));
        let set = is_clock && passed < -JITTER_MS && self.step > 0;
        if !set || self.clock_sets >= CLOCK_SETS_MAX {
            return None;
        }
        self.clock_sets = self.clock_sets.saturating_add(1);
        Some(self.step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(text: &str) -> Option<RowTime> {
        parse(text, TimeUnit::Seconds, false)
    }

    /// Returns the ms of each row from the first; `None` for a row that does not count.
    fn elapsed(texts: &[&str]) -> Vec<Option<i64>> {
        let mut timeline = Timeline::default();
        let step = |text: &&str| match timeline.advance(seconds(text).unwrap()) {
            Step::To(ms) => Some(ms),
            Step::Repeated | Step::Back => None,
        };
        texts.iter().map(step).collect()
    }

    #[test]
    fn a_number_has_the_unit_of_its_column() {
        for (unit, expected) in [
            (TimeUnit::Milliseconds, 1_500),
            (TimeUnit::Seconds, 1_500_000),
            (TimeUnit::Minutes, 90_000_000),
        ] {
            assert_eq!(parse("1500", unit, false), Some(RowTime::Elapsed(expected)));
        }
        assert_eq!(seconds("0,5"), Some(RowTime::Elapsed(500)));
        let since_1970 = RowTime::Instant(EpochMs(1_767_000_000_000));
        assert_eq!(seconds("1767000000"), Some(since_1970));
        assert_eq!(parse("1767000000000", TimeUnit::Milliseconds, false), Some(since_1970));
    }

    #[test]
    fn clocks_are_read() {
        assert_eq!(seconds("1:30.5"), Some(RowTime::MinuteClock(90_500)));
        assert_eq!(seconds("-0:30"), Some(RowTime::MinuteClock(-30_000)));
        assert_eq!(seconds("00:01:30,25"), Some(RowTime::Local(90_250)));
        assert_eq!(seconds("12:00:01 AM"), Some(RowTime::Local(1_000)));
        assert_eq!(seconds("1:00:00pm"), Some(RowTime::Local(13 * HOUR_MS)));
    }

    #[test]
    fn a_time_out_of_bounds_is_no_time() {
        for text in [
            "1:1e300",
            "1:nan",
            "100000:00",
            "1e12",
            "inf",
            "::",
            "1:2:3:4",
            "",
            "99.99.2026 1:00",
            "2026-10-25T",
            "1/2/2026 25",
            "abc",
            "1767000000000",
        ] {
            assert_eq!(seconds(text), None, "{text}");
        }
    }

    #[test]
    fn dates_of_several_countries_are_the_same_time() {
        let at = EpochMs::parse_iso("2026-10-25T14:50:30Z").unwrap();
        for text in [
            "2026-10-25 14:50:30",
            "2026/10/25T14:50:30",
            "25.10.2026 14:50:30",
            "25.10.26, 14:50:30",
            "25-10-2026 14:50:30",
            "10/25/2026 2:50:30 PM",
        ] {
            assert_eq!(seconds(text), Some(RowTime::Local(at.0)), "{text}");
        }
        assert!(is_day_first("25/10/2026 14:50:30") && !is_day_first("10/25/2026 14:50:30"));
        let day_first = parse("25/10/2026 14:50:30", TimeUnit::Seconds, true);
        assert_eq!(day_first, Some(RowTime::Local(at.0)));
        for text in [
            "2026-10-25T14:50:30Z",
            "2026-10-25 16:50:30+02:00",
            "2026-10-25 16:50:30 +0200",
            "26.10.2026 00:20:30+09:30",
            "10/25/2026 10:50:30 -04",
            "2026/10/25 14:50:30 UTC",
        ] {
            assert_eq!(seconds(text), Some(RowTime::Instant(at)), "{text}");
        }
    }

    #[test]
    fn a_clock_that_goes_back_goes_on() {
        let winter = ["2026-10-25 02:59:58", "2026-10-25 02:59:59", "2026-10-25 02:00:00"];
        assert_eq!(elapsed(&winter), [0, 1_000, 2_000].map(Some));
        let summer = ["2026-03-29 01:59:58", "2026-03-29 01:59:59", "2026-03-29 03:00:00"];
        assert_eq!(elapsed(&summer), [0, 1_000, 2_000].map(Some));
        let zoned = ["2026-10-25T02:59:59+02:00", "2026-10-25T02:00:00+01:00"];
        assert_eq!(elapsed(&zoned), [0, 1_000].map(Some));
        assert_eq!(elapsed(&["23:59:59", "00:00:01"]), [0, 2_000].map(Some), "midnight");
        assert_eq!(elapsed(&["12:59:59", "01:00:00"]), [0, 1_000].map(Some), "noon");
        assert_eq!(elapsed(&["59:59", "00:00"]), [0, 1_000].map(Some), "a full hour");
        let set = ["10:00:00", "10:00:02", "09:58:00", "09:58:02"];
        assert_eq!(elapsed(&set), [0, 2_000, 4_000, 6_000].map(Some), "set by 122 s");
    }

    #[test]
    fn a_number_that_goes_back_does_not_count() {
        let rows = ["0", "2", "2", "1", "4"];
        assert_eq!(elapsed(&rows), [Some(0), Some(2_000), None, None, Some(4_000)]);
    }
}
