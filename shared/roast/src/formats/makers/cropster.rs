//! Reads Cropster's workbook: a sheet about the roast, a sheet of comments, and one sheet for each
//! curve, with seconds from CHARGE and a value. Temperatures are in the unit that the curve's
//! heading names, weights in the unit in the column beside them. The caller opens the file and
//! converts it to [`Worksheet`]s.

use contract::EventKind;

use super::{RecordingBuilder, celsius, percent};
use crate::recording::Recording;
use crate::sample::Sample;

/// The content of a cell.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    /// An empty cell.
    Empty,
    /// A number.
    Number(f64),
    /// A text.
    Text(String),
}

/// A sheet of a workbook.
#[derive(Debug, Clone, PartialEq)]
pub struct Worksheet {
    /// The name on the sheet's tab.
    pub name: String,
    /// The rows, each with its cells from the first column on.
    pub rows: Vec<Vec<Cell>>,
}

/// Why a workbook cannot be read as a roast.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CropsterError {
    /// The workbook has no sheet of the bean temperature.
    #[error("no sheet is named \"Curve - Bean temperature\" (in any of Cropster's languages)")]
    NoBeans,
    /// That sheet has no row with a time and a temperature.
    #[error("the sheet of the bean temperature has no rows of seconds and degrees")]
    NoRows,
}

/// What follows "Curve - " (or its translation) in the names of sheets, in Cropster's languages.
const BEANS: [&str; 12] = [
    "bean temp",
    "bohnentemp",
    "temp. del grano",
    "temperatura del grano",
    "temp. grain",
    "température des grains",
    "temp. chicco",
    "temperatura del chicco",
    "temp. do grão",
    "temperatura do grão",
    "豆温",
    "豆溫",
];
const AIR: [&str; 14] = [
    "env. temp",
    "umgebungstemp",
    "temp. ambiente",
    "temperatura ambiente",
    "temp. env",
    "exhaust temp",
    "ablufttemp",
    "temp. de salida",
    "temp. échappement",
    "temp. fumi",
    "temperatura dei fumi",
    "temp. de exaustão",
    "炉温",
    "爐溫",
];
const GAS: [&str; 5] = ["gas control", "gas-kontrolle", "control del gas", "controllo gas", "gas"];
const FAN: [&str; 4] = ["airflow", "flujo de aire", "flusso d'aria", "fluxo de ar"];
const DRUM: [&str; 4] = ["drum speed", "trommelgeschw", "velocidad del tambor", "velocità tamburo"];
const COLOUR: [&str; 6] = [
    "color change",
    "farbänderung",
    "cambio de color",
    "changement de couleur",
    "cambiamento di colore",
    "mudança de cor",
];
const FIRST: [&str; 5] = ["first crack", "1. crack", "primer crac", "premier crack", "primo crack"];
const SECOND: [&str; 4] = ["second crack", "2. crack", "segundo crac", "secondo crack"];
const WEIGHT_IN: [&str; 4] = ["start weight", "startgewicht", "peso inicial", "poids initial"];
const WEIGHT_OUT: [&str; 4] = ["end weight", "endgewicht", "peso final", "poids final"];

/// Reads a workbook.
///
/// # Errors
/// When it has no bean temperature.
pub fn cropster(sheets: &[Worksheet]) -> Result<Recording, CropsterError> {
    let beans = curve(sheets, &BEANS).ok_or(CropsterError::NoBeans)?;
    let fahrenheit = is_fahrenheit(beans);
    let mut rows = RecordingBuilder::default();
    rows.recording.fahrenheit = fahrenheit;
    for (t_ms, value) in points(beans) {
        let bt_c = celsius(value, fahrenheit);
        rows.push(Sample { t_ms, bt_c, ..Sample::default() });
    }
    let first = points(beans).map(|(t_ms, _)| t_ms).next().ok_or(CropsterError::NoRows)?;
    add_curve(&mut rows, sheets, &AIR, first, |sample, value, f| sample.et_c = celsius(value, f));
    add_curve(&mut rows, sheets, &GAS, first, |sample, value, _| sample.gas_pct = percent(value));
    add_curve(&mut rows, sheets, &FAN, first, |sample, value, _| sample.fan_pct = percent(value));
    add_curve(&mut rows, sheets, &DRUM, first, |sample, value, _| sample.drum_pct = percent(value));
    // Seconds count from CHARGE; negative ones belong to the preheating.
    let charge = rows.nearest(-first);
    rows.mark_at(EventKind::Charge, charge);
    marks(&mut rows, sheets, first);
    rows.mark(EventKind::Drop);
    about(&mut rows.recording, sheets);
    let machine = std::mem::take(&mut rows.recording.machine);
    rows.finish(&machine).ok_or(CropsterError::NoRows)
}

