//! What verification returns, and what the database stores: keys, and frames that have been checked.

use contract::{Digest, EpochMs, Frame, SessionId};
use trust::{PublicKey, SignedMessage};

use crate::published::PublishedMessage;

/// A key and the machines for which it may sign.
#[derive(Debug)]
pub struct TrustedKey {
    pub public: PublicKey,
    /// The previous keys, and until when their signatures are accepted: for frames that waited in a
    /// journal while the key was replaced.
    pub previous: Vec<(PublicKey, EpochMs)>,
    pub site: String,
    pub machines: Vec<String>,
}

impl TrustedKey {
    /// Returns the verdict after also trying the previous keys.
    ///
    /// # Errors
    /// The verdict of the current key, when no previous key fits either.
    pub fn or_previous_keys(
        &self,
        signed: &SignedMessage,
        verdict: Result<(), trust::CoseError>,
        now: EpochMs,
    ) -> Result<(), trust::CoseError> {
        verdict.or_else(|error| {
            let mut believed = self.previous.iter().filter(|(_, until)| now.0 < until.0);
            let fits = believed.any(|(key, _)| signed.verify(key).is_ok());
            if fits { Ok(()) } else { Err(error) }
        })
    }
}

/// Whether a row was signed and verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    Verified,
    Unsigned,
}

impl Trust {
    #[must_use]
    pub const fn code(self) -> i16 {
        match self {
            Self::Verified => 0,
            Self::Unsigned => 1,
        }
    }
}

/// Which side numbers a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Numbering {
    /// The edge, by its journal.
    Edge,
    /// Ingestion, on arrival: upstream Sim-Corp messages have no number. `opens` is the session
    /// that begins with this message.
    Arrival { opens: Option<Opening>, repeats: Repeats },
}

/// A session that begins with a message, as decided when the message was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    pub session: SessionId,
    pub started: EpochMs,
    /// The newest session of the machine at that time. If another one is the newest when the message
    /// is stored, another instance has opened it since, and the decision is made again.
    pub after: Option<String>,
}

/// How a message that arrives again is recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeats {
    /// By its time and content.
    SameTime,
    /// By its content, among the messages from this number that were received since: its own time
    /// says nothing.
    Since { number: i64, received: EpochMs },
    /// Not at all: the message says nothing that another could not say as well.
    Unrecognisable,
}

/// How far a gateway's clock may be ahead of the server's, in ms. A clock further ahead is wrong.
const AHEAD_MAX_MS: i64 = 60_000;

/// Returns how far a gateway's date is ahead of its arrival, in ms; 0 if it is possible.
pub(crate) fn ahead_ms(at: EpochMs, received: EpochMs) -> i64 {
    let ahead = at.ms_since(received);
    if ahead > AHEAD_MAX_MS { ahead } else { 0 }
}

/// A frame whose signature (unless it is [`Trust::Unsigned`]), origin and form have been checked.
#[derive(Debug, Clone)]
pub struct VerifiedFrame {
    pub frame: Frame,
    pub digest: Digest,
    pub signed: Vec<u8>,
    /// Empty for an unsigned message.
    pub kid: String,
    pub trust: Trust,
    pub numbering: Numbering,
    /// What an upstream Sim-Corp message says beyond its frame.
    pub published: Option<PublishedMessage>,
    pub received: EpochMs,
}

impl VerifiedFrame {
    /// Returns how far the gateway's clock was ahead when it sent the frame, in ms, if that is
    /// impossible: a frame is not received before its last sample is made. Such a clock is wrong,
    /// even if the gateway says that it is synchronised. Returns 0 for a possible date.
    #[must_use]
    pub fn ahead_ms(&self) -> i64 {
        if self.numbering != Numbering::Edge {
            return 0;
        }
        let last = self.frame.offsets_ms.last().copied().map_or(0, i64::from);
        ahead_ms(self.frame.wall.plus_ms(last), self.received)
    }
}
