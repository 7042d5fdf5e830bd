//! From bytes to a frame that can be believed: who signed, with which key, for which machine.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use contract::{Digest, EpochMs, Frame, KeyId, OrgId, Origin, Receipt, Refusal, SessionId};
use tokio::time::Instant;
use trust::{CONTENT_FRAME, CONTENT_RECEIPT, PublicKey, Signed};

use crate::store::IngestStore;
use store::StoreError;

/// A key that was revoked is believed at most this long.
const KNOWN_FOR: Duration = Duration::from_secs(30);
/// A key that is unknown is asked for again after this long.
const UNKNOWN_FOR: Duration = Duration::from_secs(2);
/// Keys held at most; at the bound the cache is emptied, which costs one query a key.
const KEYS_MAX: usize = 100_000;

/// A key and what it may speak for.
#[derive(Debug)]
pub struct TrustedKey {
    pub public: PublicKey,
    /// Those it had before, and until when what they have signed is taken: frames that waited in a
    /// journal while the key was replaced.
    pub older: Vec<(PublicKey, EpochMs)>,
    pub site: String,
    pub machines: Vec<String>,
}

impl TrustedKey {
    /// The verdict, once the keys that came before this one have been tried too.
    ///
    /// # Errors
    /// The verdict of the present key, when none of the others fits either.
    pub fn or_older(
        &self,
        signed: &Signed,
        verdict: Result<(), trust::CoseError>,
        now: EpochMs,
    ) -> Result<(), trust::CoseError> {
        verdict.or_else(|error| {
            let mut believed = self.older.iter().filter(|(_, until)| now.0 < until.0);
            let fits = believed.any(|(key, _)| signed.verify(key).is_ok());
            if fits { Ok(()) } else { Err(error) }
        })
    }
}

type Entry = (Instant, Option<Arc<TrustedKey>>);

/// The keys in use, read through from the database.
#[derive(Default)]
pub struct KeyCache {
    entries: Mutex<HashMap<(OrgId, KeyId), Entry>>,
}

impl KeyCache {
    /// The key of that name in that organisation, if it is trusted.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn find(
        &self,
        store: &IngestStore,
        org: &OrgId,
        kid: &KeyId,
    ) -> Result<Option<Arc<TrustedKey>>, StoreError> {
        self.look_up(store, (org, kid), KNOWN_FOR).await
    }

    /// The same, for a signature that does not fit the key as it is known: the gateway may have got
    /// another one since. What was read just now is not read again.
    ///
    /// # Errors
    /// As [`KeyCache::find`].
    pub async fn find_anew(
        &self,
        store: &IngestStore,
        org: &OrgId,
        kid: &KeyId,
    ) -> Result<Option<Arc<TrustedKey>>, StoreError> {
        self.look_up(store, (org, kid), UNKNOWN_FOR).await
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
                let fresh = if key.is_some() { known_for } else { UNKNOWN_FOR };
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

/// How a row came to be believed.
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

/// Who gives a frame its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Numbering {
    /// The edge, by its journal.
    Edge,
    /// We do, on arrival: the reference's messages have none. `opens` is the roast that begins
    /// with this message, and when.
    Arrival { opens: Option<(SessionId, EpochMs)> },
}

/// A frame whose signature, origin and form are right.
#[derive(Debug, Clone)]
pub struct VerifiedFrame {
    pub frame: Frame,
    pub digest: Digest,
    pub signed: Vec<u8>,
    /// Empty for a message nobody signed.
    pub kid: String,
    pub trust: Trust,
    pub numbering: Numbering,
    pub received: EpochMs,
}

/// A signed message of a machine, parsed but not yet believed.
pub struct Claim {
    pub origin: Origin,
    pub signed: Signed,
    pub bytes: Vec<u8>,
}

impl Claim {
    /// Reads a message that arrived for `origin`, which its topic names.
    ///
    /// # Errors
    /// [`Refusal::Malformed`].
    pub fn parse(origin: Origin, bytes: Vec<u8>) -> Result<Self, Refusal> {
        if bytes.len() > contract::frame::FRAME_BYTES_MAX {
            return Err(Refusal::Malformed);
        }
        let signed = Signed::parse(&bytes).map_err(|_| Refusal::Malformed)?;
        Ok(Self { origin, signed, bytes })
    }

    /// The number this claims to have, for an answer to a device whose frame is refused. Not to be
    /// believed for anything else.
    #[must_use]
    pub fn claimed_frame(&self) -> Option<Frame> {
        Frame::decode(self.signed.payload()).ok()
    }

    fn may_speak(&self, key: &TrustedKey, claimed: &Origin) -> Result<(), Refusal> {
        let fits = *claimed == self.origin
            && key.site == claimed.site.as_str()
            && key.machines.iter().any(|machine| machine == claimed.machine.as_str());
        if fits { Ok(()) } else { Err(Refusal::WrongOrigin) }
    }

    /// The frame, once `verdict` says that its signature by `key` fits.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn into_frame(
        self,
        key: Option<&TrustedKey>,
        verdict: Result<(), trust::CoseError>,
        received: EpochMs,
    ) -> Result<VerifiedFrame, Box<(Self, Refusal)>> {
        let frame = match self.believe(key, verdict, CONTENT_FRAME) {
            Ok(()) => Frame::decode(self.signed.payload()).map_err(|_| Refusal::Malformed),
            Err(refusal) => Err(refusal),
        };
        let checked = frame.and_then(|frame| {
            let key = key.ok_or(Refusal::UnknownKey)?;
            self.may_speak(key, &frame.origin)?;
            Ok(frame)
        });
        match checked {
            Ok(frame) => Ok(VerifiedFrame {
                frame,
                digest: trust::digest(self.signed.payload()),
                kid: self.signed.key_id().to_string(),
                trust: Trust::Verified,
                numbering: Numbering::Edge,
                signed: self.bytes,
                received,
            }),
            Err(refusal) => Err(Box::new((self, refusal))),
        }
    }

    /// The receipt, likewise.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn into_receipt(
        self,
        key: Option<&TrustedKey>,
        verdict: Result<(), trust::CoseError>,
    ) -> Result<(Receipt, Vec<u8>), Refusal> {
        self.believe(key, verdict, CONTENT_RECEIPT)?;
        let receipt = Receipt::decode(self.signed.payload()).map_err(|_| Refusal::Malformed)?;
        self.may_speak(key.ok_or(Refusal::UnknownKey)?, &receipt.origin)?;
        Ok((receipt, self.bytes))
    }

    fn believe(
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
