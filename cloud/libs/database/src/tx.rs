//! Transactions over either database.

use sqlx::{Postgres, Sqlite, Transaction};

use crate::{Database, Pool, StoreError};

/// A transaction. If it is dropped without [`Tx::commit`], it changes nothing.
pub enum Tx {
    Sqlite(Transaction<'static, Sqlite>),
    Postgres(Transaction<'static, Postgres>),
}

/// Runs the same body in a transaction of either database: `on_tx!(tx, connection =>
/// query(SQL).execute(connection))`.
#[macro_export]
macro_rules! on_tx {
    ($tx:expr, $connection:ident => $body:expr) => {
        match $tx {
            $crate::Tx::Sqlite(transaction) => {
                let $connection = &mut **transaction;
                $body
            }
            $crate::Tx::Postgres(transaction) => {
                let $connection = &mut **transaction;
                $body
            }
        }
    };
}

impl Database {
    /// Begins a transaction that will write. SQLite takes its only write lock now, since a reader
    /// that becomes a writer may be refused half way.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn begin(&self) -> Result<Tx, StoreError> {
        match self.pool() {
            Pool::Sqlite(pool) => pool.begin_with("BEGIN IMMEDIATE").await.map(Tx::Sqlite),
            Pool::Postgres(pool) => pool.begin().await.map(Tx::Postgres),
        }
        .map_err(StoreError::query("beginning a transaction"))
    }
}

impl Tx {
    /// Commits the transaction.
    ///
    /// # Errors
    /// When the database cannot commit: nothing has changed then, or the reply was lost.
    pub async fn commit(self) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(transaction) => transaction.commit().await,
            Self::Postgres(transaction) => transaction.commit().await,
        }
        .map_err(StoreError::query("committing"))
    }
}
