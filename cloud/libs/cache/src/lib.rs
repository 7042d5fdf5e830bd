//! A cache between requests: in this process, or in Redis, shared by instances.
//!
//! The cache is never the only copy of anything. A key names its object and that object's version
//! (an analysis is stored under its roast's `ETag`), so an entry never becomes wrong and needs no
//! invalidation. If Redis is unavailable, every lookup is a miss: slower, never wrong.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod redis;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

pub use crate::redis::{Redis, RedisConfig, Unavailable};
pub use ::redis::Script;

/// The maximum size of all entries of one process, bytes; the least used entries are dropped first.
const MEMORY_BYTES: u64 = 64 * 1024 * 1024;
/// The maximum size of a value, bytes; larger values are not stored.
const VALUE_BYTES_MAX: usize = 4 * 1024 * 1024;
const ENTRIES: usize = 10_000;

#[derive(Clone)]
struct Entry {
    value: Bytes,
    until: Instant,
}

#[derive(Clone)]
struct EntryWeight;

impl quick_cache::Weighter<String, Entry> for EntryWeight {
    fn weight(&self, key: &String, entry: &Entry) -> u64 {
        key.len().saturating_add(entry.value.len()).saturating_add(64) as u64
    }
}

type Memory = quick_cache::sync::Cache<String, Entry, EntryWeight>;

/// A cache; clones share it.
#[derive(Clone)]
pub struct Cache {
    backend: CacheBackend,
}

#[derive(Clone)]
enum CacheBackend {
    Memory(Arc<Memory>),
    Redis(Redis),
}

impl Cache {
    /// Creates a cache in Redis if it is configured, else in this process.
    #[must_use]
    pub fn new(redis: Option<&Redis>) -> Self {
        let backend = match redis {
            Some(redis) => CacheBackend::Redis(redis.clone()),
            None => CacheBackend::Memory(Arc::new(Memory::with_weighter(
                ENTRIES,
                MEMORY_BYTES,
                EntryWeight,
            ))),
        };
        Self { backend }
    }

    /// Returns the value stored under `kind` and `key`; `None` on a miss.
    pub async fn get(&self, kind: &'static str, key: &str) -> Option<Bytes> {
        let name = format!("{kind}:{key}");
        let (found, result) = match &self.backend {
            CacheBackend::Memory(memory) => {
                let found = memory.get(&name).filter(|entry| entry.until > Instant::now());
                let result = if found.is_some() { "hit" } else { "miss" };
                (found.map(|entry| entry.value), result)
            }
            CacheBackend::Redis(redis) => match redis.get(&name).await {
                Ok(Some(value)) => (Some(value), "hit"),
                Ok(None) => (None, "miss"),
                Err(Unavailable) => (None, "away"),
            },
        };
        metrics::counter!("simcorp_cache_requests_total", "kind" => kind, "result" => result)
            .increment(1);
        found
    }

    /// Stores `value` for at most `ttl`.
    pub async fn put(&self, kind: &'static str, key: &str, value: Bytes, ttl: Duration) {
        if value.len() > VALUE_BYTES_MAX {
            return;
        }
        let name = format!("{kind}:{key}");
        match &self.backend {
            CacheBackend::Memory(memory) => {
                memory.insert(name, Entry { value, until: Instant::now() + ttl });
            }
            CacheBackend::Redis(redis) => {
                let _ = redis.put(&name, &value, ttl).await; // a miss next time
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn expired_and_large_values_are_not_cached() {
        let cache = Cache::new(None);
        cache.put("t", "a", Bytes::from_static(b"1"), Duration::from_secs(5)).await;
        assert_eq!(cache.get("t", "a").await.as_deref(), Some(b"1".as_slice()));
        assert_eq!(cache.get("other", "a").await, None);
        tokio::time::advance(Duration::from_secs(6)).await;
        assert_eq!(cache.get("t", "a").await, None);
        let large = Bytes::from(vec![0; VALUE_BYTES_MAX + 1]);
        cache.put("t", "b", large, Duration::from_secs(5)).await;
        assert_eq!(cache.get("t", "b").await, None);
        // At the bound the least used go; the newest stays.
        for i in 0..40 {
            let value = Bytes::from(vec![0; VALUE_BYTES_MAX]);
            cache.put("t", &format!("{i}"), value, Duration::from_secs(5)).await;
        }
        let CacheBackend::Memory(memory) = &cache.backend else { panic!("in memory") };
        assert!(memory.weight() <= MEMORY_BYTES, "{}", memory.weight());
    }
}
