//! Frames: consecutive samples and events of one machine, stored by column, signed once and chained
//! to the frame before. `docs/reference/protocol.md` shows the bytes.

mod column;

use crate::cbor::{DecodeError, NUMBER_EXPECTED, NUMBER_MAX, Reader, infallible};
use crate::{ChainId, Digest, EpochMs, MachineEvent, Origin};

pub use column::{Channel, Column, Quality};

/// The largest number of samples. At this bound the encoder's caller completes the frame; the
/// decoder refuses a larger frame.
pub const SAMPLES_MAX: usize = 4096;
/// The largest number of columns.
pub const COLUMNS_MAX: usize = 32;
/// The largest number of events.
pub const EVENTS_MAX: usize = 64;
/// The largest signed frame, in bytes.
pub const FRAME_BYTES_MAX: usize = 256 * 1024;
const VERSION: u64 = 1;

/// How far the gateway's wall clock can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClockQuality {
    /// Not stated.
    #[default]
    Unknown,
    /// Not synchronised since the start: durations are right, dates may be wrong.
    FreeRunning,
    /// Synchronised by NTP or better.
    Synchronised,
}

impl ClockQuality {
    /// Returns the number on the wire.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Unknown => 0,
            Self::FreeRunning => 1,
            Self::Synchronised => 2,
        }
    }

    /// Returns the quality of a number on the wire; `None` if the number is unknown.
    #[must_use]
    pub const fn from_code(code: u64) -> Option<Self> {
        match code {
            0 => Some(Self::Unknown),
            1 => Some(Self::FreeRunning),
            2 => Some(Self::Synchronised),
            _ => None,
        }
    }
}

/// Consecutive samples and events of one machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Frame {
    /// The machine that the samples and events come from.
    pub origin: Origin,
    /// The chain that the frame belongs to.
    pub chain: ChainId,
    /// The position in the chain, from 1, without gaps.
    pub number: u64,
    /// The SHA-256 of the CBOR bytes of the frame before; `None` for the first frame. It covers the
    /// bytes and not the signature, because an ES256 signature can be rewritten into another valid
    /// one.
    pub previous: Option<Digest>,
    /// A random number that changes with every start of the edge agent.
    pub boot_id: u64,
    /// The first sample's number; the others follow without gaps. Numbers continue across boots.
    pub first_seq: u64,
    /// The time of the first sample on the gateway's monotonic clock, ms.
    pub mono_ms: u64,
    /// The time of the first sample on the gateway's wall clock.
    pub wall: EpochMs,
    /// How far `wall` can be trusted.
    pub clock: ClockQuality,
    /// The SHA-256 of the machine profile by which the values were read; `None` if there is none.
    pub profile_digest: Option<Digest>,
    /// Monotonic milliseconds from the first sample to each; the first is 0.
    pub offsets_ms: Vec<u32>,
    /// The values, one column a channel; at most [`COLUMNS_MAX`].
    pub columns: Vec<Column>,
    /// The events of these samples; at most [`EVENTS_MAX`].
    pub events: Vec<MachineEvent>,
}

/// The CBOR map keys. A new field gets a new number; a number must never be reused.
mod key {
    pub const VERSION: u64 = 0;
    pub const ORG: u64 = 1;
    pub const SITE: u64 = 2;
    pub const MACHINE: u64 = 3;
    pub const CHAIN: u64 = 4;
    pub const NUMBER: u64 = 5;
    pub const PREVIOUS: u64 = 6;
    pub const BOOT: u64 = 7;
    pub const FIRST_SEQ: u64 = 8;
    pub const MONO: u64 = 9;
    pub const WALL: u64 = 10;
    pub const CLOCK: u64 = 11;
    pub const STEPS: u64 = 12;
    pub const COLUMNS: u64 = 13;
    pub const EVENTS: u64 = 14;
    pub const PROFILE: u64 = 15;
}

impl Frame {
    /// Returns the number of samples.
    #[must_use]
    pub fn sample_count(&self) -> usize {
        self.offsets_ms.len()
    }

    /// Returns the last sample's number; `None` for a frame that contains only events.
    #[must_use]
    pub fn last_seq(&self) -> Option<u64> {
        let after_first = self.sample_count().checked_sub(1)?;
        Some(self.first_seq.saturating_add(after_first as u64))
    }

    /// Returns the wall-clock time of sample `index`: the first sample's time plus the offset by
    /// the monotonic clock, so a wall clock that jumps inside a frame cannot distort the curve.
    #[must_use]
    pub fn wall_at(&self, index: usize) -> EpochMs {
        self.wall.plus_ms(i64::from(self.offsets_ms.get(index).copied().unwrap_or(0)))
    }

