//! One message of a batch, from its arrival to its acknowledgement.

use std::sync::Arc;

use contract::{Ack, ChainId, Origin, Receipt, Refusal, RejectedFrame};
use trust::{PublicKey, SignedMessage};

use super::Reply;
use crate::verified_frame::{TrustedKey, VerifiedFrame};
use crate::verify::UnverifiedMessage;

/// One message of a batch: where it came from, where its acknowledgement goes, and what has become
/// of it so far.
pub(super) struct Slot {
    pub(super) origin: Origin,
    pub(super) reply: Reply,
    pub(super) state: SlotState,
}

/// What has become of a message.
pub(super) enum SlotState {
    /// Parsed; its signature is not checked yet.
    Unverified(Box<Unverified>),
    /// A frame that may be stored.
    VerifiedFrame(Box<VerifiedFrame>),
    /// A receipt that may be stored.
    VerifiedReceipt(Box<VerifiedReceipt>),
    /// Stored or refused. Without an acknowledgement none is sent.
    Done(Option<Ack>),
}

/// What a signed message contains, as its topic says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SignedContent {
    Frame,
    Receipt,
}

/// A signed message and the key that its signature names.
pub(super) struct Unverified {
    pub(super) message: UnverifiedMessage,
    pub(super) content: SignedContent,
    /// `None` until it has been looked up, and if no such key is trusted.
    pub(super) key: Option<Arc<TrustedKey>>,
}

/// A receipt whose signature and origin have been checked.
pub(super) struct VerifiedReceipt {
    pub(super) receipt: Receipt,
    pub(super) signed: Vec<u8>,
}

impl Slot {
    /// Returns the message and the key with which its signature is to be checked, if there is one.
    pub(super) fn signature_to_check(&self) -> Option<(&SignedMessage, &PublicKey)> {
        match &self.state {
            SlotState::Unverified(unverified) => {
                Some((&unverified.message.signed, &unverified.key.as_ref()?.public))
            }
            SlotState::VerifiedFrame(_) | SlotState::VerifiedReceipt(_) | SlotState::Done(_) => {
                None
            }
        }
    }

    /// Takes the message if its signature is not checked yet; the slot is then done, until the
    /// caller sets its state.
    pub(super) fn take_unverified(&mut self) -> Option<Unverified> {
        match self.take_state() {
            SlotState::Unverified(unverified) => Some(*unverified),
            other => self.put_back(other),
        }
    }

    /// Takes the frame that may be stored; the slot is then done, as above.
    pub(super) fn take_frame(&mut self) -> Option<VerifiedFrame> {
        match self.take_state() {
            SlotState::VerifiedFrame(frame) => Some(*frame),
            other => self.put_back(other),
        }
    }

    /// Takes the receipt that may be stored; the slot is then done, as above.
    pub(super) fn take_receipt(&mut self) -> Option<VerifiedReceipt> {
        match self.take_state() {
            SlotState::VerifiedReceipt(receipt) => Some(*receipt),
            other => self.put_back(other),
        }
    }

    fn take_state(&mut self) -> SlotState {
        std::mem::replace(&mut self.state, SlotState::Done(None))
    }

    fn put_back<T>(&mut self, state: SlotState) -> Option<T> {
        self.state = state;
        None
    }
}

/// Returns the acknowledgement that refuses a frame.
pub(super) fn refusal_ack(chain: ChainId, frame: u64, reason: Refusal) -> Ack {
    let mut ack = Ack::new(chain);
    ack.refused.push(RejectedFrame { frame, reason });
    ack
}
