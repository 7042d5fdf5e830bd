//! Messages of upstream Sim-Corp's publishers, stored in a database of the fuzz target's own.

use contract::envelope::PayloadKind;
use contract::{EpochMs, Origin};

use super::{DryRunError, FrameViews, views_of};
use crate::keys::KeyCache;
use crate::legacy::{self, LegacyError};
use crate::store::IngestStore;

/// Receives the messages of upstream publishers, without a broker.
pub struct UpstreamIngestion {
    store: IngestStore,
    keys: KeyCache,
}

impl UpstreamIngestion {
    /// Creates an ingestion that stores in `store`.
    #[must_use]
    pub fn new(store: IngestStore) -> Self {
        Self { store, keys: KeyCache::default() }
    }

    /// Stores a message that arrives at `now`. Returns what clients read of it; `None` if the
    /// message is refused.
    ///
    /// # Errors
    /// When the database does not answer, or the message cannot be written as JSON.
    pub async fn receive(
        &self,
        origin: &Origin,
        kind: PayloadKind,
        bytes: &[u8],
        now: EpochMs,
    ) -> Result<Option<FrameViews>, DryRunError> {
        let read = legacy::read(&self.store, &self.keys, origin, kind, bytes, true, now).await;
        let message = match read {
            Ok(message) => message,
            Err(LegacyError::Store(error)) => return Err(error.into()),
            Err(_) => return Ok(None),
        };
        let views = views_of(&message.frame)?;
        let no = self.store.chain_no(origin, legacy::CHAIN, "", now).await?;
        self.store.commit(&[no], &[message.frame], now).await?;
        Ok(Some(views))
    }
}