    /// Returns the column of a channel; `None` if the frame has none.
    #[must_use]
    pub fn column(&self, channel: &Channel) -> Option<&Column> {
        self.columns.iter().find(|column| column.channel == *channel)
    }

    /// Returns the value of `channel` at sample `index`.
    #[must_use]
    pub fn value(&self, channel: &Channel, index: usize) -> Option<f64> {
        self.column(channel).and_then(|column| column.values.get(index).copied().flatten())
    }

    /// Encodes the frame as the CBOR bytes that are signed.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes =
            Vec::with_capacity(self.sample_count().saturating_mul(12).saturating_add(256));
        let mut e = minicbor::Encoder::new(&mut bytes);
        let optional = [self.previous.is_some(), self.profile_digest.is_some()];
        let pairs = optional.into_iter().filter(|is_some| *is_some).count();
        infallible(e.map(14_u64.saturating_add(pairs as u64)));
        infallible(infallible(e.u64(key::VERSION)).u64(VERSION));
        infallible(infallible(e.u64(key::ORG)).str(self.origin.org.as_str()));
        infallible(infallible(e.u64(key::SITE)).str(self.origin.site.as_str()));
        infallible(infallible(e.u64(key::MACHINE)).str(self.origin.machine.as_str()));
        infallible(infallible(e.u64(key::CHAIN)).bytes(&self.chain.0));
        infallible(infallible(e.u64(key::NUMBER)).u64(self.number));
        if let Some(previous) = &self.previous {
            infallible(infallible(e.u64(key::PREVIOUS)).bytes(&previous.0));
        }
        infallible(infallible(e.u64(key::BOOT)).u64(self.boot_id));
        infallible(infallible(e.u64(key::FIRST_SEQ)).u64(self.first_seq));
        infallible(infallible(e.u64(key::MONO)).u64(self.mono_ms));
        infallible(infallible(e.u64(key::WALL)).i64(self.wall.0));
        infallible(infallible(e.u64(key::CLOCK)).u8(self.clock.code()));
        infallible(infallible(e.u64(key::STEPS)).array(self.offsets_ms.len() as u64));
        let mut before = 0;
        for offset in &self.offsets_ms {
            infallible(e.u32(offset.saturating_sub(before)));
            before = *offset;
        }
        infallible(infallible(e.u64(key::COLUMNS)).array(self.columns.len() as u64));
        for column in &self.columns {
            column.encode(&mut e);
        }
        infallible(infallible(e.u64(key::EVENTS)).array(self.events.len() as u64));
        for event in &self.events {
            event.encode(&mut e);
        }
        if let Some(profile) = &self.profile_digest {
            infallible(infallible(e.u64(key::PROFILE)).bytes(&profile.0));
        }
        bytes
    }

    /// Decodes the bytes that [`Frame::encode`] wrote.
    ///
    /// # Errors
    /// Names the field that is malformed, missing or out of bounds. Unknown keys are skipped.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let mut raw = PartialFrame::default();
        for _ in 0..r.map("frame", 64)? {
            raw.read_pair(&mut r)?;
        }
        r.end()?;
        raw.finish()
    }
}

/// Returns the length of the first CBOR item of `bytes`: where one message ends and the next
/// begins.
///
/// # Errors
/// When `bytes` does not begin with a complete item.
pub fn item_length(bytes: &[u8]) -> Result<usize, DecodeError> {
    let mut decoder = minicbor::Decoder::new(bytes);
    decoder.skip().map_err(|error| DecodeError::Malformed {
        field: "message",
        at: decoder.position(),
        problem: error.to_string(),
    })?;
    Ok(decoder.position())
}

/// A frame that is being decoded: some fields may still be absent.
#[derive(Default)]
struct PartialFrame {
    version: Option<u64>,
    org: Option<crate::OrgId>,
    site: Option<crate::SiteId>,
    machine: Option<crate::MachineId>,
    chain: Option<ChainId>,
    number: Option<u64>,
    previous: Option<Digest>,
    boot: Option<u64>,
    first_seq: Option<u64>,
    mono: Option<u64>,
    wall: Option<EpochMs>,
    clock: ClockQuality,
    profile: Option<Digest>,
    offsets_ms: Vec<u32>,
    columns: Vec<Column>,
    events: Vec<MachineEvent>,
}

