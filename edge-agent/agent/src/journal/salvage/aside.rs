//! Damaged journals that were set aside after their salvage.

use std::path::{Path, PathBuf};
use std::{fs, io};

use contract::EpochMs;

use super::remove_database;

/// The largest number of damaged journals in a folder.
const ASIDE_MAX: usize = 3;

/// Removes the oldest damaged journals, so that there is room for one more: a card that fails again
/// and again must not fill itself. What could be verified in them is in the journal since.
pub fn remove_oldest(folder: &Path) -> io::Result<()> {
    let mut aside = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        let is_database = path.extension().is_some_and(|extension| extension == "db");
        if is_database && entry.file_name().to_string_lossy().starts_with("journal-damaged-") {
            aside.push((entry.metadata()?.modified()?, path));
        }
    }
    aside.sort();
    let surplus = aside.len().saturating_add(1).saturating_sub(ASIDE_MAX);
    for (_, path) in aside.into_iter().take(surplus) {
        tracing::warn!(path = %path.display(), "removing the oldest damaged journal");
        remove_database(&path)?;
    }
    Ok(())
}

/// Returns a name for a damaged journal that no file has: a gateway without a clock chip starts at
/// the same date each time.
pub fn unused_name(folder: &Path, now: EpochMs) -> PathBuf {
    let name = |n: u32| {
        let more = if n == 0 { String::new() } else { format!("-{n}") };
        folder.join(format!("journal-damaged-{}{more}.db", now.compact()))
    };
    (0..1_000).map(name).find(|path| !path.exists()).unwrap_or_else(|| name(1_000))
}
