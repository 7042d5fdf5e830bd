//! The position of a stream, as the `id` of a server-sent event: `42`, or `42~17.23` if the rows
//! with the arrival numbers 17 and 23 had not been committed when the client received row 42.
//! Clients return it as it is in `Last-Event-ID`.

use std::fmt::Write as _;

/// The maximum number of missing rows in an id. With more, the client resumes before the first of
/// them, and receives some rows again.
const MISSING_MAX: usize = 32;

/// The rows that a client has received: those up to `arrival`, but for the missing ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResumeId {
    pub arrival: i64,
    pub missing: Vec<i64>,
}

impl ResumeId {
    /// Parses an id; `None` if it is not one of ours.
    pub fn parse(text: &str) -> Option<Self> {
        let (arrival, missing) = text.split_once('~').unwrap_or((text, ""));
        let missing = missing.split('.').filter(|number| !number.is_empty()).take(MISSING_MAX);
        let missing = missing.map(str::parse::<i64>).collect::<Result<Vec<_>, _>>().ok()?;
        Some(Self { arrival: arrival.parse().ok()?, missing })
    }

    /// Returns the id of a client that has received the rows up to `arrival`, but for those of
    /// `missing` (in ascending order) that lie before.
    pub fn text(arrival: i64, missing: &[i64]) -> String {
        let before = missing.get(..missing.partition_point(|number| *number < arrival));
        let before = before.unwrap_or_default();
        match before {
            [] => arrival.to_string(),
            [first, ..] if before.len() > MISSING_MAX => first.saturating_sub(1).to_string(),
            [first, others @ ..] => {
                let mut text = format!("{arrival}~{first}");
                for number in others {
                    let _ = write!(text, ".{number}");
                }
                text
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_names_the_rows_that_were_missing() {
        let id = |arrival, missing: &[i64]| ResumeId { arrival, missing: missing.to_vec() };
        for (arrival, missing, text, read) in [
            (42, &[][..], "42", id(42, &[])),
            (42, &[17, 23, 50][..], "42~17.23", id(42, &[17, 23])),
            (42, &[43][..], "42", id(42, &[])),
        ] {
            assert_eq!(ResumeId::text(arrival, missing), text);
            assert_eq!(ResumeId::parse(text), Some(read));
        }
        let many: Vec<i64> = (11..44).collect();
        assert_eq!(ResumeId::text(60, &many), "10", "bounded: some rows come again");
        for odd in ["", "x", "42~x", "~17", "1e3"] {
            assert_eq!(ResumeId::parse(odd), None, "{odd}");
        }
    }
}
