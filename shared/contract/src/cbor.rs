//! A CBOR reader over `minicbor` that names the field in every error and bounds every length.

use minicbor::data::Type;
use minicbor::decode::Decoder;

/// The largest number. Numbers stay below 2^53, so that JSON, SQL and JavaScript keep them exactly.
pub(crate) const NUMBER_MAX: u64 = (1 << 53) - 1;
pub(crate) const NUMBER_EXPECTED: &str = "at most 2^53-1";

/// Why bytes cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A field is not the CBOR item that the format requires.
    #[error("{field}: {problem} (at byte {at})")]
    Malformed {
        /// The name of the field.
        field: &'static str,
        /// The offset of the item, in bytes.
        at: usize,
        /// What is wrong with the item.
        problem: String,
    },
    /// A number is outside its bounds.
    #[error("{field}: {value} is out of range, {expected}")]
    OutOfRange {
        /// The name of the field.
        field: &'static str,
        /// The number; `i64::MAX` if it is larger.
        value: i64,
        /// The bounds, in words.
        expected: &'static str,
    },
    /// A text is not an identity.
    #[error("{field}: {source}")]
    Id {
        /// The name of the field.
        field: &'static str,
        /// What is wrong with the identity.
        source: crate::IdError,
    },
    /// A required field is absent.
    #[error("{field} is missing")]
    Missing {
        /// The name of the field.
        field: &'static str,
    },
    /// Bytes follow the message; the value is their number.
    #[error("{0} bytes follow the end")]
    Trailing(usize),
}

pub(crate) struct Reader<'b> {
    inner: Decoder<'b>,
}

impl<'b> Reader<'b> {
    pub(crate) fn new(bytes: &'b [u8]) -> Self {
        Self { inner: Decoder::new(bytes) }
    }

    fn take<T>(
        &mut self,
        field: &'static str,
        read: impl FnOnce(&mut Decoder<'b>) -> Result<T, minicbor::decode::Error>,
    ) -> Result<T, DecodeError> {
        let at = self.inner.position();
        read(&mut self.inner).map_err(|error| DecodeError::Malformed {
            field,
            at,
            problem: error.to_string(),
        })
    }

    pub(crate) fn malformed(&self, field: &'static str, problem: impl Into<String>) -> DecodeError {
        DecodeError::Malformed { field, at: self.inner.position(), problem: problem.into() }
    }

    pub(crate) fn u64(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        self.take(field, Decoder::u64)
    }

    pub(crate) fn i64(&mut self, field: &'static str) -> Result<i64, DecodeError> {
        self.take(field, Decoder::i64)
    }

    pub(crate) fn f64(&mut self, field: &'static str) -> Result<f64, DecodeError> {
        let value = self.take(field, Decoder::f64)?;
        if value.is_finite() {
            Ok(value)
        } else {
            Err(self.malformed(field, "not a finite number"))
        }
    }

    /// Reads a number within `0..=max`.
    pub(crate) fn up_to(
        &mut self,
        field: &'static str,
        max: u64,
        expected: &'static str,
    ) -> Result<u64, DecodeError> {
        let value = self.u64(field)?;
        if value <= max {
            return Ok(value);
        }
        Err(DecodeError::OutOfRange {
            field,
            value: i64::try_from(value).unwrap_or(i64::MAX),
            expected,
        })
    }

    pub(crate) fn text(&mut self, field: &'static str) -> Result<&'b str, DecodeError> {
        self.take(field, Decoder::str)
    }

    pub(crate) fn id<T: std::str::FromStr<Err = crate::IdError>>(
        &mut self,
        field: &'static str,
    ) -> Result<T, DecodeError> {
        self.text(field)?.parse().map_err(|source| DecodeError::Id { field, source })
    }

    pub(crate) fn bytes<const N: usize>(
        &mut self,
        field: &'static str,
    ) -> Result<[u8; N], DecodeError> {
        let bytes = self.take(field, Decoder::bytes)?;
        <[u8; N]>::try_from(bytes)
            .map_err(|_| self.malformed(field, format!("{} bytes instead of {N}", bytes.len())))
    }

    /// Reads the length of a definite array of at most `max` items.
    pub(crate) fn array(&mut self, field: &'static str, max: u64) -> Result<usize, DecodeError> {
        let length = self.take(field, Decoder::array)?;
        self.bounded(field, length, max)
    }

    /// Reads the number of pairs of a definite map of at most `max` pairs.
    pub(crate) fn map(&mut self, field: &'static str, max: u64) -> Result<usize, DecodeError> {
        let length = self.take(field, Decoder::map)?;
        self.bounded(field, length, max)
    }

    fn bounded(
        &self,
        field: &'static str,
        length: Option<u64>,
        max: u64,
    ) -> Result<usize, DecodeError> {
        match length {
            Some(length) if length <= max => Ok(usize::try_from(length).unwrap_or(usize::MAX)),
            Some(length) => Err(self.malformed(field, format!("{length} items, at most {max}"))),
            None => Err(self.malformed(field, "an indefinite length")),
        }
    }

    /// Reads the head of an array of exactly `expected` items.
    pub(crate) fn tuple(
        &mut self,
        field: &'static str,
        expected: usize,
    ) -> Result<(), DecodeError> {
        let length = self.array(field, expected as u64)?;
        if length == expected {
            return Ok(());
        }
        Err(self.malformed(field, format!("{length} items instead of {expected}")))
    }

    /// Consumes a null if the next item is one, and returns whether it was.
    pub(crate) fn take_null(&mut self, field: &'static str) -> Result<bool, DecodeError> {
        if self.take(field, |d| d.datatype())? == Type::Null {
            self.take(field, Decoder::null)?;
            return Ok(true);
        }
        Ok(false)
    }

    /// Skips one well-formed item, so that a field that a newer agent adds does not break an older
    /// cloud.
    pub(crate) fn skip(&mut self, field: &'static str) -> Result<(), DecodeError> {
        self.take(field, Decoder::skip)
    }

    pub(crate) fn end(&self) -> Result<(), DecodeError> {
        match self.inner.input().len().saturating_sub(self.inner.position()) {
            0 => Ok(()),
            rest => Err(DecodeError::Trailing(rest)),
        }
    }
}

/// Unwraps the result of encoding into a `Vec`, which cannot fail:
/// `minicbor::encode::Error<Infallible>` has a message variant only for custom encoders, and none
/// is used here.
pub(crate) fn infallible<T>(
    result: Result<T, minicbor::encode::Error<std::convert::Infallible>>,
) -> T {
    match result {
        Ok(value) => value,
        Err(_) => unreachable!("writing CBOR to memory does not fail"),
    }
}
