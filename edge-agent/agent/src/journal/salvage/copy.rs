//! Copies the rows of a damaged journal that can be verified into a new one.

use contract::{ChainId, Digest, EpochMs, Frame, Origin, Receipt, SessionId};
use roast::machine_model::MachineModel;
use rusqlite::params;
use trust::{CONTENT_FRAME, CONTENT_RECEIPT, SignedMessage, sha256_digest};

use super::OwnKey;
use crate::journal::chains::add_chain;
use crate::journal::pages::{Row, Value};
use crate::journal::{Journal, STATE_ACKED, STATE_REFUSED, STATE_UNSENT, STATE_UNSIGNED};

/// How many frames are copied in one transaction.
const FRAMES_AT_ONCE: u64 = 500;
/// Frame numbers are less than this.
const NUMBER_MAX: u64 = 1 << 53;

/// What was found in the pages besides frames and roasts.
#[derive(Default)]
pub(super) struct FoundState {
    pub(super) damaged: u64,
    pub(super) learned: Option<MachineModel>,
    /// The chain that was in use, and the number of its next frame; 0 if unknown.
    pub(super) chain: Option<ChainId>,
    pub(super) next_number: u64,
}

/// Copies verified rows into a new journal.
pub(super) struct SalvageCopy<'j> {
    journal: &'j Journal,
    key: &'j OwnKey,
    pub(super) found: FoundState,
    in_batch: u64,
}

impl<'j> SalvageCopy<'j> {
    /// Creates the copy into `journal` of what `key` verifies.
    pub(super) fn new(journal: &'j Journal, key: &'j OwnKey) -> Self {
        Self { journal, key, found: FoundState::default(), in_batch: 0 }
    }

