//! Redis, asked with little patience: what it holds can be done without.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Cmd, FromRedisValue, Script};
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};
use service::config::Mistakes;
use service::secret::Secret;
use tokio::time::Instant;

/// An answer that takes longer is none.
const PATIENCE: Duration = Duration::from_millis(100);
const CONNECT_PATIENCE: Duration = Duration::from_millis(500);
/// After a failure it is not asked for so long, so that a request waits at most once.
const REST_MS: u64 = 1_000;

/// `[redis]`: what instances share. Nothing: each process has its own.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RedisConfig {
    /// `redis://user:password@host:port/db`, or `rediss://` for TLS.
    pub url: Secret,
}

impl RedisConfig {
    pub fn check(&self, mistakes: &mut Mistakes) {
        let Ok(Some(url)) = self.url.resolve() else { return };
        let url = url.expose_secret();
        let loopback = ["redis://127.0.0.1", "redis://localhost", "redis://[::1]"];
        let private = url.starts_with("rediss://")
            || url.starts_with("redis+unix://")
            || loopback.iter().any(|start| url.starts_with(start))
            || url.split_once('@').is_some_and(|(_, host)| {
                host.starts_with("127.0.0.1") || host.starts_with("localhost")
            });
        mistakes.require(
            private,
            "redis.url",
            "does not begin with rediss://: what is shared never crosses a network unencrypted",
        );
    }
}

/// It does not answer, or not in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("redis does not answer")]
pub struct Away;

/// A connection that comes back by itself; clones share it.
#[derive(Clone)]
pub struct Redis {
    manager: ConnectionManager,
    began: Instant,
    /// ms since `began`; before, it is not asked.
    rests_until: Arc<AtomicU64>,
    /// That it is away has been told.
    away: Arc<AtomicBool>,
}

impl Redis {
    /// Connects when it is first asked; `None`: none is configured.
    ///
    /// # Errors
    /// When the address is wrong, or the file or variable it refers to is not there.
    pub fn open(config: &RedisConfig) -> Result<Option<Self>, String> {
        let url = config.url.resolve().map_err(|error| format!("redis.url: {error}"))?;
        let Some(url) = url else { return Ok(None) };
        let wrong = |_| "redis.url: not an address of Redis".to_owned();
        let client = redis::Client::open(url.expose_secret()).map_err(wrong)?;
        let patience = ConnectionManagerConfig::new()
            .set_number_of_retries(1)
            .set_connection_timeout(Some(CONNECT_PATIENCE))
            .set_response_timeout(Some(PATIENCE));
        let manager = ConnectionManager::new_lazy_with_config(client, patience).map_err(wrong)?;
        Ok(Some(Self {
            manager,
            began: Instant::now(),
            rests_until: Arc::default(),
            away: Arc::default(),
        }))
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    async fn asked<T>(
        &self,
        asking: impl Future<Output = redis::RedisResult<T>>,
    ) -> Result<T, Away> {
        if self.now_ms() < self.rests_until.load(Ordering::Relaxed) {
            return Err(Away);
        }
        let answer = tokio::time::timeout(PATIENCE + CONNECT_PATIENCE, asking).await;
        match answer {
            Ok(Ok(value)) => {
                if self.away.swap(false, Ordering::Relaxed) {
                    metrics::gauge!("simcorp_redis_up").set(1.0);
                    tracing::info!("redis answers again");
                }
                Ok(value)
            }
            failed => {
                self.rests_until.store(self.now_ms() + REST_MS, Ordering::Relaxed);
                if !self.away.swap(true, Ordering::Relaxed) {
                    metrics::gauge!("simcorp_redis_up").set(0.0);
                    let error = failed.map(|answer| answer.err().map(|e| e.to_string()));
                    tracing::warn!(?error, "redis does not answer; going on without it");
                }
                Err(Away)
            }
        }
    }

    /// # Errors
    /// [`Away`]
    pub async fn get(&self, key: &str) -> Result<Option<Bytes>, Away> {
        let mut manager = self.manager.clone();
        let command = Cmd::get(key);
        let found: Option<Vec<u8>> = self.asked(command.query_async(&mut manager)).await?;
        Ok(found.map(Bytes::from))
    }

    /// # Errors
    /// [`Away`]
    pub async fn put(&self, key: &str, value: &[u8], keep: Duration) -> Result<(), Away> {
        let mut manager = self.manager.clone();
        let command = Cmd::pset_ex(key, value, u64::try_from(keep.as_millis()).unwrap_or(u64::MAX));
        self.asked(command.query_async(&mut manager)).await
    }

    /// Runs a script that Redis keeps by its digest.
    ///
    /// # Errors
    /// [`Away`]
    pub async fn run<T: FromRedisValue>(
        &self,
        script: &Script,
        keys: &[String],
        arguments: &[u64],
    ) -> Result<T, Away> {
        let mut manager = self.manager.clone();
        let mut invocation = script.prepare_invoke();
        for key in keys {
            invocation.key(key);
        }
        for argument in arguments {
            invocation.arg(*argument);
        }
        self.asked(invocation.invoke_async(&mut manager)).await
    }
}
