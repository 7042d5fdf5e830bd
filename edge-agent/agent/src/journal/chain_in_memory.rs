//! Marks a journal on disk whose chain goes on in memory. If the agent ends before the journal in
//! memory has moved to disk or was saved there, the cloud may have frames that the disk does not know:
//! the journal on disk then starts another chain, so that their numbers are not used again.

use std::fs;
use std::path::Path;

use contract::{ChainId, EpochMs};

use super::salvage::{OwnKey, sync_folder};
use super::{Journal, JournalError};

/// Exists from the moment when the chain goes on in memory until the journal on disk is opened again.
const MARKER_FILE: &str = "journal-chain-in-memory";

impl Journal {
    /// Marks the journal in `folder`: from now on its chain goes on in memory.
    ///
    /// # Errors
    /// When the mark cannot be written.
    pub fn mark_chain_in_memory(folder: &Path) -> Result<(), JournalError> {
        let path = folder.join(MARKER_FILE);
        let mark = || {
            fs::File::create(&path)?.sync_all()?;
            sync_folder(folder)
        };
        mark().map_err(|source| JournalError::Marker { path, source })
    }

    /// Opens the journal in `folder`. Takes over what the last stop saved from memory; without that,
    /// starts another chain if the journal is marked. With `key`, also salvages what was saved if it
    /// is damaged, which takes a while.
    pub(super) fn open_marked(
        folder: &Path,
        quota_mb: u64,
        now: EpochMs,
        key: Option<&OwnKey>,
    ) -> Result<Self, JournalError> {
        let mut journal = Self::open(folder, quota_mb)?;
        let path = folder.join(MARKER_FILE);
        let saved = journal.take_over_saved(folder, now, key)?;
        if path.exists() {
            journal.end_mark(folder, &path, saved)?;
        }
        // Last: a power cut before this takes the same content over once more.
        if saved {
            Self::remove_saved(folder)?;
        }
        Ok(journal)
    }

    /// Removes the mark. Starts another chain first, unless the chain that went on in memory was
    /// `saved`.
    fn end_mark(&self, folder: &Path, path: &Path, saved: bool) -> Result<(), JournalError> {
        let failed = |source| JournalError::Marker { path: path.to_owned(), source };
        if !saved && let Some(origin) = self.machine()? {
            let fresh = trust::random().map(ChainId).map_err(failed)?;
            self.start_chain(fresh, &origin)?;
        }
        // Only now: a power cut before this starts one more chain, which does no harm.
        fs::remove_file(path).and_then(|()| sync_folder(folder)).map_err(failed)
    }
}
