//! The keys of gateways, cached: a signature is checked without a query for each frame.

use std::sync::Arc;
use std::time::Duration;

use contract::{KeyId, OrgId};
use database::StoreError;
use quick_cache::sync::Cache;
use tokio::time::Instant;

use crate::store::IngestStore;
use crate::verified_frame::TrustedKey;

/// How long a trusted key is cached: a revoked key is accepted at most this long.
const TRUSTED_TTL: Duration = Duration::from_secs(30);
/// How long the result "unknown key" is cached.
const UNKNOWN_TTL: Duration = Duration::from_secs(2);
/// The maximum number of cached keys. At this bound each new key evicts one that is rarely used.
const KEYS_MAX: usize = 100_000;

type Entry = (Instant, Option<Arc<TrustedKey>>);

/// A read-through cache of the keys in the database.
pub struct KeyCache {
    entries: Cache<(OrgId, KeyId), Entry>,
}

impl Default for KeyCache {
    fn default() -> Self {
        Self::with_capacity(KEYS_MAX)
    }
}

impl KeyCache {
    fn with_capacity(keys_max: usize) -> Self {
        Self { entries: Cache::new(keys_max) }
    }

    /// Returns the key with that id in that organisation, if it is trusted.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn find(
        &self,
        store: &IngestStore,
        org: &OrgId,
        kid: &KeyId,
    ) -> Result<Option<Arc<TrustedKey>>, StoreError> {
        self.look_up(store, (org, kid), TRUSTED_TTL).await
    }

    /// Rereads a key, for a signature that does not fit the cached one: the gateway may have a new
    /// key. An entry read within `UNKNOWN_TTL` is not read again.
    ///
    /// # Errors
    /// As [`KeyCache::find`].
    pub async fn refresh(
        &self,
        store: &IngestStore,
        org: &OrgId,
        kid: &KeyId,
    ) -> Result<Option<Arc<TrustedKey>>, StoreError> {
        self.look_up(store, (org, kid), UNKNOWN_TTL).await
    }

    async fn look_up(
        &self,
        store: &IngestStore,
        (org, kid): (&OrgId, &KeyId),
        ttl: Duration,
    ) -> Result<Option<Arc<TrustedKey>>, StoreError> {
        let name = (org.clone(), kid.clone());
        let now = Instant::now();
        if let Some((read, key)) = self.entries.get(&name) {
            let fresh = if key.is_some() { ttl } else { UNKNOWN_TTL };
            if now.duration_since(read) < fresh {
                return Ok(key);
            }
        }
        let key = store.trusted_key(org, kid).await?.map(Arc::new);
        self.entries.insert(name, (now, key.clone()));
        Ok(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clearing everything at the bound would send one query for each key at once.
    #[test]
    fn a_full_cache_evicts_single_keys_and_none_in_use() {
        let cache = KeyCache::with_capacity(100);
        let name = |n: usize| {
            let kid = format!("device:gw-{n}@leipzig").parse().unwrap();
            (OrgId::new("acme").unwrap(), kid)
        };
        for n in 0..1_000 {
            cache.entries.insert(name(n), (Instant::now(), None));
            let kept = cache.entries.len();
            assert!(kept <= 100 && (n < 100 || kept >= 50), "{kept} keys after {n}");
            assert!(cache.entries.get(&name(0)).is_some(), "the first key, after {n}");
        }
    }
}
