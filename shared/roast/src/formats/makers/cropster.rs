//! Reads Cropster's workbook: a sheet about the roast, a sheet of comments, and one sheet for each
//! curve, with seconds from CHARGE and a value. Temperatures are in the unit that the curve's
//! heading names, weights in the unit that stands with them. The caller opens the file and converts
//! it to [`Worksheet`]s.

use contract::EventKind;

use super::cropster_names as names;
use super::{RecordingBuilder, celsius, number as table_number, percent};
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

/// Reads a workbook.
///
/// # Errors
/// When it has no bean temperature.
pub fn cropster(sheets: &[Worksheet]) -> Result<Recording, CropsterError> {
    let beans = curve(sheets, &names::BEANS).ok_or(CropsterError::NoBeans)?;
    let fahrenheit = is_fahrenheit(beans);
    let mut rows = RecordingBuilder::default();
    rows.recording.fahrenheit = fahrenheit;
    for (t_ms, value) in points(beans) {
        let bt_c = celsius(value, fahrenheit);
        rows.push(Sample { t_ms, bt_c, ..Sample::default() });
    }
    let first = points(beans).map(|(t_ms, _)| t_ms).next().ok_or(CropsterError::NoRows)?;
    add_curve(&mut rows, sheets, &names::AIR, first, |sample, value, f| {
        sample.et_c = celsius(value, f);
    });
    add_curve(&mut rows, sheets, &names::GAS, first, |sample, value, _| {
        sample.gas_pct = percent(value);
    });
    add_curve(&mut rows, sheets, &names::FAN, first, |sample, value, _| {
        sample.fan_pct = percent(value);
    });
    add_curve(&mut rows, sheets, &names::DRUM, first, |sample, value, _| {
        sample.drum_pct = percent(value);
    });
    // Seconds count from CHARGE; negative ones belong to the preheating.
    let charge = rows.nearest(first.saturating_neg());
    rows.mark_at(EventKind::Charge, charge);
    marks(&mut rows, sheets, first);
    rows.mark(EventKind::Drop);
    about(&mut rows.recording, sheets);
    let machine = std::mem::take(&mut rows.recording.machine);
    let mut recording = rows.finish("Cropster", "").map_err(|_| CropsterError::NoRows)?;
    recording.machine = machine;
    Ok(recording)
}

/// Returns the sheet of a curve: after "Curve - " its name begins with one of `names`.
fn curve<'s>(sheets: &'s [Worksheet], names: &[&str]) -> Option<&'s Worksheet> {
    let of = |name: &&str| {
        sheets.iter().find(|sheet| {
            let full = sheet.name.to_lowercase();
            let rest = names::CURVE.iter().find_map(|prefix| full.strip_prefix(prefix));
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
        Cell::Text(text) => table_number(text),
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
        let until_ms = sample.t_ms.saturating_add(first);
        while let Some((_, value)) = points.next_if(|(t_ms, _)| *t_ms <= until_ms) {
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
            _ if is(&names::COLOUR) => EventKind::DryEnd,
            _ if is(&names::FIRST) => EventKind::Fc,
            _ if is(&names::SECOND) => EventKind::Sc,
            _ => continue,
        };
        #[allow(clippy::cast_possible_truncation)] // checked above
        let t_ms = (seconds * 1000.0).round() as i64;
        let at = rows.nearest(t_ms.saturating_sub(first));
        rows.mark_at(kind, at);
    }
}

/// Reads the first sheet: a row of names and a row of values.
fn about(recording: &mut Recording, sheets: &[Worksheet]) {
    let Some([headings, values, ..]) = sheets.first().map(|sheet| sheet.rows.as_slice()) else {
        return;
    };
    let sheet = AboutSheet { headings, values };
    recording.beans = sheet.text(&names::LOT);
    recording.title = sheet.text(&names::PROFILE);
    recording.machine = sheet.text(&names::MACHINE);
    recording.batch = sheet.text(&names::ID_TAG);
    recording.weight_in_g = sheet.weight_g(&names::WEIGHT_IN);
    recording.weight_out_g = sheet.weight_g(&names::WEIGHT_OUT);
    let ambient = sheet.find(&names::AMBIENT).and_then(|at| number(values.get(at)?));
    recording.ambient_c = ambient.and_then(|v| celsius(v, recording.fahrenheit));
}

/// The sheet about the roast.
struct AboutSheet<'s> {
    headings: &'s [Cell],
    values: &'s [Cell],
}

