//! Salvages a damaged journal: copies what can be read and verified into a new journal, and sets the
//! damaged file aside.
//!
//! A frame is copied if its signature is the gateway's, or if its content has the digest that was
//! stored with it. A frame whose content is intact and whose signature is not is signed again. The
//! salvaged journal starts a new chain: frames at the end of the old one may be lost, and their
//! numbers must not be used for other content.

mod aside;
mod report;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use contract::{ChainId, Digest, EpochMs, Frame, KeyId, Origin, Receipt, SessionId};
use roast::machine_model::MachineModel;
use rusqlite::{OptionalExtension as _, params};
use trust::{CONTENT_FRAME, CONTENT_RECEIPT, PublicKey, SignedMessage, Signer, sha256_digest};

pub use report::SalvageReport;
use report::after_frame;

use super::pages::{PageFile, Row, Value};
use super::{
    FILE, Journal, JournalError, STATE_ACKED, STATE_REFUSED, STATE_UNSENT, STATE_UNSIGNED,
    read_origin,
};

/// A complete salvaged journal that has not taken the damaged one's place yet.
const COMPLETE_FILE: &str = "journal-salvaged.db";
/// A salvaged journal that is being written.
const WORK_FILE: &str = "journal-salvage.tmp";
/// Locked during a salvage: the damaged journal itself is not open then.
const LOCK_FILE: &str = "journal-salvage.lock";
/// How many frames are copied in one transaction.
const FRAMES_AT_ONCE: u64 = 500;
/// Frame numbers are less than this.
const NUMBER_MAX: u64 = 1 << 53;
const DOING: &str = "salvaging the damaged journal";

/// The gateway's key, as far as it can be used now.
pub struct OwnKey {
    id: KeyId,
    /// `None` while the key does not answer; then the stored digests alone verify the frames.
    public: Option<PublicKey>,
}

impl OwnKey {
    pub const fn new(id: KeyId, public: Option<PublicKey>) -> Self {
        Self { id, public }
    }

    pub fn of(signer: &dyn Signer) -> Self {
        Self::new(signer.key_id().clone(), signer.public_key().ok())
    }
}

impl Journal {
    /// Opens the journal in `folder`, or creates it. Finishes a salvage first that a power cut
    /// interrupted when its result was complete.
    ///
    /// # Errors
    /// As [`Journal::open`], and when the salvaged journal cannot be put in its place.
    pub fn open_after_salvage(
        folder: &Path,
        quota_mb: u64,
        now: EpochMs,
    ) -> Result<Self, JournalError> {
        if folder.join(COMPLETE_FILE).exists() {
            put_in_place(folder, now)
                .map_err(|source| JournalError::Salvage { path: folder.join(FILE), source })?;
        }
        Self::open_marked(folder, quota_mb)
    }

    /// Opens the journal in `folder`. If it is damaged, salvages it into a new one first: the
    /// damaged file is renamed, never deleted. Returns the report of a salvage that was made.
    ///
    /// # Errors
    /// As [`Journal::open`], and when the salvaged journal cannot be written. The damaged one is
    /// still in its place then.
    pub fn open_or_salvage(
        folder: &Path,
        quota_mb: u64,
        key: &OwnKey,
        now: EpochMs,
    ) -> Result<(Self, Option<SalvageReport>), JournalError> {
        let opened = Self::open_after_salvage(folder, quota_mb, now);
        Self::salvage_if_damaged(opened, folder, quota_mb, key, now)
    }

    /// Opens a journal that was found damaged while it was used, and salvages it if it is. Also
    /// checks the indexes, which the check at each start leaves out.
    ///
    /// # Errors
    /// As [`Journal::open_or_salvage`].
    pub fn reopen_or_salvage(
        folder: &Path,
        quota_mb: u64,
        key: &OwnKey,
        now: EpochMs,
    ) -> Result<(Self, Option<SalvageReport>), JournalError> {
        let opened = Self::open_after_salvage(folder, quota_mb, now).and_then(Self::check_all);
        Self::salvage_if_damaged(opened, folder, quota_mb, key, now)
    }

    /// Returns this journal if all of its content is consistent.
    fn check_all(self) -> Result<Self, JournalError> {
        const DOING: &str = "checking the journal";
        let check: String = self
            .db
            .query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
            .map_err(JournalError::sql(DOING))?;
        if check == "ok" {
            return Ok(self);
        }
        let source = rusqlite::Error::InvalidParameterName(check);
        Err(JournalError::Damaged { doing: DOING, source })
    }

    fn salvage_if_damaged(
        opened: Result<Self, JournalError>,
        folder: &Path,
        quota_mb: u64,
        key: &OwnKey,
        now: EpochMs,
    ) -> Result<(Self, Option<SalvageReport>), JournalError> {
        match opened {
            Err(JournalError::Damaged { source, .. }) => {
                tracing::error!(error = %source, "the journal is damaged: salvaging its frames");
                let report = salvage_in_place(folder, key, now)?;
                tracing::warn!(
                    saved = report.saved,
                    unsent = report.unsent,
                    damaged = report.damaged,
                    missing_ranges = report.missing_ranges,
                    "the journal was salvaged"
                );
                for range in &report.missing {
                    tracing::warn!(%range, "frames are missing in the salvaged journal");
                }
                Ok((Self::open_marked(folder, quota_mb)?, Some(report)))
            }
            other => other.map(|journal| (journal, None)),
        }
    }

