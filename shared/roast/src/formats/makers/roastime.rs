//! Reads `RoasTime`'s JSON files (Aillio Bullet): lists of readings at a fixed rate and marks by
//! index; temperatures in °C, weights in g, controls in steps of 10 %.

use contract::{EpochMs, EventKind};
use serde_json::{Map, Value};

use super::{MakerError, RecordingBuilder, celsius};
use crate::recording::Recording;
use crate::sample::Sample;

/// The fields with the index of a mark; 0 is unset for all but the first.
const MARKS: [(&str, EventKind); 7] = [
    ("roastStartIndex", EventKind::Charge),
    ("indexYellowingStart", EventKind::DryEnd),
    ("indexFirstCrackStart", EventKind::Fc),
    ("indexFirstCrackEnd", EventKind::FcEnd),
    ("indexSecondCrackStart", EventKind::Sc),
    ("indexSecondCrackEnd", EventKind::ScEnd),
    ("roastEndIndex", EventKind::Drop),
];
/// The numbers of controls in the list of actions.
const POWER: u64 = 0;
const FAN: u64 = 1;
const DRUM: u64 = 2;

/// Returns true if an object is a file of `RoasTime`.
pub fn is_roastime(file: &Map<String, Value>) -> bool {
    file.get("beanTemperature").is_some_and(Value::is_array)
}

/// Reads a file.
///
/// # Errors
/// When no reading of the beans is a number.
pub fn read(file: &Map<String, Value>) -> Result<Recording, MakerError> {
    let list = |name: &str| file.get(name).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let (beans, drum) = (list("beanTemperature"), list("drumTemperature"));
    let degrees =
        |value: Option<&Value>| value.and_then(Value::as_f64).and_then(|v| celsius(v, false));
    let (power, fan, speed) = (Moves::of(file, POWER), Moves::of(file, FAN), Moves::of(file, DRUM));
    let mut rows = RecordingBuilder::default();
    for (at, bean) in beans.iter().enumerate() {
        rows.push(Sample {
            t_ms: time_ms(file, at),
            bt_c: degrees(Some(bean)),
            et_c: degrees(drum.get(at)),
            gas_pct: power.at(at),
            fan_pct: fan.at(at),
            drum_pct: speed.at(at),
            ..Sample::default()
        });
    }
    for (name, kind) in MARKS {
        let index = file.get(name).and_then(Value::as_u64).and_then(|at| usize::try_from(at).ok());
        let set = index.filter(|at| *at > 0 || kind == EventKind::Charge);
        rows.mark_at(kind, set.filter(|at| *at < rows.recording.samples.len()));
    }
    describe(&mut rows.recording, file);
    rows.finish("RoasTime", "beanTemperature has no number")
}

/// Returns the time of a reading, ms from the first.
#[allow(clippy::cast_possible_truncation)] // an index over a bounded rate
fn time_ms(file: &Map<String, Value>, at: usize) -> i64 {
    let rate = file.get("sampleRate").and_then(Value::as_f64);
    let rate = rate.filter(|hz| (0.01..=1_000.0).contains(hz)).unwrap_or(1.0);
    (at as f64 * 1000.0 / rate).round() as i64
}

/// Sets what the file says of the roast.
#[allow(clippy::cast_possible_truncation)] // checked against its bounds
fn describe(recording: &mut Recording, file: &Map<String, Value>) {
    let text = |name: &str| file.get(name).and_then(Value::as_str).unwrap_or("").trim().to_owned();
    let value = |name: &str| file.get(name).and_then(Value::as_f64);
    recording.title = text("roastName");
    recording.beans = text("beanName");
    recording.roast_id = text("uid");
    recording.weight_in_g = value("weightGreen").filter(|grams| *grams > 0.0);
    recording.weight_out_g = value("weightRoasted").filter(|grams| *grams > 0.0);
    recording.ambient_c = value("ambient").filter(|c| *c != 0.0).and_then(|c| celsius(c, false));
    let number = file.get("roastNumber").and_then(Value::as_u64).filter(|number| *number > 0);
    recording.batch = number.map_or_else(String::new, |number| number.to_string());
    let started = value("dateTime").filter(|ms| ms.abs() < 1e15).map(|ms| EpochMs(ms as i64));
    recording.started = started.filter(|at| at.0 > 0 && at.is_plausible());
}

/// The moves of one control: the index of a reading and the percentage from there on.
struct Moves(Vec<(usize, f64)>);

impl Moves {
    fn of(file: &Map<String, Value>, control: u64) -> Self {
        let actions = file.get("actions").and_then(|actions| actions.get("actionTimeList"));
        let actions = actions.and_then(Value::as_array).into_iter().flatten();
        let mut moves: Vec<(usize, f64)> = actions
            .filter(|action| action.get("ctrlType").and_then(Value::as_u64) == Some(control))
            .filter_map(|action| {
                let at = usize::try_from(action.get("index")?.as_u64()?).ok()?;
                Some((at, (action.get("value")?.as_f64()? * 10.0).clamp(0.0, 100.0)))
            })
            .collect();
        moves.sort_by_key(|(at, _)| *at);
        Self(moves)
    }

    fn at(&self, reading: usize) -> Option<f64> {
        let before = self.0.partition_point(|(at, _)| *at <= reading).checked_sub(1)?;
        self.0.get(before).map(|(_, percent)| *percent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(value: Value) -> Map<String, Value> {
        let Value::Object(map) = value else { panic!("not an object") };
        map
    }

    #[test]
    fn lists_indices_and_actions_become_a_recording() {
        let file = object(json!({
            "uid": "a1", "roastName": "Lot A", "roastNumber": 7, "dateTime": 1_767_000_000_000_i64,
            "sampleRate": 2, "beanTemperature": [190.0, null, 170.5, 196.0, 205.0],
            "drumTemperature": [210.0, 211.0], "roastStartIndex": 0, "roastEndIndex": 4,
            "indexFirstCrackStart": 3, "indexSecondCrackStart": 0, "weightGreen": 400,
            "weightRoasted": 0, "ambient": 22,
            "actions": {"actionTimeList": [{"ctrlType": 0, "index": 1, "value": 8},
                                           {"ctrlType": 1, "index": 0, "value": 12}]},
        }));
        assert!(is_roastime(&file));
        let r = read(&file).unwrap();
        assert_eq!((r.title.as_str(), r.batch.as_str(), r.roast_id.as_str()), ("Lot A", "7", "a1"));
        assert_eq!((r.weight_in_g, r.weight_out_g, r.ambient_c), (Some(400.0), None, Some(22.0)));
        assert_eq!(r.started, Some(EpochMs(1_767_000_000_000)));
        let times: Vec<i64> = r.samples.iter().map(|s| s.t_ms).collect();
        assert_eq!(times, [0, 500, 1000, 1500, 2000]);
        assert_eq!((r.samples[1].bt_c, r.samples[1].et_c), (None, Some(211.0)));
        assert_eq!((r.samples[0].gas_pct, r.samples[1].gas_pct), (None, Some(80.0)));
        assert_eq!(r.samples[4].fan_pct, Some(100.0));
        let expected = [(EventKind::Charge, 0), (EventKind::Fc, 3), (EventKind::Drop, 4)];
        assert_eq!(r.marks, expected);
    }

    #[test]
    fn a_file_without_readings_gives_the_reason() {
        let error = read(&object(json!({"beanTemperature": []}))).unwrap_err();
        assert_eq!(error.to_string(), "RoasTime: beanTemperature has no number");
        assert!(!is_roastime(&object(json!({"timex": []}))));
    }
}
