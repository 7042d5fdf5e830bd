//! Stores frames, roasts and receipts on the gateway's disk: SQLite, WAL, `synchronous=FULL`. A
//! sample exists once it is stored here.
//!
//! A frame is written once, signed, in the transaction that also updates its roast. After a power
//! cut the journal is in the state before a frame or after it, never in between. A frame whose
//! signature failed is written without one, and its signature follows later. Frames are deleted
//! only for the quota, the oldest first, in this order: acknowledged frames; then frames of past
//! roasts that the cloud does not have, which are counted and logged as lost: unsent frames, frames
//! that are not signed yet, refused frames. Frames of the running roast are never deleted.
//!
//! The frames of a damaged journal are salvaged into a new one ([`salvage`]). While the disk cannot
//! be used, a journal in memory ([`Journal::in_memory`]) takes its place; a stop saves it beside the one
//! on disk ([`Journal::save_memory`]).

mod chain_in_memory;
mod chains;
mod delivery;
mod error;
mod late_receipts;
mod memory;
mod pages;
mod quota;
mod roasts;
pub mod salvage;
mod saved_memory;
mod unsigned;

use std::path::Path;
use std::time::Duration;

use contract::{ChainId, Digest, Origin};
use rusqlite::{Connection, OptionalExtension as _, params};

use crate::recorder::{ClosedRoast, RunningRoast};

use chains::{add_chain, chain_in_use};
pub use delivery::FetchLimit;
pub use error::JournalError;
pub use memory::MEMORY_BYTES_MAX;
use roasts::put_roast;
use unsigned::put_receipt;

/// The journal's file in its folder.
pub const FILE: &str = "journal.db";
const SCHEMA_VERSION: i64 = 4;
const SCHEMA: &str = "
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE frames (
    id      INTEGER PRIMARY KEY,
    chain   BLOB NOT NULL,
    number  INTEGER NOT NULL,
    samples INTEGER NOT NULL,
    made_ms INTEGER NOT NULL,
    -- 0 to be sent, 1 acknowledged, 2 refused by the cloud, 3 not signed yet
    state   INTEGER NOT NULL,
    digest  BLOB NOT NULL,
    signed  BLOB NOT NULL, -- the message; of a frame that is not signed yet, its text
    UNIQUE (chain, number)
) STRICT;
CREATE INDEX frames_unsent ON frames (id) WHERE state = 0;
CREATE TABLE roasts (
    session     TEXT PRIMARY KEY,
    chain       BLOB NOT NULL,
    started_ms  INTEGER NOT NULL,
    first_seq   INTEGER NOT NULL,
    first_frame INTEGER NOT NULL,
    marked      TEXT NOT NULL,
    last_frame  INTEGER,
    state       INTEGER NOT NULL, -- 0 running, 1 closed, 2 complete in the cloud, 3 given up
    receipt     BLOB
) STRICT;
";

/// Added in version 2: the machine that a chain's frames are from.
const CHAINS: &str = "
CREATE TABLE IF NOT EXISTS chains (
    chain   BLOB PRIMARY KEY,
    origin  TEXT NOT NULL -- the machine that its frames are of
) STRICT, WITHOUT ROWID;
";

/// Added in version 3: frames and receipts that are not signed yet.
const UNSIGNED: &str = "
CREATE INDEX frames_unsigned ON frames (id) WHERE state = 3;
ALTER TABLE roasts ADD COLUMN unsigned_receipt BLOB;
CREATE INDEX roasts_unsigned ON roasts (session) WHERE unsigned_receipt IS NOT NULL;
";

/// The values of `frames.state`.
const STATE_UNSENT: i64 = 0;
const STATE_ACKED: i64 = 1;
const STATE_REFUSED: i64 = 2;
const STATE_UNSIGNED: i64 = 3;

/// Added in version 4: the time of a roast's CHARGE on the kernel's clock.
const KERNEL_CLOCK: &str = "
ALTER TABLE roasts ADD COLUMN kernel_boot TEXT;
ALTER TABLE roasts ADD COLUMN charge_uptime_ms INTEGER;
";

/// A signed frame that is to be sent to the cloud.
#[derive(Debug, Clone)]
pub struct OutgoingFrame {
    /// The frame's id in the journal; newer frames have greater ids.
    pub id: i64,
    /// The machine that the frame is from. It is not the current machine if the gateway was moved
    /// while frames were unsent.
    pub origin: Origin,
    pub chain: ChainId,
    pub number: u64,
    pub signed: Vec<u8>,
}

/// How much the journal contains.
#[derive(Debug, Clone, Default, serde::Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct JournalTotals {
    pub frames: i64,
    pub unsent_frames: i64,
    /// Frames that are stored but not signed yet.
    pub unsigned_frames: i64,
    pub refused_frames: i64,
    /// The samples in the unsent frames.
    pub unsent_samples: i64,
    /// The bytes that the journal uses on disk, without free pages.
    pub bytes: i64,
    /// The closed roasts that the cloud has not confirmed as complete.
    pub open_receipts: i64,
}

