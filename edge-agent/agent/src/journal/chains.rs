//! The journal's chains: which one is in use, and which machine each is from.

use contract::{ChainId, Digest, IdError, Origin};
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension as _, params};

use super::roasts::exchange_learned;
use super::{Journal, JournalError};
use crate::recorder::JournalPosition;
use crate::renamed_machine;

/// The largest stored number that is believed: half of the largest number that a frame may have.
const STORED_NUMBER_MAX: u64 = 1 << 52;

impl Journal {
    /// Returns the chain of `origin`, and the next numbers in it. A chain belongs to one machine:
    /// in a new journal, or if the gateway was moved to another machine, it first starts the chain
    /// `fresh`, abandons the running roasts, and sets aside what was learned about the machine before.
    /// A chain whose stored numbers are damaged is not continued either.
    ///
    /// # Errors
    /// When the journal cannot be read or written.
    pub fn load_or_start_chain(
        &self,
        origin: &Origin,
        fresh: ChainId,
    ) -> Result<JournalPosition, JournalError> {
        const DOING: &str = "reading the journal's position";
        // Chains from before version 2 belong to the gateway's current machine.
        self.db
            .execute(
                "INSERT OR IGNORE INTO chains (chain, origin) SELECT chain, ?1 FROM \
                 (SELECT chain FROM frames UNION SELECT chain FROM roasts UNION \
                  SELECT value FROM meta WHERE key = 'chain')",
                [origin.to_string()],
            )
            .map_err(JournalError::sql(DOING))?;
        let number = |name| -> Result<u64, JournalError> {
            let bytes = self.meta(name)?.and_then(|v| <[u8; 8]>::try_from(v).ok());
            Ok(bytes.map_or(0, u64::from_be_bytes))
        };
        let is_damaged = number("next_number")?.max(number("next_seq")?) > STORED_NUMBER_MAX;
        if is_damaged {
            tracing::error!("the journal's position is damaged; starting another chain");
        }
        let stored = self.meta("chain")?.and_then(|v| <[u8; 16]>::try_from(v).ok());
        let stored = stored.filter(|_| !is_damaged);
        let chain = match stored {
            Some(chain) if self.origin_of(ChainId(chain))?.as_ref() == Some(origin) => chain,
            _ => {
                let before = self.machine()?;
                let hint = before.as_ref().and_then(|old| renamed_machine::hint(old, origin));
                if let Some(hint) = hint {
                    tracing::warn!("{hint}");
                }
                self.start_chain(fresh, origin)?;
                fresh.0
            }
        };
        if is_damaged {
            self.db
                .execute("DELETE FROM meta WHERE key = 'next_seq'", [])
                .map_err(JournalError::sql(DOING))?;
        }
        let next_number = number("next_number")?.max(1);
        let last = self
            .db
            .query_row(
                "SELECT digest FROM frames WHERE chain = ?1 AND number = ?2",
                params![chain, i64::try_from(next_number.saturating_sub(1)).unwrap_or(i64::MAX)],
                |row| row.get::<_, [u8; 32]>(0),
            )
            .optional()
            .map_err(JournalError::sql(DOING))?;
        // The last frame may have been deleted for the quota, while older ones are still here; its
        // digest is still in `meta`.
        let previous = match last {
            _ if next_number == 1 => None,
            Some(digest) => Some(Digest(digest)),
            None => self.meta("last_digest")?.and_then(|v| v.try_into().ok()).map(Digest),
        };
        Ok(JournalPosition {
            chain: ChainId(chain),
            next_number,
            next_seq: number("next_seq")?,
            previous,
        })
    }

    /// Starts another chain, permanently. Frame numbers start again at 1; sample numbers continue.
    /// Running roasts are abandoned, because no receipt can cover two chains. If the chain is of
    /// another machine than the one before, what was learned is exchanged as well. All of it is one
    /// transaction: after a power cut, no roast or habit of the old chain goes on in the new one.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn start_chain(&self, chain: ChainId, origin: &Origin) -> Result<(), JournalError> {
        const DOING: &str = "starting a new chain";
        let before = self.machine()?;
        let tx = self.db.unchecked_transaction().map_err(JournalError::sql(DOING))?;
        let put = || -> rusqlite::Result<()> {
            if let Some(before) = before.filter(|before| before != origin) {
                exchange_learned(&tx, &before, origin)?;
            }
            tx.execute("UPDATE roasts SET state = 3 WHERE state = 0", [])?;
            tx.execute(
                "INSERT INTO chains (chain, origin) VALUES (?1, ?2)",
                params![chain.0, origin.to_string()],
            )?;
            tx.execute(
                "INSERT OR REPLACE INTO meta (key, value) VALUES ('chain', ?1), ('next_number', ?2)",
                params![chain.0, 1_u64.to_be_bytes()],
            )?;
            Ok(())
        };
        put().map_err(JournalError::sql(DOING))?;
        tx.commit().map_err(JournalError::sql(DOING))
    }

    /// Continues a chain at a position, in a journal that has none of its frames.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn continue_chain(
        &self,
        position: &JournalPosition,
        origin: &Origin,
    ) -> Result<(), JournalError> {
        self.start_chain(position.chain, origin)?;
        let digest = position.previous.map_or_else(Vec::new, |digest| digest.0.to_vec());
        self.db
            .execute(
                "INSERT OR REPLACE INTO meta (key, value) \
                 VALUES ('next_number', ?1), ('next_seq', ?2), ('last_digest', ?3)",
                params![
                    position.next_number.to_be_bytes(),
                    position.next_seq.to_be_bytes(),
                    digest
                ],
            )
            .map(drop)
            .map_err(JournalError::sql("continuing a chain"))
    }

    /// Returns the machine that a chain's frames are from; `None` for an unknown chain.
    pub(super) fn origin_of(&self, chain: ChainId) -> Result<Option<Origin>, JournalError> {
        let row =
            self.db.query_row("SELECT origin FROM chains WHERE chain = ?1", [chain.0], |row| {
                read_origin(row, 0)
            });
        row.optional().map_err(JournalError::sql("finding a chain's machine"))
    }

    /// Returns the machine of the newest chain; `None` in a new journal.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn machine(&self) -> Result<Option<Origin>, JournalError> {
        match self.meta("chain")?.and_then(|v| <[u8; 16]>::try_from(v).ok()) {
            Some(chain) => self.origin_of(ChainId(chain)),
            None => Ok(None),
        }
    }
}

/// Reads and parses the origin in a column.
pub(super) fn read_origin(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<Origin> {
    let text: String = row.get(column)?;
    text.parse().map_err(|error: IdError| {
        rusqlite::Error::FromSqlConversionFailure(column, Type::Text, error.into())
    })
}

/// Returns the chain in use; `None` in a new journal.
pub(super) fn chain_in_use(db: &Connection) -> rusqlite::Result<Option<ChainId>> {
    db.prepare_cached("SELECT value FROM meta WHERE key = 'chain'")?
        .query_row([], |row| row.get(0).map(ChainId))
        .optional()
}

/// Adds a chain, if the journal does not have it.
pub(super) fn add_chain(db: &Connection, chain: ChainId, origin: &Origin) -> rusqlite::Result<()> {
    db.prepare_cached("INSERT OR IGNORE INTO chains (chain, origin) VALUES (?1, ?2)")?
        .execute(params![chain.0, origin.to_string()])
        .map(drop)
}
