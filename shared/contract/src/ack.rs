//! The cloud's acknowledgement to a device. A broker's PUBACK means only that the broker has a
//! message; this acknowledgement means that the database has committed it.

use serde::{Deserialize, Serialize};

use crate::{ChainId, SessionId};

/// A range of frame numbers from the first to the last, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u64, u64)", into = "(u64, u64)")]
pub struct FrameRange {
    /// The number of the first frame.
    pub first: u64,
    /// The number of the last frame, included.
    pub last: u64,
}

/// A pair of numbers, as [`FrameRange`] is serialised.
#[cfg(feature = "openapi")]
impl utoipa::PartialSchema for FrameRange {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, Type};
        ArrayBuilder::new()
            .items(ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0)))
            .min_items(Some(2))
            .max_items(Some(2))
            .into()
    }
}

#[cfg(feature = "openapi")]
impl utoipa::ToSchema for FrameRange {}

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

/// Why a frame was rejected. Each reason is also a metric label and appears in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Refusal {
    /// The bytes are not a signed frame.
    #[error("the bytes are not a signed frame")]
    Malformed,
    /// No trusted key has the name that the message states.
    #[error("no key of that name is trusted")]
    UnknownKey,
    /// The signature does not match the bytes.
    #[error("the signature does not match the bytes")]
    BadSignature,
    /// The key is not authorised for the machine of the topic.
    #[error("the key is not authorised for that machine")]
    WrongOrigin,
    /// The frame number was used before with other content.
    #[error("the number was used before with other content")]
    SequenceReused,
    /// The frame does not hold the digest of the frame before it.
    #[error("the frame does not follow the one before it")]
    BrokenChain,
    /// The message is unsigned, and the cloud requires signatures.
    #[error("unsigned messages are not accepted here")]
    Unsigned,
}

impl Refusal {
    /// Returns true if the frame will never be accepted. The cloud gives these reasons only for
    /// frames whose signature it has verified, so that no other party can provoke them. Frames that
    /// are rejected for another reason are sent again later.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::SequenceReused | Self::BrokenChain)
    }

    /// Returns the name on the wire, which is also the metric label.
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

/// A frame that the cloud rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RejectedFrame {
    /// The number of the frame.
    pub frame: u64,
    /// Why the cloud rejected it.
    pub reason: Refusal,
}

/// The result of the cloud's check of a closed roast against its receipt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ReceiptVerdict {
    /// The session that the receipt is about.
    pub session_id: SessionId,
    /// True if every frame is stored and the digest matches.
    pub complete: bool,
    /// True if the receipt's digest does not match the stored frames.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub digest_differs: bool,
}

/// The acknowledgement that the cloud publishes on `roaster/{org}/{site}/{machine}/acks` and
/// returns from `POST /v1/frames`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Ack {
    /// The chain that all frame numbers here belong to.
    pub chain: ChainId,
    /// Committed frames. The edge agent may delete them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub acked: Vec<FrameRange>,
    /// Frames that are missing before committed ones. The edge agent sends them again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub need: Vec<FrameRange>,
    /// Rejected frames. The edge agent sends a frame again later unless its reason is final.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<RejectedFrame>,
    /// The results of the check of receipts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub receipts: Vec<ReceiptVerdict>,
}

impl Ack {
    /// Creates an empty acknowledgement.
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

    /// Adds one committed frame. It is merged into the last range if it is adjacent to it.
    pub fn push_acked(&mut self, frame: u64) {
        match self.acked.last_mut() {
            Some(range) if range.last.checked_add(1) == Some(frame) => range.last = frame,
            Some(range) if (range.first..=range.last).contains(&frame) => {}
            _ => self.acked.push(FrameRange { first: frame, last: frame }),
        }
    }
}