/// A frame as stored: signed, or not signed yet.
#[derive(Debug, Clone, Copy)]
pub enum StoredMessage<'m> {
    Signed(&'m [u8]),
    /// The encoded frame without a signature, because the key could not be used.
    Unsigned(&'m [u8]),
}

impl StoredMessage<'_> {
    const fn bytes(&self) -> &[u8] {
        match self {
            Self::Signed(bytes) | Self::Unsigned(bytes) => bytes,
        }
    }

    const fn state(&self) -> i64 {
        match self {
            Self::Signed(_) => STATE_UNSENT,
            Self::Unsigned(_) => STATE_UNSIGNED,
        }
    }
}

/// The journal's database. Only one process can have it open.
pub struct Journal {
    db: Connection,
    quota_bytes: i64,
    /// Whether this journal is in memory, where only acknowledged frames are deleted.
    in_memory: bool,
    /// How many unsent frames were deleted for the quota since the agent started.
    pub lost_frames: u64,
}

/// Creates the journal's file so that only its owner may read it, if it does not exist. SQLite gives
/// the same permissions to the files beside it. An error is left to SQLite, which reports it.
fn create_private(path: &Path) {
    use std::os::unix::fs::OpenOptionsExt as _;
    let _ = std::fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(path);
}

/// Returns whether a folder is on a disk that is mounted read-only. SQLite reports that as an I/O
/// error.
fn is_mounted_read_only(folder: &Path) -> bool {
    use rustix::fs::{StatVfsMountFlags, statvfs};
    statvfs(folder).is_ok_and(|disk| disk.f_flag.contains(StatVfsMountFlags::RDONLY))
}

impl Journal {
    /// Opens the journal in `folder`, or creates it.
    ///
    /// # Errors
    /// When the folder cannot be written, another agent uses the journal, a newer agent wrote it,
    /// or it is damaged.
    pub fn open(folder: &Path, quota_mb: u64) -> Result<Self, JournalError> {
        let make = |source| JournalError::Folder { path: folder.to_owned(), source };
        std::fs::create_dir_all(folder).map_err(make)?;
        if is_mounted_read_only(folder) {
            return Err(JournalError::ReadOnly { doing: "opening the journal" });
        }
        Self::open_file(&folder.join(FILE), quota_mb)
    }

    fn open_file(path: &Path, quota_mb: u64) -> Result<Self, JournalError> {
        const DOING: &str = "opening the journal";
        create_private(path);
        let db = Connection::open(path).map_err(JournalError::sql(DOING))?;
        Self::set_up(db, path, quota_mb.saturating_mul(1024 * 1024))
    }

