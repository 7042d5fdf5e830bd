//! The cloud's answer to a device. A broker's PUBACK says that the broker has a message; only
//! this says that the database has it.

use serde::{Deserialize, Serialize};

use crate::{ChainId, SessionId};

/// Frame numbers from the first to the last, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u64, u64)", into = "(u64, u64)")]
pub struct FrameRange {
    pub first: u64,
    pub last: u64,
}

impl From<(u64, u64)> for FrameRange {
    fn from((first, last): (u64, u64)) -> Self {
        Self { first, last }
    }
}

impl From<FrameRange> for (u64, u64) {
    fn from(range: FrameRange) -> Self {
        (range.first, range.last)
    }
}

/// Why a frame was refused. Each is a metric label and a word in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Refusal {
    #[error("the bytes are not a signed frame")]
    Malformed,
    #[error("no key of that name is trusted")]
    UnknownKey,
    #[error("the signature does not fit the bytes")]
    BadSignature,
    #[error("the key does not speak for that machine")]
    WrongOrigin,
    #[error("the number was used before with other content")]
    SequenceReused,
    #[error("the frame does not follow the one before it")]
    BrokenChain,
    #[error("unsigned messages are not accepted here")]
    Unsigned,
}

impl Refusal {
    /// True when the frame will never be taken: said only of frames whose signature was verified,
    /// so nobody else can provoke it. The others are sent again, later.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::SequenceReused | Self::BrokenChain)
    }

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::UnknownKey => "unknown_key",
            Self::BadSignature => "bad_signature",
            Self::WrongOrigin => "wrong_origin",
            Self::SequenceReused => "sequence_reused",
            Self::BrokenChain => "broken_chain",
            Self::Unsigned => "unsigned",
        }
    }
}

/// A frame that will never be stored as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    pub frame: u64,
    pub reason: Refusal,
}

/// What the cloud found when it counted a closed roast.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReceiptVerdict {
    pub session_id: SessionId,
    /// True when every frame is there and the digest fits.
    pub complete: bool,
    /// The receipt's own digest does not fit the frames that are there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub digest_differs: bool,
}

/// Published on `roaster/{org}/{site}/{machine}/acks`, and the answer to `POST /v1/frames`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    pub chain: ChainId,
    /// Committed: the edge may delete these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub acked: Vec<FrameRange>,
    /// Missing before what was committed: the edge sends these again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub need: Vec<FrameRange>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<Refused>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub receipts: Vec<ReceiptVerdict>,
}

impl Ack {
    /// An answer that says nothing yet.
    #[must_use]
    pub const fn new(chain: ChainId) -> Self {
        Self {
            chain,
            acked: Vec::new(),
            need: Vec::new(),
            refused: Vec::new(),
            receipts: Vec::new(),
        }
    }

    /// Adds one committed frame, joined to the range before it where they touch.
    pub fn push_acked(&mut self, frame: u64) {
        match self.acked.last_mut() {
            Some(range) if range.last + 1 == frame => range.last = frame,
            Some(range) if (range.first..=range.last).contains(&frame) => {}
            _ => self.acked.push(FrameRange { first: frame, last: frame }),
        }
    }
}
