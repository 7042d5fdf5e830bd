//! Reads Loring's log: temperatures are multiplied by 10 and in °C or °F as each row states, the
//! burner is multiplied by 100, and there is a row with a date every six seconds.
//! `RoastTimeSeconds` does not agree with the dates and is not used. A missing value is −29683 or a
//! similar number.

use contract::EventKind;

use super::{MakerError, RecordingBuilder, Row, Table, celsius, percent};
use crate::recording::Recording;
use crate::sample::Sample;

/// Reads a file; `None` if it is not Loring's.
pub fn read(text: &str) -> Option<Result<Recording, MakerError>> {
    let table = Table::with_columns(text, &["Time", "RoastingOnOff", "BeanTemperature"])?;
    let mut rows = RecordingBuilder::default();
    let (mut roasting, mut cracking, mut cracking_again) = (false, false, false);
    for row in table.rows() {
        let (Some(on), Some(t_ms)) = (row.number("RoastingOnOff"), row.text("Time").and_then(time))
        else {
            continue;
        };
        let fahrenheit = row.number("DegreesCelciusOnOff") == Some(0.0);
        rows.recording.fahrenheit |= fahrenheit;
        let tenths = |name: &str| row.number(name).and_then(|v| celsius(v / 10.0, fahrenheit));
        let added = rows.push(Sample {
            t_ms,
            bt_c: tenths("BeanTemperature"),
            et_c: tenths("ReturnAirTemperature"),
            gas_pct: row.number("BurnerPercentage").and_then(|v| percent(v / 100.0)),
            ..Sample::default()
        });
        if !added {
            continue;
        }
        let is_set = |row: &Row<'_>, name: &str| row.number(name) == Some(1.0);
        let on = on > 0.0;
        if on && !roasting {
            rows.mark(EventKind::Charge);
        } else if roasting && !on {
            rows.mark(EventKind::Drop);
        }
        roasting = on;
        if is_set(&row, "ColorChangeOnOff") {
            rows.mark(EventKind::DryEnd);
        }
        let (first, second) = (is_set(&row, "FirstCrackOnOff"), is_set(&row, "SecondCrackOnOff"));
        for (now, before, starts, ends) in [
            (first, &mut cracking, EventKind::Fc, EventKind::FcEnd),
            (second, &mut cracking_again, EventKind::Sc, EventKind::ScEnd),
        ] {
            if now && !*before {
                rows.mark(starts);
            } else if *before && !now {
                rows.mark(ends);
            }
            *before = now;
        }
    }
    Some(rows.finish_table("Loring", &table))
}

/// Returns the time in ms of a date such as `M/d/yyyy h:mm:ss AM`.
fn time(text: &str) -> Option<i64> {
    let mut parts = text.split_ascii_whitespace();
    let (date, clock, half) = (parts.next()?, parts.next()?, parts.next());
    let numbers = |text: &str, by: char| -> Option<Vec<u32>> {
        text.split(by).map(|part| part.parse().ok()).collect()
    };
    let (&[month, day, year], &[hour, minute, second]) =
        (numbers(date, '/')?.as_slice(), numbers(clock, ':')?.as_slice())
    else {
        return None;
    };
    let hour = match half.map(str::to_ascii_uppercase).as_deref() {
        Some("AM") => hour % 12,
        Some("PM") => (hour % 12).saturating_add(12),
        _ => hour,
    };
    let iso = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z");
    contract::EpochMs::parse_iso(&iso).map(|at| at.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "Time,RoastTimeSeconds,RoastingOnOff,ColorChangeOnOff,FirstCrackOnOff,\
        SecondCrackOnOff,DegreesCelciusOnOff,ReturnAirTemperature,BeanTemperature,BurnerPercentage,\
        BeanTemperatureRateOfRise\n";

    #[test]
    fn tenths_of_either_unit_and_flags_become_degrees_and_marks() {
        let text = format!(
            "{HEADER}3/7/2025 11:59:54 AM,0,0,0,0,0,1,2200,2105,0,-29683\n\
             3/7/2025 12:00:00 PM,0,1,0,0,0,1,2150,2001,6550,-29683\n\
             3/7/2025 12:00:06 PM,7,1,1,0,0,0,4100,3002,6550,90\n\
             3/7/2025 12:00:12 PM,12,1,1,1,0,1,2100,-29683,6550,90\n\
             3/7/2025 12:00:18 PM,18,0,1,0,0,1,2100,2101,0,90\n"
        );
        let r = read(&text).unwrap().unwrap();
        let times: Vec<i64> = r.samples.iter().map(|s| s.t_ms).collect();
        assert_eq!(times, [0, 6000, 12_000, 18_000, 24_000], "six seconds, by the dates");
        assert_eq!((r.samples[1].bt_c, r.samples[1].gas_pct), (Some(200.1), Some(65.5)));
        assert!((r.samples[2].bt_c.unwrap() - 149.0).abs() < 1e-9, "300.2 °F");
        assert_eq!(r.samples[3].bt_c, None, "a sentinel");
        let marks = [
            EventKind::Charge,
            EventKind::DryEnd,
            EventKind::Fc,
            EventKind::FcEnd,
            EventKind::Drop,
        ];
        assert_eq!(
            marks.map(|kind| r.mark_ms(kind)),
            [6000, 12_000, 18_000, 24_000, 24_000].map(Some)
        );
    }

    #[test]
    fn noon_and_midnight_are_read_from_twelve_hour_times() {
        let hour = |text: &str| time(text).unwrap() / 3_600_000 % 24;
        assert_eq!((hour("1/2/2025 12:00:00 AM"), hour("1/2/2025 12:00:00 PM")), (0, 12));
        assert_eq!((hour("1/2/2025 1:00:00 PM"), hour("1/2/2025 13:00:00")), (13, 13));
        assert_eq!(time("2025-01-02"), None);
    }
}
