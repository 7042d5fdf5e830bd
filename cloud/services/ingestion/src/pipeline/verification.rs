//! Verifies the messages of a batch: looks up their keys and checks all signatures together.

use std::sync::Arc;

use contract::envelope::{EnvelopeError, PayloadKind};
use contract::point::FieldError;
use contract::{EpochMs, Origin};
use service::clock::Clock;
use service::tasks;
use tokio::time::Instant;
use trust::CoseError;

use super::refusal_log::RefusalLog;
use super::retry;
use super::slot::{SignedContent, Slot, SlotState, Unverified, VerifiedReceipt, refusal_ack};
use crate::keys::KeyCache;
use crate::legacy::{self, LegacyError, LegacyMessage};
use crate::metric;
use crate::store::IngestStore;
use crate::verified_frame::TrustedKey;
use crate::verify::UnverifiedMessage;
use crate::warning_log::WarningLog;

/// Whether a signature is valid.
type Verdict = Result<(), CoseError>;

pub(super) struct Verifier {
    pub(super) store: IngestStore,
    pub(super) keys: Arc<KeyCache>,
    pub(super) clock: Clock,
    pub(super) accept_unsigned: bool,
    pub(super) refusals: RefusalLog,
    pub(super) warnings: WarningLog,
}

impl Verifier {
    /// Parses a signed message; a malformed one gets no acknowledgement.
    pub(super) fn parse(
        &self,
        origin: &Origin,
        content: SignedContent,
        bytes: Vec<u8>,
    ) -> SlotState {
        match UnverifiedMessage::parse(origin.clone(), bytes) {
            Ok(message) => {
                SlotState::Unverified(Box::new(Unverified { message, content, key: None }))
            }
            Err(refusal) => {
                self.refusals.record(origin, refusal, None);
                SlotState::Done(None)
            }
        }
    }

    /// Parses and verifies a message of upstream Sim-Corp; one that cannot be stored gets no
    /// acknowledgement.
    pub(super) async fn read_legacy(
        &self,
        origin: &Origin,
        kind: PayloadKind,
        bytes: &[u8],
    ) -> SlotState {
        let mut wait = retry::backoff();
        loop {
            let (store, keys, now) = (&self.store, &self.keys, (self.clock)());
            let unsigned = self.accept_unsigned;
            match legacy::read(store, keys, origin, kind, bytes, unsigned, now).await {
                Ok(LegacyMessage { frame, problems }) => {
                    self.warn_of_problems(origin, &problems);
                    return SlotState::VerifiedFrame(Box::new(frame));
                }
                // Upstream publishers never resend: the message waits here for the database.
                Err(LegacyError::Store(error)) => {
                    self.store.clear_number_cache();
                    retry::wait_for_database(&mut wait, &error).await;
                }
                Err(LegacyError::Refused(refusal)) => {
                    self.refusals.record(origin, refusal, None);
                    return SlotState::Done(None);
                }
                Err(LegacyError::Envelope(EnvelopeError::Copy)) => return SlotState::Done(None),
                Err(error) => {
                    metric::invalid("envelope");
                    if let Some(left_out) = self.warning_is_due(origin) {
                        tracing::warn!(
                            %origin, %error, left_out,
                            "dropped a publisher's message: {error}; further warnings about this \
                             machine in a minute"
                        );
                    }
                    return SlotState::Done(None);
                }
            }
        }
    }

    /// Logs which fields of a message were not stored as they came, once a minute a machine.
    fn warn_of_problems(&self, origin: &Origin, problems: &[FieldError]) {
        if problems.is_empty() {
            return;
        }
        metric::invalid("field");
        if let Some(left_out) = self.warning_is_due(origin) {
            let fields = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
            tracing::warn!(
                %origin, left_out,
                "stored a publisher's message without what is wrong with it: {fields}; further \
                 warnings about this machine in a minute"
            );
        }
    }

    fn warning_is_due(&self, origin: &Origin) -> Option<u64> {
        self.warnings.is_due(&origin.to_string(), Instant::now())
    }

