//! Roast profiles: what a roast should be, in the form that upstream Sim-Corp's clients read.

use serde::{Deserialize, Serialize};

use crate::{Actor, EpochMs};

/// The targets of a roast: temperatures in °C, times in s, and a ratio.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Targets {
    /// Bean temperature at CHARGE, °C.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub charge_temp_c: Option<f64>,
    /// Bean temperature at the turning point, °C.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub turning_point_temp_c: Option<f64>,
    /// Bean temperature at first crack, °C.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_crack_temp_c: Option<f64>,
    /// Bean temperature at DROP, °C.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drop_temp_c: Option<f64>,
    /// Development time as a share of the whole roast time, 0..1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_dev_ratio: Option<f64>,
    /// Time from CHARGE to first crack, s.
    #[serde(rename = "targetTimeToFCSeconds", skip_serializing_if = "Option::is_none")]
    pub target_time_to_fc_seconds: Option<f64>,
    /// Time from CHARGE to DROP, s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_drop_seconds: Option<f64>,
}

/// A point of the curve to follow. `elapsedSeconds` counts from CHARGE.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CurvePoint {
    /// Time from CHARGE, s.
    pub elapsed_seconds: f64,
    /// Bean temperature, °C.
    #[serde(default, rename = "btC", skip_serializing_if = "Option::is_none")]
    pub bt_c: Option<f64>,
    /// Environment temperature, °C.
    #[serde(default, rename = "etC", skip_serializing_if = "Option::is_none")]
    pub et_c: Option<f64>,
    /// Rate of rise of the bean temperature, °C/min.
    #[serde(default, rename = "rorCPerMin", skip_serializing_if = "Option::is_none")]
    pub ror_c_per_min: Option<f64>,
}

/// How far a roast may deviate from the curve.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Tolerance {
    /// Bean temperature, ± °C.
    #[serde(rename = "btC", skip_serializing_if = "Option::is_none")]
    pub bt_c: Option<f64>,
    /// Environment temperature, ± °C.
    #[serde(rename = "etC", skip_serializing_if = "Option::is_none")]
    pub et_c: Option<f64>,
    /// Rate of rise of the bean temperature, ± °C/min.
    #[serde(rename = "rorCPerMin", skip_serializing_if = "Option::is_none")]
    pub ror_c_per_min: Option<f64>,
}

/// The curve that a roast is to follow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ProfileCurve {
    /// The points of the curve, at most [`CURVE_POINTS_MAX`].
    pub points: Vec<CurvePoint>,
    /// How far a roast may deviate from the points.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tolerance: Option<Tolerance>,
}

/// How a profile came into being.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum SourceKind {
    /// A person entered it.
    #[default]
    Manual,
    /// It was derived from a session.
    FromSession,
    /// It was imported from a file.
    Import,
}

/// The source of a profile.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ProfileSource {
    /// How the profile came into being.
    #[serde(default)]
    pub kind: SourceKind,
    /// The session that the profile was derived from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
}

/// The fields of a profile that a person sets. The service sets all others.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ProfileBody {
    /// The name, 1 to 200 bytes.
    pub name: String,
    /// The site that the profile is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub site_id: Option<String>,
    /// The model of roaster that the profile is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine_model: Option<String>,
    /// The weight of the green beans, g.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_size_grams: Option<f64>,
    /// The targets of the roast.
    pub targets: Targets,
    /// The curve to follow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub curve: Option<ProfileCurve>,
    /// Free labels: at most 50, of 1 to 200 bytes each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tags: Option<Vec<String>>,
    /// Remarks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notes: Option<String>,
    /// Where the profile comes from.
    pub source: ProfileSource,
}

/// The largest number of points in a curve. No roast needs more.
pub const CURVE_POINTS_MAX: usize = 5_000;
/// The largest number of tags.
pub const TAGS_MAX: usize = 50;
/// The longest name, site, machine model or tag, in bytes.
pub const WORD_BYTES_MAX: usize = 200;

impl ProfileBody {
    /// Returns what is wrong with the profile, each with its field.
    #[must_use]
    pub fn problems(&self) -> Vec<(&'static str, &'static str)> {
        let mut found = Vec::new();
        let mut require = |holds: bool, field, problem| {
            if !holds {
                found.push((field, problem));
            }
        };
        let word = |text: &str| (1..=WORD_BYTES_MAX).contains(&text.trim().len());
        require(word(&self.name), "name", "not 1 to 200 bytes");
        for (field, text) in [("siteId", &self.site_id), ("machineModel", &self.machine_model)] {
            require(text.as_deref().is_none_or(word), field, "not 1 to 200 bytes");
        }
        let t = &self.targets;
        let numbers = [
            t.charge_temp_c,
            t.turning_point_temp_c,
            t.first_crack_temp_c,
            t.drop_temp_c,
            t.target_time_to_fc_seconds,
            t.target_drop_seconds,
            self.batch_size_grams,
        ];
        let finite = numbers.iter().flatten().all(|value| value.is_finite());
        require(finite, "targets", "a number that is not finite");
        let share = t.target_dev_ratio.is_none_or(|ratio| (0.0..=1.0).contains(&ratio));
        require(share, "targets.targetDevRatio", "not between 0 and 1");
        let points = self.curve.as_ref().map_or(0, |curve| curve.points.len());
        require(points <= CURVE_POINTS_MAX, "curve.points", "more than 5000");
        let tags = self.tags.as_deref().unwrap_or_default();
        let plain = |tag: &String| word(tag) && !tag.chars().any(char::is_control);
        let fits = tags.len() <= TAGS_MAX && tags.iter().all(plain);
        require(fits, "tags", "more than 50, or one that is not a line of 1 to 200 bytes");
        found
    }
}

/// A roast profile in one of its versions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RoastProfile {
    /// The identity of the profile, the same in all its versions.
    pub profile_id: String,
    /// The version number; the first is 1.
    pub version: i64,
    /// The organisation that owns the profile.
    pub org_id: String,
    /// When the first version was stored.
    pub created_at: EpochMs,
    /// When the profile was last changed.
    pub updated_at: EpochMs,
    /// True if the profile is archived: kept, but not listed by default.
    #[serde(default)]
    pub is_archived: bool,
    /// Who made the last change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<Actor>,
    /// What a person has set.
    #[serde(flatten)]
    pub body: ProfileBody,
}

/// A stored version of a profile, with a snapshot of the profile.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RoastProfileVersion {
    /// The identity of the profile.
    pub profile_id: String,
    /// The version number; the first is 1.
    pub version: i64,
    /// When this version was stored.
    pub created_at: EpochMs,
    /// Who made this version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<Actor>,
    /// The whole profile in this version.
    pub snapshot: RoastProfile,
    /// What its author says has changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change_note: Option<String>,
}
