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
    /// that begins with this message, and when.
    Arrival { opens: Option<(SessionId, EpochMs)>, repeats: Repeats },
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