/// Returns the sheet of a curve: after "Curve - " its name begins with one of `names`.
fn curve<'s>(sheets: &'s [Worksheet], names: &[&str]) -> Option<&'s Worksheet> {
    let of = |name: &&str| {
        sheets.iter().find(|sheet| {
            let full = sheet.name.to_lowercase();
            let prefixes = [
                "curve -", "kurve -", "curva -", "curva ", "courbe -", "courbe ", "曲线 -",
                "曲線 -",
            ];
            let rest = prefixes.iter().find_map(|prefix| full.strip_prefix(prefix));
            rest.is_some_and(|rest| rest.trim().starts_with(*name))
        })
    };
    names.iter().find_map(of)
}

fn is_fahrenheit(sheet: &Worksheet) -> bool {
    let heading = sheet.rows.first().and_then(|row| row.get(1));
    matches!(heading, Some(Cell::Text(text)) if text.to_uppercase().contains("FAHRENHEIT"))
}

/// Returns the points of a curve: time in ms from CHARGE, and the value.
#[allow(clippy::cast_possible_truncation)] // checked against its bounds
fn points(sheet: &Worksheet) -> impl Iterator<Item = (i64, f64)> {
    sheet.rows.iter().skip(1).take(super::ROWS_MAX).filter_map(|row| {
        let (seconds, value) = (number(row.first()?)?, number(row.get(1)?)?);
        let within = seconds.abs() < 1e6 && value.is_finite();
        within.then(|| ((seconds * 1000.0).round() as i64, value))
    })
}

fn number(cell: &Cell) -> Option<f64> {
    match cell {
        Cell::Number(value) => Some(*value).filter(|value| value.is_finite()),
        Cell::Text(text) => {
            text.trim().replace(',', ".").parse().ok().filter(|v: &f64| v.is_finite())
        }
        Cell::Empty => None,
    }
}

/// Adds another curve to the samples of the bean temperature. Each of its values holds from its own
/// time until the next value.
fn add_curve(
    rows: &mut RecordingBuilder,
    sheets: &[Worksheet],
    names: &[&str],
    first: i64,
    set: impl Fn(&mut Sample, f64, bool),
) {
    let Some(sheet) = curve(sheets, names) else { return };
    let fahrenheit = is_fahrenheit(sheet);
    let mut points = points(sheet).peekable();
    let mut now = None;
    for sample in &mut rows.recording.samples {
        while let Some((_, value)) = points.next_if(|(t_ms, _)| t_ms - first <= sample.t_ms) {
            now = Some(value);
        }
        if let Some(value) = now {
            set(sample, value, fahrenheit);
        }
    }
}

/// Adds the marks, which are comments with the columns time, …, kind.
fn marks(rows: &mut RecordingBuilder, sheets: &[Worksheet], first: i64) {
    let Some(comments) = sheets.get(1) else { return };
    for row in comments.rows.iter().skip(1).take(10_000) {
        let (Some(seconds), Some(Cell::Text(kind))) =
            (row.first().and_then(number).filter(|s| s.abs() < 1e6), row.get(2))
        else {
            continue;
        };
        let kind = kind.trim().to_lowercase();
        let is = |names: &[&str]| names.contains(&kind.as_str());
        let kind = match kind.as_str() {
            "first crack end" => EventKind::FcEnd,
            "second crack end" => EventKind::ScEnd,
            "duration" => EventKind::Drop,
            _ if is(&COLOUR) => EventKind::DryEnd,
            _ if is(&FIRST) => EventKind::Fc,
            _ if is(&SECOND) => EventKind::Sc,
            _ => continue,
        };
        #[allow(clippy::cast_possible_truncation)] // checked above
        let at = rows.nearest((seconds * 1000.0).round() as i64 - first);
        rows.mark_at(kind, at);
    }
}