impl AboutSheet<'_> {
    /// Returns the heading of a column, in lower case.
    fn heading(&self, at: usize) -> String {
        match self.headings.get(at) {
            Some(Cell::Text(text)) => text.trim().to_lowercase(),
            _ => String::new(),
        }
    }

    /// Returns the column whose heading is one of `keys`; a unit in brackets may follow.
    fn find(&self, keys: &[&str]) -> Option<usize> {
        (0..self.headings.len()).find(|at| {
            let heading = self.heading(*at);
            let name = heading.split(['(', '[']).next().unwrap_or("").trim_end();
            keys.contains(&name) || keys.contains(&heading.as_str())
        })
    }

    /// Returns the text in the column of one of `keys`; empty if there is none.
    fn text(&self, keys: &[&str]) -> String {
        match self.find(keys).and_then(|at| self.values.get(at)) {
            Some(Cell::Text(text)) => text.trim().to_owned(),
            _ => String::new(),
        }
    }

    /// Returns a weight in g; `None` if its unit is not stated, because a number alone may be g, kg
    /// or pounds.
    fn weight_g(&self, keys: &[&str]) -> Option<f64> {
        let at = self.find(keys)?;
        let (weight, unit) = split_unit(self.values.get(at)?)?;
        let grams = names::grams(&unit)
            .or_else(|| self.unit_in_heading(at))
            .or_else(|| self.unit_in(at.saturating_add(1)))
            .or_else(|| self.unit_in_column_of(keys))?;
        Some(weight * grams).filter(|weight| *weight > 0.0)
    }

    fn unit_in_heading(&self, at: usize) -> Option<f64> {
        let heading = self.heading(at);
        let unit = heading.split(['(', '[']).nth(1)?;
        names::grams(unit.trim_end_matches([')', ']']))
    }

    /// Returns the unit that is the value of a column.
    fn unit_in(&self, at: usize) -> Option<f64> {
        match self.values.get(at)? {
            Cell::Text(text) => names::grams(text),
            Cell::Number(_) | Cell::Empty => None,
        }
    }

    /// Returns the unit in a column whose heading contains that of the weight, such as "Start weight
    /// unit".
    fn unit_in_column_of(&self, keys: &[&str]) -> Option<f64> {
        (0..self.headings.len())
            .filter(|at| keys.iter().any(|key| self.heading(*at).contains(key)))
            .find_map(|at| self.unit_in(at))
    }
}

