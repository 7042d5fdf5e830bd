//! The file formats of recorded roasts: Artisan's `.alog`, tables, and the formats of makers.
//!
//! [`read_bytes`] recognises the encoding and the format; [`export`] writes a [`Recording`].

pub mod alog;
pub mod csv;
pub mod export;
pub mod makers;
mod table;
mod text;
mod time;

use crate::recording::{FILE_BYTES_MAX, Recording};

/// The formats that are read, for the error of a file in another one.
pub const KNOWN_FORMATS: &str = "Artisan (.alog), Cropster (.xls, .xlsx), Giesen, IKAWA, \
    Kaffelogic (.klog), Kaleido, Loring, Petroncini, RoasTime (.json), ROEST, Rubasse, and tables \
    with a header";

/// The reason why a text is not a recording.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RecordingError {
    /// The text begins like an Artisan recording and is not one.
    #[error("not an Artisan recording: {0}")]
    Alog(alog::AlogError),
    /// The text is in a maker's format and is not a roast.
    #[error("not a recording of {0}")]
    Maker(makers::MakerError),
    /// The text is a table and not one of samples.
    #[error("not a table of samples: {0}")]
    Csv(csv::CsvError),
    /// The text is in no known format.
    #[error("not a recording: {reason}; the known formats are {KNOWN_FORMATS}")]
    UnknownFormat {
        /// What is missing.
        reason: String,
    },
}

/// Reads a recording in any supported format and encoding (UTF-8 or UTF-16).
///
/// # Errors
/// As [`read`].
pub fn read_bytes(bytes: &[u8]) -> Result<Recording, RecordingError> {
    if bytes.len() > FILE_BYTES_MAX {
        return Err(RecordingError::Csv(csv::CsvError::TooLarge));
    }
    read(&text::decode(bytes))
}

/// Reads a recording in any supported format: Artisan's `.alog`, a maker's own format, or a
/// table with a header line.
///
/// # Errors
/// When the text is in none of these formats, or no row of it can be used, with the reason.
pub fn read(text: &str) -> Result<Recording, RecordingError> {
    let start = text.trim_start_matches('\u{feff}').trim_start();
    if start.starts_with('{') {
        return read_object(start);
    }
    if text.len() > FILE_BYTES_MAX {
        return Err(RecordingError::Csv(csv::CsvError::TooLarge));
    }
    // Makers' formats first: the same column names have other units there.
    if let Some(recording) = makers::read(text) {
        return recording.map_err(RecordingError::Maker);
    }
    csv::read(text).map_err(|error| match error {
        csv::CsvError::Header => RecordingError::UnknownFormat { reason: error.to_string() },
        other => RecordingError::Csv(other),
    })
}

/// Reads a Python or JSON object.
fn read_object(text: &str) -> Result<Recording, RecordingError> {
    let file = alog::parse_literal(text).map_err(RecordingError::Alog)?;
    if makers::roastime::is_roastime(&file) {
        return makers::roastime::read(&file).map_err(RecordingError::Maker);
    }
    if !file.contains_key("timex") {
        let reason = "an object with neither Artisan's timex nor RoasTime's beanTemperature";
        return Err(RecordingError::UnknownFormat { reason: reason.to_owned() });
    }
    alog::from_map(&file).map_err(RecordingError::Alog)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_file_lists_the_known_formats_once() {
        for text in ["", "a,b\n1,2\n", "{\"points\": []}", "{}"] {
            let error = read(text).unwrap_err().to_string();
            assert_eq!(error.matches("Kaffelogic").count(), 1, "{text}: {error}");
        }
    }

    #[test]
    fn every_format_is_recognised_by_its_content() {
        let rubasse = format!("A,1{}\n0,190,50,80,0,60,40,210,5,0\n", ",0".repeat(22));
        for (text, machine) in [
            ("{'timex': [0], 'temp1': [1], 'temp2': [1], 'roastertype': 'X'}", "X"),
            ("{\"beanTemperature\": [190]}", "RoasTime"),
            ("k:v\ntime\t#temp\t=mean_temp\n0\t190\t190\n", "Kaffelogic"),
            (rubasse.as_str(), "Rubasse"),
            ("beans,air\n190,210\n", "Giesen"),
            ("time;bt\n0;190,5\n", ""),
        ] {
            assert_eq!(read(text).unwrap().machine, machine, "{text}");
        }
    }

    #[test]
    fn a_table_in_utf_16_is_read() {
        let units = "Time\tBT\r\n0\t190,5\r\n".encode_utf16();
        let bytes: Vec<u8> = [0xfeff].into_iter().chain(units).flat_map(u16::to_le_bytes).collect();
        assert_eq!(read_bytes(&bytes).unwrap().samples[0].bt_c, Some(190.5));
    }
}
