//! Transactions over either database.

use sqlx::{Postgres, Sqlite, Transaction};
use tokio::sync::OwnedSemaphorePermit;

use crate::{Database, Pool, StoreError};

/// The turn of one writer of SQLite, until it is dropped. Without turns, a writer that finds the
/// database locked sleeps, and those that come later overtake it. A writer without a turn, of a
/// single short statement or in another process, waits by sleeping.
#[derive(Debug)]
pub struct WriteTurn {
    _permit: Option<OwnedSemaphorePermit>,
}

/// A transaction. If it is dropped without [`Tx::commit`], it changes nothing.
pub enum Tx {
    Sqlite(Transaction<'static, Sqlite>, WriteTurn),
    Postgres(Transaction<'static, Postgres>),
}

/// Runs the same body in a transaction of either database: `on_tx!(tx, connection =>
/// query(SQL).execute(connection))`.
#[macro_export]
macro_rules! on_tx {
    ($tx:expr, $connection:ident => $body:expr) => {
        match $tx {
            $crate::Tx::Sqlite(transaction, _) => {
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
        let turn = self.write_turn().await;
        match self.pool() {
            Pool::Sqlite(pool) => {
                pool.begin_with("BEGIN IMMEDIATE").await.map(|begun| Tx::Sqlite(begun, turn))
            }
            Pool::Postgres(pool) => pool.begin().await.map(Tx::Postgres),
        }
        .map_err(StoreError::query("beginning a transaction"))
    }

    /// Waits for the turn to write, in the order of the callers; at once on PostgreSQL. A caller that
    /// has a turn or a transaction must not wait for another.
    pub async fn write_turn(&self) -> WriteTurn {
        match self.pool() {
            // The semaphore is never closed.
            Pool::Sqlite(_) => {
                WriteTurn { _permit: self.writer.clone().acquire_owned().await.ok() }
            }
            Pool::Postgres(_) => WriteTurn { _permit: None },
        }
    }
}

impl Tx {
    /// Commits the transaction.
    ///
    /// # Errors
    /// When the database cannot commit: nothing has changed then, or the reply was lost.
    pub async fn commit(self) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(transaction, _turn) => transaction.commit().await,
            Self::Postgres(transaction) => transaction.commit().await,
        }
        .map_err(StoreError::query("committing"))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::DatabaseConfig;

    #[tokio::test]
    async fn writers_of_sqlite_take_turns_in_the_order_in_which_they_came() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("test.db").display());
        let config = DatabaseConfig { url: url.into(), ..DatabaseConfig::default() };
        let database = Database::open(&config).await.unwrap();
        let own_pool = database.with_own_pool(1);
        let first = database.begin().await.unwrap();
        let order: Arc<Mutex<Vec<u8>>> = Arc::default();
        let mut waiting = Vec::new();
        for (n, database) in [(1, &database), (2, &own_pool), (3, &database)] {
            let (order, database) = (order.clone(), database.clone());
            waiting.push(tokio::spawn(async move {
                let tx = database.begin().await.unwrap();
                order.lock().unwrap().push(n);
                tx.commit().await.unwrap();
            }));
            tokio::task::yield_now().await; // it waits for its turn
        }
        assert!(order.lock().unwrap().is_empty());
        drop(first);
        for task in waiting {
            task.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), [1, 2, 3]);
    }
}