    /// Verifies the messages of a batch that are not verified yet: each is then a frame or receipt
    /// that may be stored, or refused.
    pub(super) async fn verify(&self, slots: &mut [Slot]) {
        let received = (self.clock)();
        for slot in &mut *slots {
            if let SlotState::Unverified(unverified) = &mut slot.state {
                unverified.key = self.find_key(&unverified.message).await;
            }
        }
        let mut verdicts = {
            let signatures: Vec<_> = slots.iter().filter_map(Slot::signature_to_check).collect();
            // One core a writer: the writers are the parallelism.
            trust::verify_many(&signatures, 1).into_iter()
        };
        for slot in slots {
            let Some(mut unverified) = slot.take_unverified() else { continue };
            // Only a message whose key is known has a verdict.
            let verdict = unverified.key.as_ref().and_then(|_| verdicts.next());
            let verdict = verdict.unwrap_or(Err(CoseError::Signature));
            let verdict = self.or_other_keys(&mut unverified, verdict, received).await;
            let accepted = tasks::catch("verify", || {
                self.accept_or_refuse(&slot.origin, unverified, verdict, received)
            });
            slot.state = accepted.unwrap_or_else(|panicked| {
                tracing::error!(origin = %slot.origin, error = %panicked, "dropped a message");
                SlotState::Done(None)
            });
        }
    }

    async fn find_key(&self, message: &UnverifiedMessage) -> Option<Arc<TrustedKey>> {
        let mut wait = retry::backoff();
        loop {
            match self.keys.find(&self.store, &message.origin.org, message.signed.key_id()).await {
                Ok(key) => return key,
                Err(error) => retry::wait_for_database(&mut wait, &error).await,
            }
        }
    }

    /// Returns the verdict after also trying the previous keys and, if none of them fits, the key
    /// as the registry has it now.
    async fn or_other_keys(
        &self,
        unverified: &mut Unverified,
        verdict: Verdict,
        received: EpochMs,
    ) -> Verdict {
        let Some(key) = &unverified.key else { return Err(CoseError::Signature) };
        let verdict = key.or_previous_keys(&unverified.message.signed, verdict, received);
        if verdict.is_ok() {
            return verdict;
        }
        let (key, verdict) = self.verify_with_refreshed_key(&unverified.message, received).await;
        unverified.key = key;
        verdict
    }

    /// Verifies with the key as the registry has it now. While the database is unavailable the
    /// first verdict stands: the frame is refused; the edge keeps it and resends it.
    async fn verify_with_refreshed_key(
        &self,
        message: &UnverifiedMessage,
        now: EpochMs,
    ) -> (Option<Arc<TrustedKey>>, Verdict) {
        let (org, kid) = (&message.origin.org, message.signed.key_id());
        let Ok(Some(key)) = self.keys.refresh(&self.store, org, kid).await else {
            return (None, Err(CoseError::Signature));
        };
        let verdict = message.signed.verify(&key.public);
        let verdict = key.or_previous_keys(&message.signed, verdict, now);
        (Some(key), verdict)
    }

    fn accept_or_refuse(
        &self,
        origin: &Origin,
        Unverified { message, content, key }: Unverified,
        verdict: Verdict,
        received: EpochMs,
    ) -> SlotState {
        match content {
            SignedContent::Receipt => match message.into_receipt(key.as_deref(), verdict) {
                Ok((receipt, signed)) => {
                    SlotState::VerifiedReceipt(Box::new(VerifiedReceipt { receipt, signed }))
                }
                Err(refusal) => {
                    self.refusals.record(origin, refusal, None);
                    SlotState::Done(None)
                }
            },
            SignedContent::Frame => match message.into_frame(key.as_deref(), verdict, received) {
                Ok(frame) => SlotState::VerifiedFrame(Box::new(frame)),
                Err(refused) => {
                    let (message, refusal) = *refused;
                    let claimed = message.claimed_frame();
                    self.refusals.record(origin, refusal, claimed.as_ref().map(|f| f.number));
                    // The refusal goes to the device that the frame claims: it reveals nothing that
                    // the sender did not know, and an honest agent needs it.
                    SlotState::Done(claimed.map(|f| refusal_ack(f.chain, f.number, refusal)))
                }
            },
        }
    }
}
