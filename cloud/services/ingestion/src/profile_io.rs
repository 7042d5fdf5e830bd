//! Converts profiles to and from CSV tables, and Artisan recordings to profiles with a curve to
//! follow. Pure.

use contract::EventKind;
use contract::profile::{
    CurvePoint, ProfileBody, ProfileCurve, ProfileSource, RoastProfile, SourceKind, Targets,
};
use roast::analysis::{Curve, Marks, analyze};
use serde::{Deserialize, Serialize};

/// The columns: those of upstream Sim-Corp, in its order.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ProfileCsvRow {
    name: String,
    #[serde(default)]
    charge_temp_c: Option<f64>,
    #[serde(default)]
    turning_point_temp_c: Option<f64>,
    #[serde(default)]
    first_crack_temp_c: Option<f64>,
    #[serde(default)]
    drop_temp_c: Option<f64>,
    #[serde(default)]
    target_dev_ratio: Option<f64>,
    #[serde(default, rename = "targetTimeToFCSeconds")]
    target_time_to_fc_seconds: Option<f64>,
    #[serde(default)]
    target_drop_seconds: Option<f64>,
    #[serde(default)]
    batch_size_grams: Option<f64>,
    #[serde(default)]
    machine_model: Option<String>,
    #[serde(default)]
    tags: Option<String>,
    #[serde(default)]
    notes: Option<String>,
}

/// The minimum time between two points of a curve, ms.
const POINT_EVERY_MS: i64 = 5_000;