    /// Prepares an open database: locks it, migrates it, and checks it.
    fn set_up(db: Connection, path: &Path, quota_bytes: u64) -> Result<Self, JournalError> {
        const DOING: &str = "opening the journal";
        db.busy_timeout(Duration::from_millis(500)).map_err(JournalError::sql(DOING))?;
        let locked = |error: rusqlite::Error| match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => {
                JournalError::Locked { path: path.to_owned() }
            }
            _ => JournalError::sql(DOING)(error),
        };
        // Exclusive: two agents on one journal would use the same frame numbers twice.
        db.execute_batch(
            "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; \
             PRAGMA synchronous = FULL; PRAGMA cache_size = -512; PRAGMA mmap_size = 0; \
             PRAGMA journal_size_limit = 4194304; PRAGMA wal_autocheckpoint = 256; \
             BEGIN EXCLUSIVE; COMMIT;",
        )
        .map_err(locked)?;
        let version: i64 = db
            .query_row("PRAGMA user_version", [], |row| row.get(0))
            .map_err(JournalError::sql(DOING))?;
        let steps = match version {
            0 => format!("{SCHEMA} {CHAINS} {UNSIGNED} {KERNEL_CLOCK}"),
            1 => format!("{CHAINS} {UNSIGNED} {KERNEL_CLOCK}"),
            2 => format!("{UNSIGNED} {KERNEL_CLOCK}"),
            3 => KERNEL_CLOCK.to_owned(),
            SCHEMA_VERSION => String::new(),
            found => return Err(JournalError::TooNew { path: path.to_owned(), found }),
        };
        if !steps.is_empty() {
            db.execute_batch(&format!(
                "BEGIN; {steps} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
            ))
            .map_err(JournalError::sql(DOING))?;
        }
        // The check reads every page, which takes a while. The sampler is already running, and its
        // samples wait in the queue.
        let check: String = db
            .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
            .map_err(JournalError::sql(DOING))?;
        if check != "ok" {
            let source = rusqlite::Error::InvalidParameterName(check);
            return Err(JournalError::Damaged { doing: DOING, source });
        }
        // SQLite opens a journal on a full or read-only disk without an error. The first sample
        // must not be what finds it out.
        db.execute(
            "INSERT OR REPLACE INTO meta (key, value) VALUES ('write_test', randomblob(8))",
            [],
        )
        .map_err(JournalError::sql(DOING))?;
        let quota_bytes = i64::try_from(quota_bytes).unwrap_or(i64::MAX);
        Ok(Self { db, quota_bytes, in_memory: false, lost_frames: 0 })
    }

    /// Returns the wall-clock time of the newest frame, in Unix ms.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn newest_ms(&self) -> Result<Option<i64>, JournalError> {
        self.db
            .query_row("SELECT made_ms FROM frames ORDER BY id DESC LIMIT 1", [], |row| row.get(0))
            .optional()
            .map_err(JournalError::sql("finding the newest frame"))
    }

    /// Stores a frame and the changes to its roast in one transaction. Returns `None` for a frame
    /// that is not signed, because it cannot be sent yet. The frame may be of an earlier chain than
    /// the one in use: it may have waited in memory.
    ///
    /// # Errors
    /// When the journal cannot be written. Nothing is stored then, and the caller retries.
    pub fn append(
        &mut self,
        frame: &contract::Frame,
        digest: Digest,
        message: StoredMessage<'_>,
        closed: Option<&ClosedRoast>,
        running: Option<&RunningRoast>,
    ) -> Result<Option<OutgoingFrame>, JournalError> {
        const DOING: &str = "storing a frame";
        let samples = frame.sample_count() as u64;
        let number = i64::try_from(frame.number).unwrap_or(i64::MAX);
        let next_seq = frame.first_seq.saturating_add(samples);
        let tx = self.db.transaction().map_err(JournalError::sql(DOING))?;
        let put = || -> rusqlite::Result<i64> {
            tx.prepare_cached(
                "INSERT INTO frames (chain, number, samples, made_ms, state, digest, signed) \
                 VALUES (?1, ?2, ?3, ?4, ?7, ?5, ?6)",
            )?
            .execute(params![
                frame.chain.0,
                number,
                i64::try_from(samples).unwrap_or(i64::MAX),
                frame.wall.0,
                digest.0,
                message.bytes(),
                message.state()
            ])?;
            let id = tx.last_insert_rowid();
            let mut meta =
                tx.prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)")?;
            meta.execute(params!["next_seq", next_seq.to_be_bytes()])?;
            // A frame that waited while another chain was started does not move that chain.
            let in_use = chain_in_use(&tx)?.is_none_or(|chain| chain == frame.chain);
            if in_use {
                meta.execute(params!["next_number", frame.number.saturating_add(1).to_be_bytes()])?;
                meta.execute(params!["last_digest", digest.0])?;
            } else {
                add_chain(&tx, frame.chain, &frame.origin)?;
            }
            if let Some(closed) = closed {
                put_roast(&tx, frame.chain, &closed.roast, Some(closed.last_frame))?;
                put_receipt(&tx, &frame.origin, frame.chain, closed)?;
            }
            // The running roast of an earlier chain was abandoned when the next one was started.
            if let Some(roast) = running.filter(|_| in_use) {
                put_roast(&tx, frame.chain, roast, None)?;
            }
            Ok(id)
        };
        let id = put().map_err(JournalError::sql(DOING))?;
        tx.commit().map_err(JournalError::sql(DOING))?;
        let StoredMessage::Signed(signed) = message else { return Ok(None) };
        Ok(Some(OutgoingFrame {
            id,
            origin: frame.origin.clone(),
            chain: frame.chain,
            number: frame.number,
            signed: signed.to_vec(),
        }))
    }

    /// Returns how much the journal contains.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn totals(&self) -> Result<JournalTotals, JournalError> {
        let bytes = self.used_bytes()?;
        self.db
            .query_row(
                "SELECT (SELECT COUNT(*) FROM frames), \
                 (SELECT COUNT(*) FROM frames WHERE state = 0), \
                 (SELECT COUNT(*) FROM frames WHERE state = 2), \
                 (SELECT COALESCE(SUM(samples), 0) FROM frames WHERE state = 0), \
                 (SELECT COUNT(*) FROM roasts WHERE state = 1), \
                 (SELECT COUNT(*) FROM frames WHERE state = 3)",
                [],
                |row| {
                    Ok(JournalTotals {
                        frames: row.get(0)?,
                        unsent_frames: row.get(1)?,
                        refused_frames: row.get(2)?,
                        unsent_samples: row.get(3)?,
                        open_receipts: row.get(4)?,
                        unsigned_frames: row.get(5)?,
                        bytes,
                    })
                },
            )
            .map_err(JournalError::sql("counting the journal's content"))
    }

    /// Returns a value of the `meta` table.
    fn meta(&self, key: &str) -> Result<Option<Vec<u8>>, JournalError> {
        self.db
            .query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0))
            .optional()
            .map_err(JournalError::sql("reading the journal's state"))
    }
}

#[cfg(test)]
impl Journal {
    /// Makes every write fail, as on a disk that became read-only.
    pub fn set_read_only(&self, read_only: bool) {
        self.db.pragma_update(None, "query_only", read_only).unwrap();
    }

    pub const fn set_quota_bytes(&mut self, bytes: i64) {
        self.quota_bytes = bytes;
    }
}

#[cfg(test)]
mod tests;
