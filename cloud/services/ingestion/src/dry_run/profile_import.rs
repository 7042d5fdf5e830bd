//! The profiles of an import, without a database.

use contract::EpochMs;
use contract::profile::{ProfileBody, RoastProfile};
use http_stack::error::ApiError;

use super::DryRunError;
use crate::api::profiles::{IMPORTED_MAX, import_text, parse_bundle, parse_bundled};
use crate::profile_io;

/// The format of an import of profiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImportFormat {
    /// The format of the export, with all fields.
    Json,
    /// A table with a profile in each row.
    Csv,
    /// A recording.
    Alog,
}

/// Returns the profiles of an import that would be stored.
///
/// # Errors
/// When the import as a whole is refused.
pub fn imported_profiles(format: ImportFormat, body: &[u8]) -> Result<Vec<ProfileBody>, ApiError> {
    let read: Vec<ProfileBody> = match format {
        ImportFormat::Json => {
            let bundled = parse_bundle(body)?.into_iter().map(parse_bundled);
            bundled.filter_map(Result::ok).map(|(_, body)| body).collect()
        }
        ImportFormat::Csv => {
            let rows = profile_io::from_csv(&import_text(body)?, IMPORTED_MAX);
            rows.into_iter().filter_map(Result::ok).collect()
        }
        ImportFormat::Alog => {
            vec![profile_io::from_recording(&import_text(body)?).map_err(ApiError::Invalid)?]
        }
    };
    Ok(read.into_iter().filter(|body| body.problems().is_empty()).collect())
}

/// Returns profiles as the table that the export writes.
///
/// # Errors
/// When a profile cannot be written as a row.
pub fn profile_table(bodies: Vec<ProfileBody>) -> Result<String, DryRunError> {
    let profile = |body| RoastProfile {
        profile_id: "P-1".to_owned(),
        version: 1,
        org_id: "acme".to_owned(),
        created_at: EpochMs(0),
        updated_at: EpochMs(0),
        is_archived: false,
        actor: None,
        body,
    };
    let profiles: Vec<RoastProfile> = bodies.into_iter().map(profile).collect();
    Ok(profile_io::to_csv(&profiles)?)
}