impl PartialFrame {
    fn read_pair(&mut self, r: &mut Reader<'_>) -> Result<(), DecodeError> {
        match r.u64("frame key")? {
            key::VERSION => self.version = Some(r.u64("version")?),
            key::ORG => self.org = Some(r.id("orgId")?),
            key::SITE => self.site = Some(r.id("siteId")?),
            key::MACHINE => self.machine = Some(r.id("machineId")?),
            key::CHAIN => self.chain = Some(ChainId(r.bytes("chain")?)),
            key::NUMBER => self.number = Some(r.up_to("number", NUMBER_MAX, NUMBER_EXPECTED)?),
            key::PREVIOUS => self.previous = Some(Digest(r.bytes("previous")?)),
            key::BOOT => self.boot = Some(r.u64("boot")?),
            key::FIRST_SEQ => {
                self.first_seq = Some(r.up_to("firstSeq", NUMBER_MAX, NUMBER_EXPECTED)?);
            }
            key::MONO => self.mono = Some(r.up_to("mono", NUMBER_MAX, NUMBER_EXPECTED)?),
            key::WALL => self.wall = Some(EpochMs(r.i64("wall")?)),
            key::CLOCK => {
                let code = r.u64("clock")?;
                self.clock = ClockQuality::from_code(code)
                    .ok_or_else(|| r.malformed("clock", format!("unknown quality {code}")))?;
            }
            key::PROFILE => self.profile = Some(Digest(r.bytes("profile")?)),
            key::STEPS => self.offsets_ms = read_steps(r)?,
            key::COLUMNS => {
                for _ in 0..r.array("columns", COLUMNS_MAX as u64)? {
                    self.columns.push(Column::decode(r)?);
                }
            }
            key::EVENTS => {
                for _ in 0..r.array("events", EVENTS_MAX as u64)? {
                    self.events.push(MachineEvent::decode(r)?);
                }
            }
            _ => r.skip("unknown field")?,
        }
        Ok(())
    }

    fn finish(self) -> Result<Frame, DecodeError> {
        let missing = |field| DecodeError::Missing { field };
        let version = self.version.ok_or(missing("version"))?;
        if version != VERSION {
            let value = i64::try_from(version).unwrap_or(i64::MAX);
            return Err(DecodeError::OutOfRange {
                field: "version",
                value,
                expected: "this cloud reads 1",
            });
        }
        let wall = self.wall.ok_or(missing("wall"))?;
        if !wall.is_plausible() {
            return Err(DecodeError::OutOfRange {
                field: "wall",
                value: wall.0,
                expected: "a time between 1970 and 9999",
            });
        }
        let number = self.number.ok_or(missing("number"))?;
        if number == 0 {
            return Err(DecodeError::OutOfRange { field: "number", value: 0, expected: "from 1" });
        }
        let mut seen: Vec<&Channel> = Vec::with_capacity(self.columns.len());
        for column in &self.columns {
            if column.values.len() != self.offsets_ms.len() {
                return Err(DecodeError::OutOfRange {
                    field: "columns[].values",
                    value: i64::try_from(column.values.len()).unwrap_or(i64::MAX),
                    expected: "one value for each step",
                });
            }
            if column
                .quality
                .last()
                .is_some_and(|(index, _)| usize::from(*index) >= column.values.len())
            {
                return Err(DecodeError::OutOfRange {
                    field: "columns[].quality",
                    value: column.quality.last().map_or(0, |(index, _)| i64::from(*index)),
                    expected: "an index of a value",
                });
            }
            if seen.contains(&&column.channel) {
                return Err(DecodeError::Malformed {
                    field: "columns[].name",
                    at: 0,
                    problem: format!("{} comes twice", column.channel.as_str()),
                });
            }
            seen.push(&column.channel);
        }
        Ok(Frame {
            origin: Origin {
                org: self.org.ok_or(missing("orgId"))?,
                site: self.site.ok_or(missing("siteId"))?,
                machine: self.machine.ok_or(missing("machineId"))?,
            },
            chain: self.chain.ok_or(missing("chain"))?,
            number,
            previous: self.previous,
            boot_id: self.boot.ok_or(missing("boot"))?,
            first_seq: self.first_seq.ok_or(missing("firstSeq"))?,
            mono_ms: self.mono.ok_or(missing("mono"))?,
            wall,
            clock: self.clock,
            profile_digest: self.profile,
            offsets_ms: self.offsets_ms,
            columns: self.columns,
            events: self.events,
        })
    }
}

/// Reads the steps between samples and sums them up to offsets. A frame may span at most a day.
fn read_steps(r: &mut Reader<'_>) -> Result<Vec<u32>, DecodeError> {
    const SPAN_MS_MAX: u64 = 86_400_000;
    let count = r.array("steps", SAMPLES_MAX as u64)?;
    let mut offsets = Vec::with_capacity(count);
    let mut sum = 0_u64;
    for index in 0..count {
        sum = sum.saturating_add(r.up_to("steps", SPAN_MS_MAX, "at most a day")?);
        match u32::try_from(sum) {
            Ok(offset) if sum <= SPAN_MS_MAX && (index > 0 || offset == 0) => offsets.push(offset),
            _ => return Err(r.malformed("steps", "they begin at 0 and span at most a day")),
        }
    }
    Ok(offsets)
}
