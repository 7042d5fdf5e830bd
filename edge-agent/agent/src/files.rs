//! Writing files so that a power cut leaves the old content or the new, never a part.

use std::io::Write as _;
use std::path::Path;

/// Writes a file atomically: a power cut leaves the old file or the new one, and nothing in
/// between.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let next = path.with_extension("next");
    let mut file = std::fs::File::create(&next)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&next, path)?;
    if let Some(folder) = path.parent() {
        std::fs::File::open(folder)?.sync_all()?;
    }
    Ok(())
}
