//! Reads files of IKAWA's app. The exhaust temperature counts as the beans', because it is the
//! nearest to them, and the inlet temperature as the air's. Older files spell "exaust temp"; newer
//! ones use "temp above" and "temp below". Temperatures in °C, fan and heater in %.

use contract::EventKind;

use super::{MakerError, RecordingBuilder, Table, celsius, percent};
use crate::recording::Recording;
use crate::sample::Sample;

const BEANS: [&str; 3] = ["exaust temp", "exhaust temp", "temp above"];
const AIR: [&str; 2] = ["inlet temp", "temp below"];

#[allow(clippy::cast_possible_truncation)] // checked against its bounds
/// Reads a file; `None` if it is not IKAWA's.
pub fn read(text: &str) -> Option<Result<Recording, MakerError>> {
    let table = Table::find(text, |names| {
        names.contains(&"state") && BEANS.iter().any(|name| names.contains(name))
    })?;
    let mut rows = RecordingBuilder::default();
    for (second, row) in (0_i64..).zip(table.rows()) {
        let time =
            row.number("time").filter(|s| s.abs() < 1e6).map(|s| (s * 1000.0).round() as i64);
        let added = rows.push(Sample {
            t_ms: time.unwrap_or(second.saturating_mul(1000)),
            bt_c: row.first(&BEANS).and_then(|v| celsius(v, false)),
            et_c: row.first(&AIR).and_then(|v| celsius(v, false)),
            gas_pct: row.first(&["heater power (%)", "heater"]).and_then(percent),
            fan_pct: row.first(&["fan set (%)", "fan set"]).and_then(percent),
            ..Sample::default()
        });
        match row.text("state").filter(|_| added) {
            Some("doser open") => rows.mark(EventKind::Charge),
            Some("cooling") => rows.mark(EventKind::Drop),
            _ => {}
        }
    }
    Some(rows.finish_table("IKAWA", &table))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read() {
        let old = "fan set (%),temp set,exaust temp,inlet temp,heater power (%),state\n\
                   80,180,150,190,90,pre-heating\n80,180,140,190,90,doser open\n80,,150,,50,roasting\n\
                   100,0,205,190,0,cooling\n";
        let r = read(old).unwrap().unwrap();
        assert_eq!(
            (r.mark_ms(EventKind::Charge), r.mark_ms(EventKind::Drop)),
            (Some(1000), Some(3000))
        );
        assert_eq!((r.samples[1].bt_c, r.samples[1].fan_pct), (Some(140.0), Some(80.0)));
        let new = "time,fan set,setpoint,temp above,state,heater,temp below\n\
                   0.5,80,180,150,ready to roast,90,190\n1.5,80,180,140,doser open,90,191\n";
        let r = read(new).unwrap().unwrap();
        assert_eq!((r.samples[1].t_ms, r.samples[1].et_c), (1000, Some(191.0)));
    }
}