    /// Salvages the file `damaged` into this journal: adds the frames and roasts that this journal
    /// does not have. `damaged` is only read.
    ///
    /// # Errors
    /// When the file cannot be read, or a journal cannot be written.
    pub fn add_salvaged(
        &mut self,
        folder: &Path,
        damaged: &Path,
        key: &OwnKey,
    ) -> Result<SalvageReport, JournalError> {
        let _lock = lock_salvage(folder)?;
        let work = folder.join(WORK_FILE);
        let (salvaged, report) = salvage(damaged, &work, key)?;
        self.add_content_of(&salvaged)?;
        drop(salvaged);
        let _ = remove_database(&work);
        Ok(report)
    }
}

/// Replaces the damaged journal in `folder` by its salvaged content. A power cut leaves either the
/// damaged journal in its place, or a complete salvaged one, which the next start puts in place.
fn salvage_in_place(
    folder: &Path,
    key: &OwnKey,
    now: EpochMs,
) -> Result<SalvageReport, JournalError> {
    let _lock = lock_salvage(folder)?;
    let path = folder.join(FILE);
    let work = folder.join(WORK_FILE);
    let failed = |source| JournalError::Salvage { path: path.clone(), source };
    let (salvaged, report) = salvage(&path, &work, key)?;
    salvaged.close_into_file()?;
    fs::rename(&work, folder.join(COMPLETE_FILE)).map_err(failed)?;
    put_in_place(folder, now).map_err(failed)?;
    Ok(report)
}

