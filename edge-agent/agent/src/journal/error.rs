//! Why the journal cannot be used.

use std::path::PathBuf;

use rusqlite::ffi;

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("cannot create the journal's folder {path}: {source}", path = path.display())]
    Folder { path: PathBuf, source: std::io::Error },
    #[error("the journal {path} was written by a newer agent (schema {found}); install that one", path = path.display())]
    TooNew { path: PathBuf, found: i64 },
    #[error("another agent uses the journal {path}; stop it first", path = path.display())]
    Locked { path: PathBuf },
    #[error("the disk is full while {doing}; free some space, or lower journal.quota_mb")]
    Full { doing: &'static str },
    #[error(
        "the disk is read-only while {doing}; look for its errors in the kernel log, and replace a worn card"
    )]
    ReadOnly { doing: &'static str },
    #[error("the journal is damaged (found while {doing}): {source}")]
    Damaged { doing: &'static str, source: rusqlite::Error },
    #[error("error while {doing}: {source}")]
    Sql { doing: &'static str, source: rusqlite::Error },
    #[error("cannot salvage the damaged journal {path}: {source}", path = path.display())]
    Salvage { path: PathBuf, source: std::io::Error },
    #[error("cannot use what a stop saved from memory in {path}: {source}", path = path.display())]
    Saved { path: PathBuf, source: std::io::Error },
    #[error("what a stop saved from memory in {path} is damaged and has to be salvaged first", path = path.display())]
    SavedDamaged { path: PathBuf },
    #[error("cannot write {path}: {source}", path = path.display())]
    Marker { path: PathBuf, source: std::io::Error },
    #[error("opening the journal panicked; the log says where")]
    OpenerPanicked,
}

impl JournalError {
    /// Returns a function that classifies an SQLite error. `doing` says what failed.
    pub(super) fn sql(doing: &'static str) -> impl FnOnce(rusqlite::Error) -> Self {
        use rusqlite::ErrorCode;
        // What a bad sector of a card gives. A disk that is gone gives it too, but then no salvaged
        // journal can be written, and the journal stays as it is.
        let unreadable = |source: &rusqlite::Error| {
            source.sqlite_error().is_some_and(|error| {
                [ffi::SQLITE_IOERR_READ, ffi::SQLITE_IOERR_CORRUPTFS].contains(&error.extended_code)
            })
        };
        move |source| match source.sqlite_error_code() {
            _ if unreadable(&source) => Self::Damaged { doing, source },
            Some(ErrorCode::DiskFull) => Self::Full { doing },
            Some(ErrorCode::ReadOnly) => Self::ReadOnly { doing },
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                Self::Damaged { doing, source }
            }
            _ => Self::Sql { doing, source },
        }
    }

    /// Returns whether a later attempt can succeed without a change of the installation.
    pub const fn is_passing(&self) -> bool {
        !matches!(self, Self::TooNew { .. } | Self::Locked { .. })
    }
}
