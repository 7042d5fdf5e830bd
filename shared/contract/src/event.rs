//! Events of a roast: what happened, when, and where the information comes from.

use serde::{Deserialize, Serialize};

use crate::cbor::{DecodeError, NUMBER_EXPECTED, NUMBER_MAX, Reader, infallible};
use crate::{EpochMs, SessionId};

type Encoder<'w> = minicbor::Encoder<&'w mut Vec<u8>>;

/// The longest note, in bytes.
pub const NOTE_BYTES_MAX: usize = 1024;

/// The note of a CHARGE that no agent saw: it is an estimate, because the agent was started in
/// mid-roast. Ingestion marks the session of such a CHARGE.
pub const BEGUN_BEFORE_NOTE: &str = "begun before the agent started; CHARGE is an estimate";

/// The kind of an event. `DEVELOPMENT_START` is upstream Sim-Corp's second name for first crack,
/// once it is no longer a guess. It is a separate kind because upstream's publishers send it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum EventKind {
    /// The beans enter the drum.
    Charge,
    /// The turning point: the lowest reading of the bean probe after CHARGE.
    Tp,
    /// The end of drying: the beans turn yellow.
    DryEnd,
    /// The start of first crack.
    Fc,
    /// The end of first crack.
    FcEnd,
    /// The start of second crack.
    Sc,
    /// The end of second crack.
    ScEnd,
    /// The start of development, as upstream Sim-Corp names a confirmed first crack.
    DevelopmentStart,
    /// The beans leave the drum.
    Drop,
    /// The beans are cool.
    CoolEnd,
    /// A remark without a meaning for the roast's course.
    Note,
}

impl EventKind {
    /// All kinds, in the order of a roast.
    pub const ALL: [Self; 11] = [
        Self::Charge,
        Self::Tp,
        Self::DryEnd,
        Self::Fc,
        Self::FcEnd,
        Self::Sc,
        Self::ScEnd,
        Self::DevelopmentStart,
        Self::Drop,
        Self::CoolEnd,
        Self::Note,
    ];

    /// Returns the name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Charge => "CHARGE",
            Self::Tp => "TP",
            Self::DryEnd => "DRY_END",
            Self::Fc => "FC",
            Self::FcEnd => "FC_END",
            Self::Sc => "SC",
            Self::ScEnd => "SC_END",
            Self::DevelopmentStart => "DEVELOPMENT_START",
            Self::Drop => "DROP",
            Self::CoolEnd => "COOL_END",
            Self::Note => "NOTE",
        }
    }

    /// Parses the name on the wire; `None` for any other text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }

    /// Returns true for the kinds that upstream Sim-Corp's clients know. Their validation would
    /// refuse the others.
    #[must_use]
    pub const fn in_legacy(self) -> bool {
        matches!(
            self,
            Self::Charge | Self::Tp | Self::Fc | Self::DevelopmentStart | Self::Drop | Self::Note
        )
    }
}

impl std::fmt::Display for EventKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where an event comes from. An event set by a person takes precedence over one from the machine,
/// which takes precedence over an inferred one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum EventSource {
    /// Detected from the samples.
    Inferred,
    /// Read from an imported recording.
    Recording,
    /// Reported by the machine.
    Machine,
    /// Set by a person.
    Person,
}

impl EventSource {
    /// All sources, from the lowest precedence to the highest.
    pub const ALL: [Self; 4] = [Self::Inferred, Self::Recording, Self::Machine, Self::Person];

    /// Returns the name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inferred => "inferred",
            Self::Recording => "recording",
            Self::Machine => "machine",
            Self::Person => "person",
        }
    }

    /// Parses the name on the wire; `None` for any other text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|source| source.as_str() == text)
    }
}

/// One event of one roast, with the time at which it happened.
#[derive(Debug, Clone, PartialEq)]
pub struct MachineEvent {
    /// What happened.
    pub kind: EventKind,
    /// The number of the sample at which the event happened.
    pub seq: u64,
    /// When it happened, by the gateway's wall clock.
    pub at: EpochMs,
    /// Seconds since CHARGE.
    pub elapsed_s: f64,
    /// The roast that the event belongs to.
    pub session: SessionId,
    /// Where the information comes from.
    pub source: EventSource,
    /// The bean temperature at the event, °C.
    pub bt_c: Option<f64>,
    /// A remark, at most [`NOTE_BYTES_MAX`] bytes.
    pub note: Option<String>,
}

/// The possible times since CHARGE, in s: 116 days, far more than any roast.
pub(crate) const ELAPSED_S: std::ops::RangeInclusive<f64> = 0.0..=1e7;

const FIELDS: usize = 8;

impl MachineEvent {
    pub(crate) fn encode(&self, e: &mut Encoder<'_>) {
        infallible(e.array(FIELDS as u64));
        infallible(e.str(self.kind.as_str()));
        infallible(e.u64(self.seq));
        infallible(e.i64(self.at.0));
        infallible(e.f64(self.elapsed_s));
        infallible(e.str(self.session.as_str()));
        infallible(e.str(self.source.as_str()));
        match self.bt_c {
            Some(bt) => infallible(e.f64(bt)),
            None => infallible(e.null()),
        };
        match &self.note {
            Some(note) => infallible(e.str(note)),
            None => infallible(e.null()),
        };
    }

    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        r.tuple("events[]", FIELDS)?;
        let kind = r.text("events[].type")?;
        let kind = EventKind::parse(kind)
            .ok_or_else(|| r.malformed("events[].type", format!("unknown type {kind:.32?}")))?;
        let seq = r.up_to("events[].seq", NUMBER_MAX, NUMBER_EXPECTED)?;
        let at = EpochMs(r.i64("events[].at")?);
        if !at.is_plausible() {
            return Err(r.malformed("events[].at", "not a time between 1970 and 9999"));
        }
        let elapsed_s = r.f64("events[].elapsed")?;
        if !ELAPSED_S.contains(&elapsed_s) {
            return Err(r.malformed("events[].elapsed", "not between 0 and 10000000 s"));
        }
        let session = r.id("events[].session")?;
        let source = r.text("events[].source")?;
        let source = EventSource::parse(source).ok_or_else(|| {
            r.malformed("events[].source", format!("unknown source {source:.32?}"))
        })?;
        let bt_c = if r.take_null("events[].bt")? { None } else { Some(r.f64("events[].bt")?) };
        let note = if r.take_null("events[].note")? {
            None
        } else {
            let note = r.text("events[].note")?;
            if note.len() > NOTE_BYTES_MAX {
                return Err(r.malformed("events[].note", "longer than 1024 bytes"));
            }
            Some(note.to_owned())
        };
        Ok(Self { kind, seq, at, elapsed_s, session, source, bt_c, note })
    }
}