/// Locks the salvage in `folder` until the returned file is dropped.
fn lock_salvage(folder: &Path) -> Result<fs::File, JournalError> {
    let path = folder.join(LOCK_FILE);
    let failed = |source| JournalError::Salvage { path: path.clone(), source };
    let file = fs::File::create(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(JournalError::Locked { path: folder.join(FILE) }),
        Err(fs::TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// Sets the damaged journal in `folder` aside, and puts the salvaged one in its place.
fn put_in_place(folder: &Path, now: EpochMs) -> io::Result<()> {
    sync_folder(folder)?;
    aside::remove_oldest(folder)?;
    let path = folder.join(FILE);
    let kept = aside::unused_name(folder, now);
    // The log first: beside the salvaged journal, SQLite would write it into that one.
    for suffix in ["-wal", "-shm", ""] {
        match fs::rename(with_suffix(&path, suffix), with_suffix(&kept, suffix)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    tracing::warn!(aside = %kept.display(), "the damaged journal is kept aside");
    fs::rename(folder.join(COMPLETE_FILE), &path)?;
    sync_folder(folder)
}

/// Copies what can be verified in `damaged` into a new journal in the file `into`.
fn salvage(
    damaged: &Path,
    into: &Path,
    key: &OwnKey,
) -> Result<(Journal, SalvageReport), JournalError> {
    let failed = |source| JournalError::Salvage { path: damaged.to_owned(), source };
    remove_database(into).map_err(failed)?;
    let source = PageFile::open(damaged).map_err(failed)?;
    let journal = Journal::open_file(into, u64::MAX)?;
    let mut copy =
        SalvageCopy { journal: &journal, key, found: FoundState::default(), in_batch: 0 };
    let sql = |result: rusqlite::Result<()>| result.map_err(JournalError::sql(DOING));
    sql(journal.db.execute_batch("BEGIN"))?;
    for (page, version) in source.pages() {
        for row in source.rows(page, version) {
            sql(copy.add_row(&row))?;
        }
    }
    sql(journal.db.execute_batch("COMMIT"))?;
    let found = copy.found;
    let report = journal.finish_salvage(&found)?;
    Ok((journal, report))
}

/// What was found in the pages besides frames and roasts.
#[derive(Default)]
struct FoundState {
    damaged: u64,
    learned: Option<MachineModel>,
    /// The chain that was in use, and the number of its next frame; 0 if unknown.
    chain: Option<ChainId>,
    next_number: u64,
}

/// Copies verified rows into a new journal.
struct SalvageCopy<'j> {
    journal: &'j Journal,
    key: &'j OwnKey,
    found: FoundState,
    in_batch: u64,
}

impl SalvageCopy<'_> {
    /// Copies a row if it is a frame, a roast, a chain or what was learned, and can be verified.
    fn add_row(&mut self, row: &Row) -> rusqlite::Result<()> {
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
                    Ok(chain) => self.add_roast(ChainId(chain), &row.values),
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
            self.found.damaged += 1;
            return Ok(());
        };
        // Greater ids would soon leave no room for new ones.
        let id = id.filter(|id| (1..1 << 53).contains(id));
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
        self.in_batch += 1;
        if self.in_batch >= FRAMES_AT_ONCE {
            self.in_batch = 0;
            self.journal.db.execute_batch("COMMIT; BEGIN")?;
        }
        Ok(())
    }

    fn add_chain(&self, chain: ChainId, origin: &Origin) -> rusqlite::Result<()> {
        self.journal
            .db
            .prepare_cached("INSERT OR IGNORE INTO chains (chain, origin) VALUES (?1, ?2)")?
            .execute(params![chain.0, origin.to_string()])
            .map(drop)
    }

    /// Copies a roast. Of two copies the later state wins. A signed receipt that is not intact is
    /// left out: then the cloud never confirms the roast as complete.
    fn add_roast(&self, chain: ChainId, values: &[Value]) -> rusqlite::Result<()> {
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
                 last_frame, state, receipt, unsigned_receipt) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) \
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
                unsigned
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

impl Journal {
    /// Completes a salvaged journal: starts its new chain, and reports what is missing.
    fn finish_salvage(&self, found: &FoundState) -> Result<SalvageReport, JournalError> {
        // Without its end no roast is complete, and it cannot continue in another chain.
        self.abandon_roasts(None)?;
        self.db
            .execute("DELETE FROM roasts WHERE chain NOT IN (SELECT chain FROM chains)", [])
            .map_err(JournalError::sql(DOING))?;
        let mut report = SalvageReport { damaged: found.damaged, ..SalvageReport::default() };
        let next_seq = self.report_frames(&mut report, found)?;
        let roasts: i64 = self
            .db
            .query_row("SELECT COUNT(*) FROM roasts", [], |row| row.get(0))
            .map_err(JournalError::sql(DOING))?;
        report.roasts = roasts.unsigned_abs();
        let newest = self.db.query_row(
            "SELECT c.origin FROM frames f JOIN chains c ON c.chain = f.chain \
             ORDER BY f.id DESC LIMIT 1",
            [],
            |row| read_origin(row, 0),
        );
        let newest = newest.optional().map_err(JournalError::sql(DOING))?;
        let Some(newest) = newest else { return Ok(report) };
        let fresh = trust::random().map(ChainId);
        let fresh =
            fresh.map_err(|source| JournalError::Salvage { path: PathBuf::from(FILE), source })?;
        self.start_chain(fresh, &newest)?;
        self.db
            .execute(
                "INSERT OR REPLACE INTO meta (key, value) VALUES ('next_seq', ?1)",
                [next_seq.to_be_bytes()],
            )
            .map_err(JournalError::sql(DOING))?;
        if let Some(learned) = &found.learned {
            self.save_learned(learned)?;
        }
        Ok(report)
    }

    /// Counts the frames, checks their links, and lists the missing ranges. Returns the number of
    /// the next sample.
    fn report_frames(
        &self,
        report: &mut SalvageReport,
        found: &FoundState,
    ) -> Result<u64, JournalError> {
        let mut rows = self
            .db
            .prepare("SELECT state, signed, digest FROM frames ORDER BY chain, number")
            .map_err(JournalError::sql(DOING))?;
        let mut rows = rows.query([]).map_err(JournalError::sql(DOING))?;
        let (mut before, mut next_seq) = (None::<(Frame, Digest)>, 0);
        // The number that follows the last saved frame of the chain that was in use.
        let mut next_number = 1;
        while let Some(row) = rows.next().map_err(JournalError::sql(DOING))? {
            let read = || -> rusqlite::Result<(i64, Vec<u8>, [u8; 32])> {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            };
            let (state, message, digest) = read().map_err(JournalError::sql(DOING))?;
            report.saved += 1;
            report.unsent += u64::from(state == STATE_UNSENT || state == STATE_UNSIGNED);
            let Some(frame) = decode_stored(state, &message) else { continue };
            let previous = before.as_ref().filter(|(previous, _)| previous.chain == frame.chain);
            match previous {
                Some((previous, _)) if previous.number + 1 < frame.number => {
                    report.add_missing_between(previous, &frame);
                }
                Some((_, digest)) => {
                    report.unlinked += u64::from(frame.previous != Some(*digest));
                }
                None => report.add_missing(frame.chain, 1..frame.number),
            }
            if found.chain == Some(frame.chain) {
                next_number = frame.number + 1;
            }
            next_seq = next_seq.max(after_frame(&frame));
            before = Some((frame, Digest(digest)));
        }
        if let Some(chain) = found.chain {
            report.add_missing(chain, next_number..found.next_number);
        }
        Ok(next_seq)
    }

    /// Writes everything into the journal's main file and closes it.
    fn close_into_file(self) -> Result<(), JournalError> {
        self.db
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
            .map_err(JournalError::sql(DOING))?;
        self.db.close().map_err(|(_, error)| JournalError::sql(DOING)(error))
    }
}

fn decode_stored(state: i64, message: &[u8]) -> Option<Frame> {
    if state == STATE_UNSIGNED {
        return Frame::decode(message).ok();
    }
    Frame::decode(SignedMessage::parse(message).ok()?.payload()).ok()
}

fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Removes a database with its write-ahead log, if it exists.
fn remove_database(path: &Path) -> io::Result<()> {
    for path in [path.to_owned(), with_suffix(path, "-wal"), with_suffix(path, "-shm")] {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests;
