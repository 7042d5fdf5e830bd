//! The file formats of recorded roasts: Artisan's `.alog`, tables, and the formats of makers.
//!
//! [`read`] recognises the format; [`export`] writes a [`Recording`].

pub mod alog;
pub mod csv;
pub mod export;
pub mod makers;

use crate::recording::{FILE_BYTES_MAX, Recording};

/// The reason why a text is not a recording.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RecordingError {
    /// The text begins like an Artisan recording and is not one.
    #[error("not an Artisan recording: {0}")]
    Alog(#[from] alog::AlogError),
    /// The text is in no other format, and is not a table of samples either.
    #[error("not a table of samples: {0}")]
    Csv(#[from] csv::CsvError),
}

/// Reads a recording in any supported format: Artisan's `.alog`, a maker's own format, or a
/// table with a header line.
///
/// # Errors
/// When the text is in none of these formats, with the reason.
pub fn read(text: &str) -> Result<Recording, RecordingError> {
    let start = text.trim_start_matches('\u{feff}').trim_start();
    if start.starts_with('{') {
        return Ok(alog::read(text)?);
    }
    if text.len() > FILE_BYTES_MAX {
        return Err(csv::CsvError::TooLarge.into());
    }
    // Makers' formats first: the same column names have other units there.
    if let Some(recording) = makers::read(text) {
        return Ok(recording);
    }
    Ok(csv::read(text)?)
}