/// Splits a cell such as `12.5 kg` into its number and the text after it.
fn split_unit(cell: &Cell) -> Option<(f64, String)> {
    match cell {
        Cell::Number(value) => Some((*value, String::new())).filter(|(value, _)| value.is_finite()),
        Cell::Text(text) => {
            let end = text.find(char::is_alphabetic).unwrap_or(text.len());
            let (number, unit) = text.split_at(end);
            Some((table_number(number)?, unit.trim().to_owned()))
        }
        Cell::Empty => None,
    }
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

    #[test]
    fn the_sheets_of_every_language_are_read() {
        for (beans, air, comment) in [
            ("Curve - Bean temperature", "Curve - Exhaust temperature", "First crack"),
            ("Kurve - Bohnentemperatur", "Kurve - Ablufttemperatur", "1. Crack"),
            ("Curva  Temperatura del grano", "Curva  Temperatura de salida", "Primer crac"),
            ("Courbe Température des grains", "Courbe Température échappement", "Premier crack"),
            ("Curva - Temperatura del chicco", "Curva - Temperatura dei fumi", "Primo Crack"),
            ("Curva - Temperatura do grão", "Curva - Temperatura de exaustão", "Primeiro crack"),
            ("曲线 - 豆温", "曲线 - 排风温", "一爆"),
            ("カーブ - 豆の温度", "カーブ - 排気温度。", "1ハゼ"),
            ("커브 - 빈(Bean) 온도", "커브 - 배기 온도", "1차 크랙"),
            ("Кривая - Температура зерен", "Кривая - Температура на выходе", "Первый треск"),
        ] {
            let row = vec![Cell::Number(1.0), Cell::Empty, text(comment), Cell::Empty];
            let sheets = [
                Worksheet { name: "1".to_owned(), rows: Vec::new() },
                Worksheet { name: "2".to_owned(), rows: vec![Vec::new(), row] },
                curve_of(beans, "CELSIUS", &[(0.0, 190.0), (1.0, 180.0)]),
                curve_of(air, "CELSIUS", &[(0.0, 210.0)]),
            ];
            let r = cropster(&sheets).unwrap();
            assert_eq!((r.samples[0].bt_c, r.samples[1].et_c), (Some(190.0), Some(210.0)), "{air}");
            assert_eq!(r.mark_ms(EventKind::Fc), Some(1000), "{comment}");
        }
    }

    /// Returns the weights in and out of a sheet with these columns.
    fn weights(columns: &[(&str, Cell)]) -> (Option<f64>, Option<f64>) {
        let headings = columns.iter().map(|(name, _)| text(name)).collect();
        let values = columns.iter().map(|(_, value)| value.clone()).collect();
        let about = Worksheet { name: "1".to_owned(), rows: vec![headings, values] };
        let beans = curve_of("Curve - Bean temp.", "CELSIUS", &[(0.0, 190.0)]);
        let r = cropster(&[about, beans]).unwrap();
        (r.weight_in_g, r.weight_out_g)
    }

    #[test]
    fn a_weight_has_its_unit_in_every_language_or_is_left_out() {
        for [weight_in, unit_in, weight_out, unit_out] in [
            ["Start weight", "Start weight unit", "End weight", "End weight unit"],
            ["Startgewicht", "Einheit Startgewicht", "Endgewicht", "Einheit Endgewicht"],
            ["Peso inicial", "Unidad de peso inicial", "Peso final", "Unidad de peso final"],
            ["Poids initial", "Unité poids initial", "Poids final", "Unité poids final"],
            ["Peso iniziale", "Unità peso iniziale", "Peso finale", "Unità peso finale"],
            ["Начальный вес", "Единица измерения начального веса", "Конечный вес", "Единица"],
            ["시작 무게", "시작 무게 단위", "종료 무게", "종료 무게 단위"],
            ["開始重量", "開始重量ユニット", "終了重量", "終了重量ユニット"],
            ["开始重量", "开始重量单位", "结束重量", "结束重量单位"],
        ] {
            let (full, loss) = (Cell::Number(12.5), Cell::Number(10.5));
            let beside = [
                (weight_in, full.clone()),
                (unit_in, text("KG")),
                (weight_out, loss.clone()),
                (unit_out, text("KG")),
            ];
            assert_eq!(weights(&beside), (Some(12_500.0), Some(10_500.0)), "{weight_in}");
            assert_eq!(weights(&[(weight_in, full), (weight_out, loss)]), (None, None));
        }
    }

    #[test]
    fn a_unit_is_found_wherever_it_stands() {
        let full = || Cell::Number(27.5);
        let pounds = 27.5 * 453.592_37;
        for columns in [
            vec![("Start weight (lbs)", full())],
            vec![("Start weight", text("27,5 lb"))],
            vec![("Start weight unit", text("LBS")), ("Id", text("x")), ("Start weight", full())],
        ] {
            assert_eq!(weights(&columns), (Some(pounds), None));
        }
        assert_eq!(
            weights(&[("Start weight", full()), ("Start weight unit", text("bags"))]).0,
            None
        );
    }
}