/// Reads the first sheet: a row of names and a row of values.
fn about(recording: &mut Recording, sheets: &[Worksheet]) {
    let Some([names, values, ..]) = sheets.first().map(|sheet| sheet.rows.as_slice()) else {
        return;
    };
    let value = |keys: &[&str], suffix: &str| {
        let at = names.iter().position(|name| {
            let Cell::Text(name) = name else { return false };
            let name = name.trim().to_lowercase();
            keys.iter().any(|key| name == format!("{key}{suffix}"))
        })?;
        values.get(at)
    };
    let text = |keys: &[&str]| match value(keys, "") {
        Some(Cell::Text(text)) => text.trim().to_owned(),
        _ => String::new(),
    };
    recording.beans = text(&["lot name", "chargenname", "nombre del lote", "nom du lot"]);
    recording.title = text(&["profile", "profil", "perfil", "profilo"]);
    recording.machine = text(&["machine", "maschine", "tostador", "macchina"]);
    let grams = |keys: &[&str], suffix: &str| {
        let unit = match value(keys, suffix) {
            Some(Cell::Text(unit)) => unit.trim().to_uppercase(),
            _ => String::new(),
        };
        let factor = match unit.as_str() {
            "KG" => 1000.0,
            "LB" | "LBS" => 453.592_37,
            "OZ" => 28.349_523_125,
            _ => 1.0,
        };
        value(keys, "").and_then(number).filter(|weight| *weight > 0.0).map(|w| w * factor)
    };
    recording.weight_in_g = grams(&WEIGHT_IN, " unit");
    recording.weight_out_g = grams(&WEIGHT_OUT, " unit");
    let ambient = value(&["ambient temp.", "raumtemp.", "temperatura ambiente"], "");
    recording.ambient_c = ambient.and_then(number).and_then(|v| celsius(v, recording.fahrenheit));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Cell {
        Cell::Text(text.to_owned())
    }

    fn curve_of(name: &str, unit: &str, points: &[(f64, f64)]) -> Worksheet {
        let mut rows = vec![vec![text("time"), text(unit)]];
        rows.extend(points.iter().map(|(t, v)| vec![Cell::Number(*t), Cell::Number(*v)]));
        Worksheet { name: name.to_owned(), rows }
    }

    #[test]
    fn a_workbook_in_fahrenheit_and_pounds_becomes_a_roast() {
        let about = vec![
            ["Id-Tag", "Lot name", "Profile", "Machine", "Start weight", "Start weight unit"]
                .map(text)
                .to_vec(),
            vec![
                text("PR-1"),
                text("Sidamo"),
                text("Filter"),
                text("L-5"),
                Cell::Number(10.0),
                text("LBS"),
            ],
        ];
        let comments = vec![
            ["Time", "Temp", "Type", "Value"].map(text).to_vec(),
            vec![Cell::Number(2.0), Cell::Empty, text("First crack"), Cell::Empty],
        ];
        let sheets = [
            Worksheet { name: "General".to_owned(), rows: about },
            Worksheet { name: "Comments".to_owned(), rows: comments },
            curve_of(
                "Curve - Bean temperature",
                "FAHRENHEIT",
                &[(-1.0, 392.0), (0.0, 374.0), (1.0, 356.0), (2.0, 338.0)],
            ),
            curve_of("Curve - Gas control", "PERCENT", &[(0.5, 80.0)]),
        ];
        let r = cropster(&sheets).unwrap();
        assert_eq!((r.beans.as_str(), r.machine.as_str(), r.fahrenheit), ("Sidamo", "L-5", true));
        assert!((r.weight_in_g.unwrap() - 4535.9237).abs() < 1e-6);
        let bt: Vec<f64> = r.samples.iter().map(|s| s.bt_c.unwrap().round()).collect();
        assert_eq!(bt, [200.0, 190.0, 180.0, 170.0]);
        assert_eq!((r.samples[1].gas_pct, r.samples[2].gas_pct), (None, Some(80.0)));
        let marks = [EventKind::Charge, EventKind::Fc, EventKind::Drop];
        assert_eq!(marks.map(|kind| r.mark_ms(kind)), [1000, 3000, 3000].map(Some));
        assert_eq!(cropster(&sheets[..2]), Err(CropsterError::NoBeans));
    }
}
