//! Wall-clock time as milliseconds since 1970, and its ISO 8601 text.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Milliseconds since 1970-01-01T00:00:00Z. Text is `2025-10-05T21:08:15.000Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct EpochMs(pub i64);

/// 9999-12-30T22:00:00Z, the latest time that every offset can write with a four-digit year.
const MAX_MS: i64 = 253_402_207_200_000;
/// In the year 966. Earlier and later times are written as these two.
const MIN_MS: i64 = -MAX_MS / 8;

impl EpochMs {
    /// Parses a full date-time with seconds and `Z` or an offset. A text without `Z` or an offset
    /// is refused, because it does not define an instant. A time that cannot be written becomes the
    /// nearest that can.
    #[must_use]
    pub fn parse_iso(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        let timed = bytes.len() >= 20 && bytes[10] == b'T' && bytes[16] == b':';
        let timestamp: jiff::Timestamp = timed.then(|| text.parse().ok()).flatten()?;
        Some(Self(timestamp.as_millisecond().clamp(MIN_MS, MAX_MS)))
    }

    /// Formats the time as `20251005T210815`, for identities.
    #[must_use]
    pub fn compact(self) -> String {
        self.timestamp().strftime("%Y%m%dT%H%M%S").to_string()
    }

    /// Returns the milliseconds from `earlier` to this time; negative if this time is earlier.
    #[must_use]
    pub const fn ms_since(self, earlier: Self) -> i64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Returns the time `ms` milliseconds later; earlier if `ms` is negative.
    #[must_use]
    pub const fn plus_ms(self, ms: i64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// Returns the time `ms` milliseconds earlier; later if `ms` is negative.
    #[must_use]
    pub const fn minus_ms(self, ms: i64) -> Self {
        Self(self.0.saturating_sub(ms))
    }

    /// Returns true for a time from 1970 that ISO 8601 can write with a four-digit year.
    #[must_use]
    pub const fn is_plausible(self) -> bool {
        self.0 >= 0 && self.0 <= MAX_MS
    }

    fn timestamp(self) -> jiff::Timestamp {
        jiff::Timestamp::from_millisecond(self.0.clamp(MIN_MS, MAX_MS)).unwrap_or_default()
    }
}

impl fmt::Display for EpochMs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}", self.timestamp())
    }
}

impl Serialize for EpochMs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for EpochMs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        Self::parse_iso(&text).ok_or_else(|| {
            de::Error::custom("not a full ISO 8601 date-time with seconds and Z or an offset")
        })
    }
}

#[cfg(feature = "openapi")]
impl utoipa::PartialSchema for EpochMs {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, SchemaFormat, Type};
        ObjectBuilder::new()
            .schema_type(Type::String)
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
            .examples([serde_json::json!("2025-10-05T21:08:15.000Z")])
            .into()
    }
}

#[cfg(feature = "openapi")]
impl utoipa::ToSchema for EpochMs {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iso_text_keeps_its_instant() {
        for (text, expected) in [
            ("2025-10-05T21:08:15.000Z", Some("2025-10-05T21:08:15.000Z")),
            ("2025-10-05T21:08:15Z", Some("2025-10-05T21:08:15.000Z")),
            ("2025-10-05T23:08:15.123456+02:00", Some("2025-10-05T21:08:15.123Z")),
            ("2025-10-05T21:08:15", None),
            ("2025-10-05", None),
            ("2025-13-05T21:08:15Z", None),
            ("", None),
            ("yesterday at about noon", None),
        ] {
            let parsed = EpochMs::parse_iso(text).map(|t| t.to_string());
            assert_eq!(parsed.as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn a_time_that_was_read_is_written_as_it_was_read() {
        for text in ["0001-01-01T00:00:00Z", "9999-12-30T21:59:59Z", "1969-12-31T23:59:59Z"] {
            let read = EpochMs::parse_iso(text).unwrap();
            assert_eq!(EpochMs::parse_iso(&read.to_string()), Some(read), "{text}");
        }
    }

    #[test]
    fn any_number_can_be_written() {
        for ms in [i64::MIN, -1, 0, i64::MAX] {
            let _ = EpochMs(ms).to_string();
        }
        assert_eq!(EpochMs(i64::MAX).to_string(), "9999-12-30T22:00:00.000Z");
    }
}
