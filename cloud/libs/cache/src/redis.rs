//! A Redis client with short timeouts: callers can always work without what Redis holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Cmd, FromRedisValue, Script};
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};
use service::config::{Mistakes, is_loopback_url};
use service::secret::Secret;
use tokio::time::Instant;

/// The timeout of a response.
const RESPONSE_TIMEOUT: Duration = Duration::from_millis(100);
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// How long no command is sent after a failure, so that a request waits at most once.
const PAUSE_MS: u64 = 1_000;

/// `[redis]`: state shared by instances. Without it each process has its own.
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
        let private = url.starts_with("rediss://")
            || url.starts_with("redis+unix://")
            || is_loopback_url(url, "redis");
        mistakes.require(
            private,
            "redis.url",
            "does not begin with rediss://: traffic to another host must be encrypted",
        );
    }
}

/// Redis does not answer, or not in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("redis does not answer")]
pub struct Unavailable;

/// A connection that reconnects by itself; clones share it.
#[derive(Clone)]
pub struct Redis {
    manager: ConnectionManager,
    began: Instant,
    /// No command is sent before this time, ms since `began`.
    paused_until_ms: Arc<AtomicU64>,
    /// True while Redis is unavailable; the change has been logged.
    away: Arc<AtomicBool>,
}

impl Redis {
    /// Creates a client that connects at its first command; `None` if Redis is not configured.
    ///
    /// # Errors
    /// When the address is wrong, or the file or variable it refers to is not there.
    pub fn open(config: &RedisConfig) -> Result<Option<Self>, String> {
        let url = config.url.resolve().map_err(|error| format!("redis.url: {error}"))?;
        let Some(url) = url else { return Ok(None) };
        let wrong = |_| "redis.url: not a Redis address".to_owned();
        let client = redis::Client::open(url.expose_secret()).map_err(wrong)?;
        let settings = ConnectionManagerConfig::new()
            .set_number_of_retries(1)
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(RESPONSE_TIMEOUT));
        let manager = ConnectionManager::new_lazy_with_config(client, settings).map_err(wrong)?;
        Ok(Some(Self {
            manager,
            began: Instant::now(),
            paused_until_ms: Arc::default(),
            away: Arc::default(),
        }))
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    async fn execute<T>(
        &self,
        asking: impl Future<Output = redis::RedisResult<T>>,
    ) -> Result<T, Unavailable> {
        if self.now_ms() < self.paused_until_ms.load(Ordering::Relaxed) {
            return Err(Unavailable);
        }
        let limit = RESPONSE_TIMEOUT.saturating_add(CONNECT_TIMEOUT);
        let answer = tokio::time::timeout(limit, asking).await;
        match answer {
            Ok(Ok(value)) => {
                if self.away.swap(false, Ordering::Relaxed) {
                    metrics::gauge!("simcorp_redis_up").set(1.0);
                    tracing::info!("redis answers again");
                }
                Ok(value)
            }
            failed => {
                let until_ms = self.now_ms().saturating_add(PAUSE_MS);
                self.paused_until_ms.store(until_ms, Ordering::Relaxed);
                if !self.away.swap(true, Ordering::Relaxed) {
                    metrics::gauge!("simcorp_redis_up").set(0.0);
                    let error = failed.map(|answer| answer.err().map(|e| e.to_string()));
                    tracing::warn!(?error, "redis does not answer; continuing without it");
                }
                Err(Unavailable)
            }
        }
    }

    /// Returns the value of a key; `None` if Redis has none.
    ///
    /// # Errors
    /// [`Unavailable`]
    pub async fn get(&self, key: &str) -> Result<Option<Bytes>, Unavailable> {
        let mut manager = self.manager.clone();
        let command = Cmd::get(key);
        let found: Option<Vec<u8>> = self.execute(command.query_async(&mut manager)).await?;
        Ok(found.map(Bytes::from))
    }

    /// Sets the value of a key, which Redis deletes after `ttl`.
    ///
    /// # Errors
    /// [`Unavailable`]
    pub async fn put(&self, key: &str, value: &[u8], ttl: Duration) -> Result<(), Unavailable> {
        let mut manager = self.manager.clone();
        let command = Cmd::pset_ex(key, value, u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
        self.execute(command.query_async(&mut manager)).await
    }

    /// Runs a script, which Redis caches by its digest.
    ///
    /// # Errors
    /// [`Unavailable`]
    pub async fn run<T: FromRedisValue>(
        &self,
        script: &Script,
        keys: &[String],
        arguments: &[u64],
    ) -> Result<T, Unavailable> {
        let mut manager = self.manager.clone();
        let mut invocation = script.prepare_invoke();
        for key in keys {
            invocation.key(key);
        }
        for argument in arguments {
            invocation.arg(*argument);
        }
        self.execute(invocation.invoke_async(&mut manager)).await
    }
}
