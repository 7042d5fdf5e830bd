//! The rows of `Idempotency-Key`: which request a key belongs to, and its response. The HTTP half is
//! in `http-stack`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use contract::EpochMs;
use service::clock::Clock;
use sqlx::{query, query_as, query_scalar};

use crate::{Database, StoreError, on};

/// How long keys are stored: a day.
const RETENTION_MS: i64 = 86_400_000;
/// After this time an unanswered request never will be answered: its process has died, and its key
/// may run again. Longer than any response may take, and than the clocks of instances differ.
const RUNNING_MS: i64 = 120_000;

/// The most bytes of responses that are stored for one organisation, or for one caller of all
/// organisations.
const ORG_BYTES_MAX: i64 = 32 * 1024 * 1024;
/// How long the number of an organisation's bytes is remembered; other instances store some too.
const RECOUNT_MS: i64 = 10_000;
/// The maximum number of organisations whose bytes are remembered. At this bound all are counted
/// again.
const ORGS_MAX: usize = 10_000;

/// Stores the response to each key.
#[derive(Clone)]
pub struct Idempotency {
    store: Database,
    clock: Clock,
    org_bytes_max: i64,
    /// The stored bytes of each organisation, and when they were counted.
    counted: Arc<Mutex<HashMap<String, (i64, EpochMs)>>>,
}

/// The state of a key.
pub enum KeyState {
    /// The key is new: this request is the first.
    New,
    /// Another request with this key has not been answered yet.
    Running,
    /// The key was used for a different request.
    Reused,
    Answered {
        status: u16,
        kind: String,
        body: Vec<u8>,
    },
}

/// Digest of the request; status, content type and body of the response.
type Row = (Vec<u8>, Option<i64>, Option<String>, Option<Vec<u8>>);

impl Idempotency {
    #[must_use]
    pub fn new(store: Database, clock: Clock) -> Self {
        Self { store, clock, org_bytes_max: ORG_BYTES_MAX, counted: Arc::default() }
    }

    /// Returns the same store with another bound on the stored bytes of an organisation.
    #[must_use]
    pub fn with_org_bytes_max(self, org_bytes_max: i64) -> Self {
        Self { org_bytes_max, ..self }
    }

    /// Returns whether the organisation may store `bytes` more, and counts them if so. Without this
    /// bound, requests with ever new keys would fill the disk.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn has_room(&self, org: &str, bytes: usize) -> Result<bool, StoreError> {
        let (now, bytes) = ((self.clock)(), i64::try_from(bytes).unwrap_or(i64::MAX));
        let counted = self.counted().get(org).copied();
        let held = match counted.filter(|(_, at)| (0..RECOUNT_MS).contains(&now.ms_since(*at))) {
            Some((held, _)) => held,
            None => self.count_bytes(org).await?,
        };
        let after = held.saturating_add(bytes);
        let fits = after <= self.org_bytes_max;
        let mut all = self.counted();
        if all.len() >= ORGS_MAX && !all.contains_key(org) {
            all.clear();
        }
        let entry = all.entry(org.to_owned()).or_insert((held, now));
        if !(0..RECOUNT_MS).contains(&now.ms_since(entry.1)) {
            *entry = (held, now);
        }
        if fits {
            entry.0 = entry.0.saturating_add(bytes);
        }
        Ok(fits)
    }

    fn counted(&self) -> std::sync::MutexGuard<'_, HashMap<String, (i64, EpochMs)>> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn count_bytes(&self, org: &str) -> Result<i64, StoreError> {
        on!(self.store, pool => query_scalar(
            "SELECT CAST(COALESCE(SUM(LENGTH(body)), 0) AS bigint) FROM idempotency WHERE org_id = $1")
            .bind(org).fetch_one(pool).await)
        .map_err(StoreError::query("counting the stored responses"))
    }

    /// Registers a request under `name` (organisation and key), or returns what is known of it.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn begin(&self, name: &[&str; 2], digest: &[u8]) -> Result<KeyState, StoreError> {
        const DOING: &str = "looking up an Idempotency-Key";
        let [org, key] = *name;
        let now = (self.clock)();
        let turn = self.store.write_turn().await;
        // The row of a request whose process died may be reused.
        let new = on!(self.store, pool => query(
            "INSERT INTO idempotency (org_id, idempotency_key, digest, made_ms) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (org_id, idempotency_key) DO UPDATE SET digest = EXCLUDED.digest, \
             made_ms = EXCLUDED.made_ms, status = NULL, body = NULL \
             WHERE (idempotency.status IS NULL AND idempotency.made_ms < $5 \
                    AND idempotency.digest = EXCLUDED.digest) OR idempotency.made_ms < $6")
            .bind(org).bind(key).bind(digest).bind(now.0)
            .bind(now.minus_ms(RUNNING_MS).0).bind(now.minus_ms(RETENTION_MS).0)
            .execute(pool).await.map(|done| done.rows_affected() > 0))
        .map_err(StoreError::query(DOING))?;
        drop(turn);
        if new {
            return Ok(KeyState::New);
        }
        let row: Option<Row> = on!(self.store, pool => query_as(
            "SELECT digest, status, kind, body FROM idempotency \
             WHERE org_id = $1 AND idempotency_key = $2")
            .bind(org).bind(key).fetch_optional(pool).await)
        .map_err(StoreError::query(DOING))?;
        Ok(match row {
            Some((stored_digest, ..)) if stored_digest != digest => KeyState::Reused,
            Some((_, Some(status), kind, body)) => KeyState::Answered {
                status: u16::try_from(status).unwrap_or(500),
                kind: kind.unwrap_or_default(),
                body: body.unwrap_or_default(),
            },
            _ => KeyState::Running,
        })
    }

    /// Stores the status, content type and body of the response to `name`.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn store_response(
        &self,
        name: &[&str; 2],
        (status, kind): (u16, &str),
        body: &[u8],
    ) -> Result<(), StoreError> {
        let _turn = self.store.write_turn().await;
        on!(self.store, pool => query(
            "UPDATE idempotency SET status = $3, kind = $4, body = $5 \
             WHERE org_id = $1 AND idempotency_key = $2")
            .bind(name[0]).bind(name[1]).bind(i64::from(status)).bind(kind).bind(body)
            .execute(pool).await.map(drop))
        .map_err(StoreError::query("storing a response"))
    }

    /// Deletes the key, so that a retry runs again.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn delete(&self, name: &[&str; 2]) -> Result<(), StoreError> {
        on!(self.store, pool => query(
            "DELETE FROM idempotency WHERE org_id = $1 AND idempotency_key = $2")
            .bind(name[0]).bind(name[1]).execute(pool).await.map(drop))
        .map_err(StoreError::query("deleting an Idempotency-Key"))
    }
}

impl Database {
    /// Deletes expired keys; returns how many.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn delete_expired_idempotency_keys(&self, now: EpochMs) -> Result<u64, StoreError> {
        on!(self, pool => query("DELETE FROM idempotency WHERE made_ms < $1")
            .bind(now.minus_ms(RETENTION_MS).0).execute(pool).await
            .map(|done| done.rows_affected()))
        .map_err(StoreError::query("deleting Idempotency-Keys"))
    }
}
