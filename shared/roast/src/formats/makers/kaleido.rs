//! Reads Kaleido's files: sections under `[{…}]` headings, samples in `[{DATA}]` with their time in
//! ms, and each mark as `temperature@mm:ss` in its own section; units are °C and %.

use std::collections::BTreeMap;

use contract::EventKind;

use super::{MakerError, RecordingBuilder, Table, celsius, percent};
use crate::recording::Recording;
use crate::sample::Sample;

const MARKS: [(&str, EventKind); 7] = [
    ("StartBeansIn", EventKind::Charge),
    ("TurntoYellow", EventKind::DryEnd),
    ("1stBoomStart", EventKind::Fc),
    ("1stBoomEnd", EventKind::FcEnd),
    ("2ndBoomStart", EventKind::Sc),
    ("2ndBoomEnd", EventKind::ScEnd),
    ("BeansColdDown", EventKind::Drop),
];

#[allow(clippy::cast_possible_truncation)] // checked against its bounds
/// Reads a file; `None` if it is not Kaleido's.
pub fn read(text: &str) -> Option<Result<Recording, MakerError>> {
    let sections = sections(text)?;
    let table = Table::with_columns(sections.get("DATA")?, &["Time", "BT"])?;
    let mut rows = RecordingBuilder::default();
    let mut first_ms = None;
    for row in table.rows() {
        let Some(ms) = row.number("Time").filter(|ms| ms.abs() < 1e9) else { continue };
        let t_ms = ms.round() as i64;
        first_ms.get_or_insert(t_ms);
        rows.push(Sample {
            t_ms,
            bt_c: row.number("BT").and_then(|v| celsius(v, false)),
            et_c: row.number("ET").and_then(|v| celsius(v, false)),
            gas_pct: row.number("HP").and_then(percent),
            fan_pct: row.number("SM").and_then(percent),
            drum_pct: row.number("RL").and_then(percent),
            ..Sample::default()
        });
    }
    for (name, kind) in MARKS {
        let at = sections.get(name).and_then(|section| mark_ms(section.trim()));
        if let Some(at) = at {
            let at = rows.nearest(at.saturating_sub(first_ms.unwrap_or(0)));
            rows.mark_at(kind, at);
        }
    }
    let title = sections.get("Comment").map_or("", |text| text.lines().next().unwrap_or("").trim());
    title.clone_into(&mut rows.recording.title);
    Some(rows.finish("Kaleido", "no row of [{DATA}] has a bean temperature"))
}

/// Returns the text of each section; `None` if there is no section, or other text before the first.
fn sections(text: &str) -> Option<BTreeMap<&str, String>> {
    let mut sections = BTreeMap::<&str, String>::new();
    let mut current = None;
    for line in text.trim_start_matches('\u{feff}').lines() {
        let line = line.trim();
        if let Some(name) = line.strip_prefix("[{").and_then(|rest| rest.strip_suffix("}]")) {
            sections.entry(name).or_default();
            current = Some(name);
        } else if let Some(section) = current.and_then(|name| sections.get_mut(name)) {
            section.push_str(line);
            section.push('\n');
        } else if !line.is_empty() {
            return None; // there is other text before the first section
        }
    }
    (!sections.is_empty()).then_some(sections)
}

/// Returns the time of a mark such as `170@01:05`, in ms.
fn mark_ms(text: &str) -> Option<i64> {
    let (minutes, seconds) = text.split_once('@')?.1.split_once(':')?;
    let (minutes, seconds): (i64, i64) = (minutes.parse().ok()?, seconds.trim().parse().ok()?);
    let seconds = minutes.saturating_mul(60).saturating_add(seconds.clamp(0, 59));
    (0..100_000).contains(&minutes).then_some(seconds.saturating_mul(1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_become_samples_and_marks() {
        let text = "[{CookDate}]\n25-05-18 19:32:48\n[{Comment}]\nYirgacheffe\n[{DATA}]\n\
            Index,Time,BT,ET,RoR,SV,HPM,HP,SM,RL,PS\n0,0,170.5,190,0,0,M,80,30,60,O\n\
            1,1500,165,189,0,0,M,80,30,60,O\nbroken\n2,3000,160,188,0,0,M,70,30,60,O\n\
            [{StartBeansIn}]\n170@00:00\n[{1stBoomStart}]\n160@00:03\n[{2ndBoomStart}]\n\n";
        let r = read(text).unwrap().unwrap();
        assert_eq!((r.samples.len(), r.title.as_str()), (3, "Yirgacheffe"));
        assert_eq!((r.samples[1].t_ms, r.samples[2].gas_pct), (1500, Some(70.0)));
        assert_eq!((r.mark_ms(EventKind::Charge), r.mark_ms(EventKind::Fc)), (Some(0), Some(3000)));
        assert_eq!(r.mark_ms(EventKind::Sc), None);
        assert!(read("a,b\n[{DATA}]\n").is_none());
    }
}
