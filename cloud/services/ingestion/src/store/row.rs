//! A frame as a row: its columns as arrays (`real[]`, or JSON text on SQLite).

use ::database::sqlx::postgres::PgRow;
use ::database::sqlx::sqlite::SqliteRow;
use ::database::sqlx::{Error, FromRow, Row as _};
use contract::point::ExtraValue;
use contract::{Channel, EpochMs, Frame};

use super::batch_tx::{NewFrame, number};
use crate::published::{PublishedMessage, PublishedSamples};
use crate::verified_frame::VerifiedFrame;

/// The values of a column. Single precision is enough for what thermometers and registers measure;
/// the signed bytes in the same row hold exactly what the edge sent.
pub type Values = Option<Vec<Option<f32>>>;

/// A frame as read from the database.
#[derive(Debug, Clone)]
pub struct FrameRow {
    pub chain_no: i64,
    pub number: i64,
    pub machine_no: i64,
    pub arrival: i64,
    /// `None` for a curve, which may span boots.
    pub boot: Option<i64>,
    pub mono_ms: i64,
    pub first_seq: i64,
    pub t0_ms: i64,
    /// The time of the first sample by the gateway's clock, if `t0_ms` was corrected.
    pub wall_ms: Option<i64>,
    pub offsets_ms: Vec<i32>,
    pub values: [Values; 7],
    pub extras: Option<String>,
    pub quality: Option<String>,
    pub trust: i16,
    pub received_ms: i64,
    /// What a publisher of upstream Sim-Corp said about the samples.
    pub published: Option<PublishedSamples>,
}

/// The columns that [`FrameRow`] reads.
pub const SELECT: &str = "chain_no, number, machine_no, arrival, boot, mono_ms, first_seq, t0_ms, \
     wall_ms, offsets_ms, bt_c, et_c, ror_c_per_min, gas_pct, fan_pct, drum_rpm, ambient_c, extras, quality, trust, \
     received_ms, published";

/// The columns of [`Channel::STANDARD`], in its order.
const NAMES: [&str; 7] =
    ["bt_c", "et_c", "ror_c_per_min", "gas_pct", "fan_pct", "drum_rpm", "ambient_c"];

/// Reads a row of either database, whose arrays the caller has read.
macro_rules! frame_row {
    ($row:ident, $offsets_ms:expr, $values:ident) => {
        FrameRow {
            chain_no: $row.try_get("chain_no")?,
            number: $row.try_get("number")?,
            machine_no: $row.try_get("machine_no")?,
            arrival: $row.try_get("arrival")?,
            boot: $row.try_get("boot")?,
            mono_ms: $row.try_get("mono_ms")?,
            first_seq: $row.try_get("first_seq")?,
            t0_ms: $row.try_get("t0_ms")?,
            wall_ms: $row.try_get("wall_ms")?,
            offsets_ms: $offsets_ms,
            values: $values,
            extras: $row.try_get("extras")?,
            quality: $row.try_get("quality")?,
            trust: $row.try_get("trust")?,
            received_ms: $row.try_get("received_ms")?,
            published: PublishedSamples::parse($row.try_get("published")?),
        }
    };
}

impl FromRow<'_, PgRow> for FrameRow {
    fn from_row(row: &PgRow) -> Result<Self, Error> {
        let mut values: [Values; 7] = Default::default();
        for (name, slot) in NAMES.into_iter().zip(&mut values) {
            *slot = row.try_get(name)?;
        }
        Ok(frame_row!(row, row.try_get("offsets_ms")?, values))
    }
}

impl FromRow<'_, SqliteRow> for FrameRow {
    fn from_row(row: &SqliteRow) -> Result<Self, Error> {
        fn json<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, Error> {
            serde_json::from_str(text).map_err(|error| Error::Decode(Box::new(error)))
        }
        let mut values: [Values; 7] = Default::default();
        for (name, slot) in NAMES.into_iter().zip(&mut values) {
            *slot = row.try_get::<Option<&str>, _>(name)?.map(json).transpose()?;
        }
        Ok(frame_row!(row, json(row.try_get("offsets_ms")?)?, values))
    }
}