/// Returns profiles as a CSV table with a header line. The table cannot contain curves.
///
/// # Errors
/// When a value cannot be written, which does not happen with our types.
pub fn to_csv(profiles: &[RoastProfile]) -> Result<String, csv::Error> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    for profile in profiles {
        let (body, t) = (&profile.body, &profile.body.targets);
        writer.serialize(ProfileCsvRow {
            name: as_text(&body.name),
            charge_temp_c: t.charge_temp_c,
            turning_point_temp_c: t.turning_point_temp_c,
            first_crack_temp_c: t.first_crack_temp_c,
            drop_temp_c: t.drop_temp_c,
            target_dev_ratio: t.target_dev_ratio,
            target_time_to_fc_seconds: t.target_time_to_fc_seconds,
            target_drop_seconds: t.target_drop_seconds,
            batch_size_grams: body.batch_size_grams,
            machine_model: body.machine_model.as_deref().map(as_text),
            tags: body.tags.as_ref().map(|tags| as_text(&format!("{};", tags.join(";")))),
            notes: body.notes.as_deref().map(as_text),
        })?;
    }
    let bytes = writer.into_inner().map_err(|error| csv::Error::from(error.into_error()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Parses the first `most` rows of a CSV table. Returns for each a profile, or the error with its
/// line number.
pub fn from_csv(text: &str, most: usize) -> Vec<Result<ProfileBody, String>> {
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .flexible(true)
        .from_reader(text.trim_start_matches('\u{feff}').as_bytes());
    let mut profiles = Vec::new();
    // The first line is the header.
    for (line, row) in (2_usize..).zip(reader.deserialize::<ProfileCsvRow>().take(most)) {
        profiles.push(match row {
            Ok(row) => Ok(body_of(row)),
            Err(error) => Err(format!("line {line}: {error}")),
        });
    }
    profiles
}

/// Returns whether a spreadsheet takes a cell as a formula, apart from quotes before it.
fn is_formula(cell: &str) -> bool {
    cell.trim_start_matches('\'').starts_with(['=', '+', '-', '@', '\t', '\r'])
}

/// Returns the cell for a text: a quote before what a spreadsheet would execute as a formula.
fn as_text(text: &str) -> String {
    if is_formula(text) { format!("'{text}") } else { text.to_owned() }
}

/// Returns the text of a cell that [`as_text`] made.
fn from_cell(cell: String) -> String {
    match cell.strip_prefix('\'') {
        Some(text) if is_formula(text) => text.to_owned(),
        _ => cell,
    }
}

fn body_of(row: ProfileCsvRow) -> ProfileBody {
    let text = |text: Option<String>| text.map(from_cell).filter(|text| !text.is_empty());
    let tags = text(row.tags).map(|tags| {
        // We separate tags by semicolons, so that a tag may contain a comma.
        let separator = if tags.contains(';') { ';' } else { ',' };
        let each = tags.split(separator).map(str::trim).filter(|tag| !tag.is_empty());
        each.map(str::to_owned).collect()
    });
    ProfileBody {
        name: from_cell(row.name),
        machine_model: text(row.machine_model),
        batch_size_grams: row.batch_size_grams,
        targets: Targets {
            charge_temp_c: row.charge_temp_c,
            turning_point_temp_c: row.turning_point_temp_c,
            first_crack_temp_c: row.first_crack_temp_c,
            drop_temp_c: row.drop_temp_c,
            target_dev_ratio: row.target_dev_ratio,
            target_time_to_fc_seconds: row.target_time_to_fc_seconds,
            target_drop_seconds: row.target_drop_seconds,
        },
        tags,
        notes: text(row.notes),
        source: ProfileSource { kind: SourceKind::Import, session_id: None },
        ..ProfileBody::default()
    }
}

/// Returns an Artisan recording as a profile: the values that it reached are the targets, its curve
/// is the one to follow.
///
/// # Errors
/// A sentence for the user, when the text is not a recording, or has no CHARGE and DROP.
pub fn from_recording(text: &str) -> Result<ProfileBody, String> {
    let recording = roast::formats::read(text).map_err(|error| error.to_string())?;
    let marks = Marks::of(&recording, &[]);
    let ends = marks.ms(EventKind::Charge).zip(marks.ms(EventKind::Drop));
    let (charge, drop) = ends
        .filter(|(charge, drop)| drop > charge)
        .ok_or("the recording has no CHARGE and DROP")?;
    let analysis = analyze(&recording, &marks).ok_or("the recording has no CHARGE")?;
    let curve = Curve::of(&recording);
    let mut points: Vec<CurvePoint> = Vec::new();
    let mut due = charge;
    for (bt, et) in curve.bt.iter().zip(&curve.et) {
        if bt.t_ms < due || bt.t_ms > drop {
            continue;
        }
        due = bt.t_ms.saturating_add(POINT_EVERY_MS);
        points.push(CurvePoint {
            elapsed_seconds: bt.t_ms.saturating_sub(charge) as f64 / 1000.0,
            bt_c: bt.value.map(tenths),
            et_c: et.value.map(tenths),
            ror_c_per_min: None,
        });
    }
    let name = recording.title.trim();
    let machine = Some(recording.machine.trim().to_owned()).filter(|name| !name.is_empty());
    Ok(ProfileBody {
        name: if name.is_empty() { "Artisan recording".to_owned() } else { name.to_owned() },
        machine_model: machine,
        batch_size_grams: recording.weight_in_g,
        targets: Targets {
            charge_temp_c: analysis.charge_bt_c,
            turning_point_temp_c: analysis.tp_bt_c,
            first_crack_temp_c: analysis.fc_bt_c,
            drop_temp_c: analysis.drop_bt_c,
            target_dev_ratio: analysis.development_ratio,
            target_time_to_fc_seconds: analysis.fc_seconds,
            target_drop_seconds: analysis.drop_seconds,
        },
        curve: Some(ProfileCurve { points, tolerance: None }),
        notes: Some(recording.beans).filter(|beans| !beans.trim().is_empty()),
        source: ProfileSource { kind: SourceKind::Import, session_id: None },
        ..ProfileBody::default()
    })
}

fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use contract::EpochMs;

    fn profile(body: ProfileBody) -> RoastProfile {
        RoastProfile {
            profile_id: "P-1".to_owned(),
            version: 1,
            org_id: "o".to_owned(),
            created_at: EpochMs(0),
            updated_at: EpochMs(0),
            is_archived: false,
            actor: None,
            body,
        }
    }

    #[test]
    fn a_profile_survives_export_and_import_as_a_table() {
        let body = ProfileBody {
            name: "Kenya, \"AA\"\nwashed".to_owned(),
            machine_model: Some("W15A".to_owned()),
            targets: Targets {
                drop_temp_c: Some(212.5),
                target_dev_ratio: Some(0.2),
                ..Targets::default()
            },
            tags: Some(vec!["filter".to_owned(), "light, fruity".to_owned()]),
            notes: Some("a; b".to_owned()),
            source: ProfileSource { kind: SourceKind::Import, session_id: None },
            ..ProfileBody::default()
        };
        let table = to_csv(&[profile(body.clone())]).unwrap();
        assert!(table.starts_with("name,chargeTempC,turningPointTempC,"), "{table}");
        assert_eq!(from_csv(&table, 10), [Ok(body)]);
    }

    #[test]
    fn a_blank_number_is_none_and_a_wrong_one_names_its_line() {
        let table = "name,dropTempC,tags\nA,,\"x,y\"\nB,hot,\n";
        let read = from_csv(table, 10);
        let first = read[0].as_ref().unwrap();
        assert_eq!((first.targets.drop_temp_c, first.tags.as_ref().unwrap().len()), (None, 2));
        assert!(read[1].as_ref().unwrap_err().starts_with("line 3"), "{read:?}");
        assert!(from_csv("", 10).is_empty() && from_csv(table, 1).len() == 1);
    }

    #[test]
    fn a_text_is_not_executed_as_a_formula() {
        let name = |text: &str| {
            let body = ProfileBody {
                name: text.to_owned(),
                ..from_csv("name\nx\n", 1).remove(0).unwrap()
            };
            let table = to_csv(&[profile(body)]).unwrap();
            let cell = table.lines().nth(1).unwrap().split(',').next().unwrap().to_owned();
            (cell, from_csv(&table, 1).remove(0).unwrap().name)
        };
        for text in ["=HYPERLINK(1)", "+1", "-1", "@x", "'=1", "''+1"] {
            assert_eq!(name(text), (format!("'{text}"), text.to_owned()));
        }
        for text in ["House blend", "'quoted'", "1=1"] {
            assert_eq!(name(text), (text.to_owned(), text.to_owned()));
        }
    }
}
