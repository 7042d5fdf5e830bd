//! Verifies messages: who signed, with which key, for which machine.

use contract::{EpochMs, Frame, Origin, Receipt, Refusal};
use trust::{CONTENT_FRAME, CONTENT_RECEIPT, SignedMessage};

use crate::verified_frame::{Numbering, Trust, TrustedKey, VerifiedFrame};

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
                published: None,
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
