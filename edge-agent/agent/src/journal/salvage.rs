//! Salvages a damaged journal: copies what can be read and verified into a new journal, and sets the
//! damaged file aside.
//!
//! A frame is copied if its signature is the gateway's, or if its content has the digest that was
//! stored with it. A frame whose content is intact and whose signature is not is signed again. The
//! salvaged journal starts a new chain: frames at the end of the old one may be lost, and their
//! numbers must not be used for other content.

mod aside;
mod copy;
mod report;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use contract::{ChainId, Digest, EpochMs, Frame, KeyId};
use rusqlite::OptionalExtension as _;
use trust::{PublicKey, SignedMessage, Signer};

use copy::{FoundState, SalvageCopy};
pub use report::SalvageReport;
use report::after_frame;

use super::chains::read_origin;
use super::pages::PageFile;
use super::{FILE, Journal, JournalError, STATE_UNSENT, STATE_UNSIGNED};

/// A complete salvaged journal that has not taken the damaged one's place yet.
const COMPLETE_FILE: &str = "journal-salvaged.db";
/// A salvaged journal that is being written.
const WORK_FILE: &str = "journal-salvage.tmp";
/// Locked during a salvage: the damaged journal itself is not open then.
const LOCK_FILE: &str = "journal-salvage.lock";
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
    /// As [`Journal::open`], when the salvaged journal cannot be put in its place, and when what a
    /// stop saved from memory is damaged: [`Journal::open_or_salvage`] salvages it.
    pub fn open_after_salvage(
        folder: &Path,
        quota_mb: u64,
        now: EpochMs,
    ) -> Result<Self, JournalError> {
        Self::open_finished(folder, quota_mb, None, now)
    }

    /// Finishes an interrupted salvage, and opens the journal as [`Journal::open_marked`] does.
    fn open_finished(
        folder: &Path,
        quota_mb: u64,
        key: Option<&OwnKey>,
        now: EpochMs,
    ) -> Result<Self, JournalError> {
        if folder.join(COMPLETE_FILE).exists() {
            put_in_place(folder, now)
                .map_err(|source| JournalError::Salvage { path: folder.join(FILE), source })?;
        }
        Self::open_marked(folder, quota_mb, now, key)
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
        let opened = Self::open_finished(folder, quota_mb, Some(key), now);
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
        let opened =
            Self::open_finished(folder, quota_mb, Some(key), now).and_then(Self::check_all);
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
                Ok((Self::open_marked(folder, quota_mb, now, Some(key))?, Some(report)))
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
        let added = salvage(damaged, &work, key).and_then(|(salvaged, report)| {
            self.add_content_of(&salvaged)?;
            Ok(report)
        });
        discard(&work);
        added
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
    let complete = || -> Result<SalvageReport, JournalError> {
        let (salvaged, report) = salvage(&path, &work, key)?;
        salvaged.close_into_file()?;
        fs::rename(&work, folder.join(COMPLETE_FILE)).map_err(failed)?;
        Ok(report)
    };
    let report = complete().inspect_err(|_| discard(&work))?;
    put_in_place(folder, now).map_err(failed)?;
    Ok(report)
}

/// Removes a salvaged journal that is no longer needed, or that the disk had no room for: a stop may
/// need the room to save the frames in memory.
fn discard(work: &Path) {
    if let Err(error) = remove_database(work) {
        tracing::warn!(%error, path = %work.display(), "cannot remove a salvaged journal");
    }
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
    let path = folder.join(FILE);
    set_aside(folder, &path, now)?;
    fs::rename(folder.join(COMPLETE_FILE), &path)?;
    sync_folder(folder)
}

/// Renames the damaged journal in the file `path`, so that it is kept aside.
pub(super) fn set_aside(folder: &Path, path: &Path, now: EpochMs) -> io::Result<()> {
    aside::remove_oldest(folder)?;
    let kept = aside::unused_name(folder, now);
    // The log first: beside the salvaged journal, SQLite would write it into that one.
    for suffix in ["-wal", "-shm", ""] {
        match fs::rename(with_suffix(path, suffix), with_suffix(&kept, suffix)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    tracing::warn!(aside = %kept.display(), "the damaged journal is kept aside");
    Ok(())
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
    let mut copy = SalvageCopy::new(&journal, key);
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
            report.saved = report.saved.saturating_add(1);
            let unsent = state == STATE_UNSENT || state == STATE_UNSIGNED;
            report.unsent = report.unsent.saturating_add(u64::from(unsent));
            let Some(frame) = decode_stored(state, &message) else { continue };
            let previous = before.as_ref().filter(|(previous, _)| previous.chain == frame.chain);
            match previous {
                Some((previous, _)) if previous.number.saturating_add(1) < frame.number => {
                    report.add_missing_between(previous, &frame);
                }
                Some((_, digest)) => {
                    let unlinked = frame.previous != Some(*digest);
                    report.unlinked = report.unlinked.saturating_add(u64::from(unlinked));
                }
                None => report.add_missing(frame.chain, 1..frame.number),
            }
            if found.chain == Some(frame.chain) {
                next_number = frame.number.saturating_add(1);
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

/// Decodes a stored frame, signed or not. Its signature and its digest are not checked.
pub(super) fn decode_stored(state: i64, message: &[u8]) -> Option<Frame> {
    if state == STATE_UNSIGNED {
        return Frame::decode(message).ok();
    }
    Frame::decode(SignedMessage::parse(message).ok()?.payload()).ok()
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Removes a database with its write-ahead log, if it exists.
pub(super) fn remove_database(path: &Path) -> io::Result<()> {
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