impl FrameRow {
    /// Returns the row that the database stores for a frame, as it is read back.
    pub(super) fn of(new: &NewFrame<'_>) -> Self {
        let verified = new.verified;
        let frame = &verified.frame;
        let offsets = frame.offsets_ms.iter().map(|ms| i32::try_from(*ms).unwrap_or(i32::MAX));
        let published = verified.published.as_ref().and_then(PublishedMessage::of_samples);
        Self {
            chain_no: new.no.chain,
            number: new.number,
            machine_no: new.no.machine,
            arrival: 1,
            boot: Some(frame.boot_id.cast_signed()),
            mono_ms: number(frame.mono_ms),
            first_seq: new.first_seq,
            t0_ms: new.date.t0_ms,
            wall_ms: new.date.wall_ms,
            offsets_ms: offsets.collect(),
            values: columns_of(frame),
            extras: extras_of(verified),
            quality: quality_of(frame),
            trust: verified.trust.code(),
            received_ms: verified.received.0,
            published: PublishedSamples::parse(published.as_deref()),
        }
    }

    /// Returns the number of samples.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.offsets_ms.len()
    }

    /// Returns the number of cells that a frame with `extras` extra channels has in JSON: its samples
    /// by its columns, the time among them.
    #[must_use]
    pub fn cells(&self, extras: usize) -> usize {
        let columns = self.values.iter().flatten().count().saturating_add(extras);
        self.len().saturating_mul(columns.saturating_add(1))
    }

    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.offsets_ms.is_empty()
    }

    /// Returns the value of a standard channel at sample `i`, rounded to four decimals, so that
    /// 176.1 is not returned as 176.10000610351562. `None` for an extra channel.
    #[must_use]
    pub fn value(&self, channel: &Channel, i: usize) -> Option<f64> {
        let column = Channel::STANDARD.iter().position(|standard| standard == channel)?;
        let value = *self.values.get(column)?.as_ref()?.get(i)?;
        value.map(|v| (f64::from(v) * 10_000.0).round() / 10_000.0)
    }

    #[must_use]
    pub fn sample_at(&self, i: usize) -> EpochMs {
        EpochMs(self.t0_ms).plus_ms(i64::from(self.offsets_ms.get(i).copied().unwrap_or(0)))
    }

    #[must_use]
    pub fn seq_at(&self, i: usize) -> i64 {
        self.first_seq.saturating_add(i64::try_from(i).unwrap_or(i64::MAX))
    }
}

/// Returns the number after the last sample of some frames; `None` if there are none.
#[must_use]
pub fn end_of(frames: &[FrameRow]) -> Option<i64> {
    frames.iter().map(|frame| frame.seq_at(frame.len())).max()
}

/// Returns a frame's standard columns in the form in which the database stores them. A value that
/// single precision cannot hold is stored as missing: an infinity would spread to totals and JSON.
pub fn columns_of(frame: &Frame) -> [Values; 7] {
    Channel::STANDARD.map(|channel| {
        let column = frame.column(&channel)?;
        #[allow(clippy::cast_possible_truncation)] // to single precision, on purpose
        let values =
            column.values.iter().map(|v| v.map(|v| v as f32).filter(|v| v.is_finite())).collect();
        Some(values)
    })
}

/// Returns the channels that have no column of their own, as JSON; `None` when there are none.
pub fn extras_of(verified: &VerifiedFrame) -> Option<String> {
    let mut extras = serde_json::Map::new();
    for column in &verified.frame.columns {
        if let Channel::Extra(name) = &column.channel {
            extras.insert(name.to_string(), serde_json::json!(column.values));
        }
    }
    if let Some(PublishedMessage::Sample(_, values)) = &verified.published {
        let one =
            |(name, value): (&String, &ExtraValue)| (name.clone(), serde_json::json!([value]));
        extras.extend(values.iter().map(one));
    }
    (!extras.is_empty()).then(|| serde_json::Value::Object(extras).to_string())
}

/// Returns the quality remarks on values, as JSON; `None` when all are good.
pub fn quality_of(frame: &Frame) -> Option<String> {
    let mut remarks = serde_json::Map::new();
    for column in frame.columns.iter().filter(|column| !column.quality.is_empty()) {
        let list: Vec<_> = column.quality.iter().map(|(i, quality)| (*i, quality.code())).collect();
        remarks.insert(column.channel.as_str().to_owned(), serde_json::json!(list));
    }
    (!remarks.is_empty()).then(|| serde_json::Value::Object(remarks).to_string())
}
