//! Saves the journal in memory at a stop, in a file beside the journal on disk, while that cannot be
//! opened: for example while it is being salvaged. The journal on disk takes the file over when it
//! is opened the next time.

use std::path::Path;

use contract::EpochMs;

use super::salvage::{OwnKey, remove_database, set_aside, sync_folder};
use super::{Journal, JournalError};

pub(super) const SAVED_FILE: &str = "journal-memory.db";

impl Journal {
    /// Saves this journal, which is in memory, in `folder`. What an earlier stop saved there stays.
    ///
    /// # Errors
    /// When the disk cannot be written. Nothing is saved then.
    pub fn save_memory(&self, folder: &Path) -> Result<(), JournalError> {
        let path = folder.join(SAVED_FILE);
        let mut saved = Self::open_file(&path, u64::MAX)?;
        saved.take_over(self)?;
        saved.save_learned(&self.learned()?)?;
        sync_folder(folder).map_err(|source| JournalError::Saved { path, source })
    }

    /// Takes over what the last stop saved from memory, and continues its chain. Returns whether it
    /// did; then the caller removes the file with [`Journal::remove_saved`]. A damaged file is salvaged
    /// with `key` and set aside, and its chain is not continued.
    pub(super) fn take_over_saved(
        &mut self,
        folder: &Path,
        now: EpochMs,
        key: Option<&OwnKey>,
    ) -> Result<bool, JournalError> {
        let path = folder.join(SAVED_FILE);
        if !path.exists() {
            return Ok(false);
        }
        let saved = match Self::open_file(&path, u64::MAX) {
            Ok(saved) => saved,
            Err(problem @ JournalError::Damaged { .. }) => {
                let Some(key) = key else { return Err(JournalError::SavedDamaged { path }) };
                tracing::error!(%problem, "what a stop saved from memory is damaged: salvaging it");
                let report = self.add_salvaged(folder, &path, key)?;
                tracing::warn!(
                    saved = report.saved,
                    damaged = report.damaged,
                    missing_ranges = report.missing_ranges,
                    "what a stop saved from memory was salvaged"
                );
                set_aside(folder, &path, now)
                    .map_err(|source| JournalError::Saved { path, source })?;
                return Ok(false);
            }
            Err(problem) => return Err(problem),
        };
        // A power cut during the stop leaves a journal without a chain.
        let Some(origin) = saved.machine()? else { return Ok(false) };
        let (here, there) = (self.learned_about(&origin)?, saved.learned()?);
        self.take_over(&saved)?;
        self.save_learned(if there.roasts > here.roasts { &there } else { &here })?;
        tracing::info!("took over the frames that the last stop saved from memory");
        Ok(true)
    }

    /// Removes what the last stop saved from memory.
    pub(super) fn remove_saved(folder: &Path) -> Result<(), JournalError> {
        let path = folder.join(SAVED_FILE);
        remove_database(&path)
            .and_then(|()| sync_folder(folder))
            .map_err(|source| JournalError::Saved { path, source })
    }
}