    /// Copies a row if it is a frame, a roast, a chain or what was learned, and can be verified.
    pub(super) fn add_row(&mut self, row: &Row) -> rusqlite::Result<()> {
        match &row.values[..] {
            [
                Value::Null,
                Value::Blob(_),
                Value::Integer(_),
                Value::Integer(_),
                Value::Integer(_),
                Value::Integer(state),
                Value::Blob(digest),
                Value::Blob(message),
            ] => self.add_frame(row.id, *state, digest, message),
            [Value::Text(_), Value::Blob(chain), Value::Integer(_), ..]
                if row.values.len() >= 9 =>
            {
                match <[u8; 16]>::try_from(chain.as_slice()) {
                    Ok(chain) => self.add_roast(row.id, ChainId(chain), &row.values),
                    Err(_) => Ok(()),
                }
            }
            [Value::Blob(chain), Value::Text(origin)] => {
                match (<[u8; 16]>::try_from(chain.as_slice()), origin.parse::<Origin>()) {
                    (Ok(chain), Ok(origin)) => self.add_chain(ChainId(chain), &origin),
                    _ => Ok(()),
                }
            }
            [Value::Text(key), Value::Blob(value)] => {
                self.note_state(key, value);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Notes a value of the `meta` table. The newest copy comes first.
    fn note_state(&mut self, key: &str, value: &[u8]) {
        let found = &mut self.found;
        match key {
            "learned" if found.learned.is_none() => {
                found.learned = serde_json::from_slice(value).ok();
            }
            "chain" if found.chain.is_none() => {
                found.chain = value.try_into().ok().map(ChainId);
            }
            "next_number" if found.next_number == 0 => {
                let number = value.try_into().map_or(0, u64::from_be_bytes);
                found.next_number = number.min(NUMBER_MAX);
            }
            _ => {}
        }
    }

    fn add_frame(
        &mut self,
        id: Option<i64>,
        state: i64,
        digest: &[u8],
        message: &[u8],
    ) -> rusqlite::Result<()> {
        let Some(frame) = verify_frame(state, digest, message, self.key) else {
            self.found.damaged = self.found.damaged.saturating_add(1);
            return Ok(());
        };
        let id = usable_id(id);
        self.add_chain(frame.frame.chain, &frame.frame.origin)?;
        // A page that is not in use any more may hold an older copy of a frame. The copy that still
        // has to be sent wins: the cloud takes a frame that it has as received again.
        self.journal
            .db
            .prepare_cached(
                "INSERT INTO frames (id, chain, number, samples, made_ms, state, digest, signed) \
                 VALUES (CASE WHEN EXISTS (SELECT 1 FROM frames WHERE id = ?1) THEN NULL \
                 ELSE ?1 END, ?2, ?3, ?4, ?5, ?6, ?7, ?8) \
                 ON CONFLICT (chain, number) DO UPDATE SET state = excluded.state, \
                 signed = excluded.signed, digest = excluded.digest \
                 WHERE excluded.state = 0 AND state <> 0",
            )?
            .execute(params![
                id,
                frame.frame.chain.0,
                number(frame.frame.number),
                number(frame.frame.sample_count() as u64),
                frame.frame.wall.0,
                frame.state,
                frame.digest.0,
                frame.message,
            ])?;
        self.in_batch = self.in_batch.saturating_add(1);
        if self.in_batch >= FRAMES_AT_ONCE {
            self.in_batch = 0;
            self.journal.db.execute_batch("COMMIT; BEGIN")?;
        }
        Ok(())
    }

    fn add_chain(&self, chain: ChainId, origin: &Origin) -> rusqlite::Result<()> {
        add_chain(&self.journal.db, chain, origin)
    }

    /// Copies a roast. Of two copies the later state wins. A receipt that is not intact is left out:
    /// it is made again if all frames of the roast are intact ([`Journal::take_over`]).
    fn add_roast(&self, id: Option<i64>, chain: ChainId, values: &[Value]) -> rusqlite::Result<()> {
        let integer = |i: usize| match values.get(i) {
            Some(Value::Integer(value)) => Some(*value),
            _ => None,
        };
        let (Some(Value::Text(session)), Some(Value::Text(marked))) =
            (values.first(), values.get(5))
        else {
            return Ok(());
        };
        let (Some(started_ms), Some(first_seq), Some(first_frame), Some(state)) =
            (integer(2), integer(3), integer(4), integer(7))
        else {
            return Ok(());
        };
        let valid = SessionId::new(session.as_str()).is_ok()
            && EpochMs(started_ms).is_plausible()
            && first_seq >= 0
            && first_frame >= 0
            && (0..=3).contains(&state);
        if !valid {
            return Ok(());
        }
        let receipt = match values.get(8) {
            Some(Value::Blob(bytes)) => Some(bytes).filter(|bytes| self.receipt_is_intact(bytes)),
            _ => None,
        };
        let unsigned = match values.get(9) {
            Some(Value::Blob(bytes)) => Some(bytes).filter(|bytes| Receipt::decode(bytes).is_ok()),
            _ => None,
        };
        self.journal
            .db
            .prepare_cached(
                "INSERT INTO roasts (session, chain, started_ms, first_seq, first_frame, marked, \
                 last_frame, state, receipt, unsigned_receipt, rowid) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, \
                 CASE WHEN EXISTS (SELECT 1 FROM roasts WHERE rowid = ?11) THEN NULL \
                 ELSE ?11 END) \
                 ON CONFLICT (session) DO UPDATE SET marked = excluded.marked, \
                 last_frame = excluded.last_frame, state = excluded.state, \
                 receipt = excluded.receipt, unsigned_receipt = excluded.unsigned_receipt \
                 WHERE excluded.state > state",
            )?
            .execute(params![
                session,
                chain.0,
                started_ms,
                first_seq,
                first_frame,
                marked,
                integer(6),
                state,
                receipt,
                unsigned,
                usable_id(id)
            ])
            .map(drop)
    }

    fn receipt_is_intact(&self, message: &[u8]) -> bool {
        let Ok(signed) = SignedMessage::parse(message) else { return false };
        let genuine = self.key.public.as_ref().is_none_or(|key| signed.verify(key).is_ok());
        let own = *signed.key_id() == self.key.id;
        signed.content() == CONTENT_RECEIPT
            && Receipt::decode(signed.payload()).is_ok()
            && (genuine || !own)
    }
}

/// A frame whose content is proved to be what was stored.
struct VerifiedFrame {
    frame: Frame,
    digest: Digest,
    state: i64,
    /// The message to store: without a signature in the state "not signed yet".
    message: Vec<u8>,
}

/// Verifies a stored frame with its signature and its stored digest. Returns `None` if neither
/// proves its content.
fn verify_frame(state: i64, digest: &[u8], message: &[u8], key: &OwnKey) -> Option<VerifiedFrame> {
    if state == STATE_UNSIGNED {
        let actual = sha256_digest(message);
        let frame = Frame::decode(message).ok().filter(|_| actual.0[..] == *digest)?;
        return Some(VerifiedFrame { frame, digest: actual, state, message: message.to_vec() });
    }
    if ![STATE_UNSENT, STATE_ACKED, STATE_REFUSED].contains(&state) {
        return None;
    }
    let signed = SignedMessage::parse(message).ok()?;
    let actual = sha256_digest(signed.payload());
    let intact = actual.0[..] == *digest;
    let own = *signed.key_id() == key.id;
    let genuine = key.public.as_ref().map(|public| own && signed.verify(public).is_ok());
    if signed.content() != CONTENT_FRAME || !(intact || genuine == Some(true)) {
        return None;
    }
    let frame = Frame::decode(signed.payload()).ok()?;
    // Our own key answers, and did not make this signature over the intact content.
    let sign_again = state == STATE_UNSENT && own && genuine == Some(false);
    let (state, message) = if sign_again {
        (STATE_UNSIGNED, signed.payload().to_vec())
    } else {
        (state, message.to_vec())
    };
    Some(VerifiedFrame { frame, digest: actual, state, message })
}

/// Returns the id of a row, if its copy can have it: greater ids would soon leave no room for new
/// ones.
fn usable_id(id: Option<i64>) -> Option<i64> {
    id.filter(|id| (1..1 << 53).contains(id))
}

fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
