//! Verifies messages: who signed, with which key, for which machine.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use contract::{Digest, EpochMs, Frame, KeyId, OrgId, Origin, Receipt, Refusal, SessionId};
use tokio::time::Instant;
use trust::{CONTENT_FRAME, CONTENT_RECEIPT, PublicKey, SignedMessage};

use crate::store::IngestStore;
use database::StoreError;

/// How long a trusted key is cached: a revoked key is accepted at most this long.
const TRUSTED_TTL: Duration = Duration::from_secs(30);
/// How long the result "unknown key" is cached.
const UNKNOWN_TTL: Duration = Duration::from_secs(2);
/// The maximum number of cached keys. At this bound the cache is cleared, which costs one query for
/// each key.
const KEYS_MAX: usize = 100_000;

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

type Entry = (Instant, Option<Arc<TrustedKey>>);

/// A read-through cache of the keys in the database.
#[derive(Default)]
pub struct KeyCache {
    entries: Mutex<HashMap<(OrgId, KeyId), Entry>>,
}

impl KeyCache {
    /// Returns the key with that id in that organisation, if it is trusted.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn find(
        &self,
        store: &IngestStore,
        org: &OrgId,
        kid: &KeyId,
    ) -> Result<Option<Arc<TrustedKey>>, StoreError> {
        self.look_up(store, (org, kid), TRUSTED_TTL).await
    }

    /// Rereads a key, for a signature that does not fit the cached one: the gateway may have a new
    /// key. An entry read within `UNKNOWN_TTL` is not read again.
    ///
    /// # Errors
    /// As [`KeyCache::find`].
    pub async fn refresh(
        &self,
        store: &IngestStore,
        org: &OrgId,
        kid: &KeyId,
    ) -> Result<Option<Arc<TrustedKey>>, StoreError> {
        self.look_up(store, (org, kid), UNKNOWN_TTL).await
    }

    async fn look_up(
        &self,
        store: &IngestStore,
        (org, kid): (&OrgId, &KeyId),
        known_for: Duration,
    ) -> Result<Option<Arc<TrustedKey>>, StoreError> {
        let name = (org.clone(), kid.clone());
        let now = Instant::now();
        {
            let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((read, key)) = entries.get(&name) {
                let fresh = if key.is_some() { known_for } else { UNKNOWN_TTL };
                if now.duration_since(*read) < fresh {
                    return Ok(key.clone());
                }
            }
        }
        let key = store.trusted_key(org, kid).await?.map(Arc::new);
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= KEYS_MAX {
            entries.clear();
        }
        entries.insert(name, (now, key.clone()));
        Ok(key)
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
    Arrival { opens: Option<(SessionId, EpochMs)> },
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
    pub received: EpochMs,
}

/// A signed message of a machine, parsed but not yet verified.
pub struct UnverifiedMessage {
    pub origin: Origin,
    pub signed: SignedMessage,
    pub bytes: Vec<u8>,
}

impl UnverifiedMessage {
    /// Parses a message that arrived for `origin`, as named by its topic.
    ///
    /// # Errors
    /// [`Refusal::Malformed`].
    pub fn parse(origin: Origin, bytes: Vec<u8>) -> Result<Self, Refusal> {
        if bytes.len() > contract::frame::FRAME_BYTES_MAX {
            return Err(Refusal::Malformed);
        }
        let signed = SignedMessage::parse(&bytes).map_err(|_| Refusal::Malformed)?;
        Ok(Self { origin, signed, bytes })
    }

    /// Returns the unverified frame, for the refusal sent to its device. It must not be used for
    /// anything else.
    #[must_use]
    pub fn claimed_frame(&self) -> Option<Frame> {
        Frame::decode(self.signed.payload()).ok()
    }

    fn check_origin(&self, key: &TrustedKey, claimed: &Origin) -> Result<(), Refusal> {
        let fits = *claimed == self.origin
            && key.site == claimed.site.as_str()
            && key.machines.iter().any(|machine| machine == claimed.machine.as_str());
        if fits { Ok(()) } else { Err(Refusal::WrongOrigin) }
    }

    /// Returns the frame if `verdict` says that its signature by `key` is valid, and if the key may
    /// sign for its origin.
    ///
    /// # Errors
    /// This claim, and why it is refused.
    pub fn into_frame(
        self,
        key: Option<&TrustedKey>,
        verdict: Result<(), trust::CoseError>,
        received: EpochMs,
    ) -> Result<VerifiedFrame, Box<(Self, Refusal)>> {
        let frame = match self.check_signature(key, verdict, CONTENT_FRAME) {
            Ok(()) => Frame::decode(self.signed.payload()).map_err(|_| Refusal::Malformed),
            Err(refusal) => Err(refusal),
        };
        let checked = frame.and_then(|frame| {
            let key = key.ok_or(Refusal::UnknownKey)?;
            self.check_origin(key, &frame.origin)?;
            Ok(frame)
        });
        match checked {
            Ok(frame) => Ok(VerifiedFrame {
                frame,
                digest: trust::sha256_digest(self.signed.payload()),
                kid: self.signed.key_id().to_string(),
                trust: Trust::Verified,
                numbering: Numbering::Edge,
                signed: self.bytes,
                received,
            }),
            Err(refusal) => Err(Box::new((self, refusal))),
        }
    }

    /// Returns the receipt, under the same conditions.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn into_receipt(
        self,
        key: Option<&TrustedKey>,
        verdict: Result<(), trust::CoseError>,
    ) -> Result<(Receipt, Vec<u8>), Refusal> {
        self.check_signature(key, verdict, CONTENT_RECEIPT)?;
        let receipt = Receipt::decode(self.signed.payload()).map_err(|_| Refusal::Malformed)?;
        self.check_origin(key.ok_or(Refusal::UnknownKey)?, &receipt.origin)?;
        Ok((receipt, self.bytes))
    }

    fn check_signature(
        &self,
        key: Option<&TrustedKey>,
        verdict: Result<(), trust::CoseError>,
        content: &str,
    ) -> Result<(), Refusal> {
        key.ok_or(Refusal::UnknownKey)?;
        verdict.map_err(|_| Refusal::BadSignature)?;
        if self.signed.content() == content { Ok(()) } else { Err(Refusal::Malformed) }
    }
}
