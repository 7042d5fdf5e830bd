//! Rate limits: a bucket for the organisation, one for the caller, and one for the caller at a
//! route. Instances share the buckets if Redis is configured. While Redis is unavailable, each
//! process counts for itself.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::http::Method;
use cache::{Redis, Script};
use contract::EpochMs;
use serde::{Deserialize, Serialize};
use service::clock::Clock;
use service::config::Mistakes;
use tokio::time::Instant;

use crate::auth::Caller;
use crate::bucket::{self, Bucket, Buckets, Rate, RateLimitDecision};

/// `[limits]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// All requests of an organisation.
    pub org: Rate,
    /// All requests of one person or API key.
    pub user: Rate,
    /// The requests of one person or API key at one route.
    pub route: Rate,
    /// The frames of one machine received over HTTP.
    pub device: Rate,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            org: Rate { per_second: 1_000.0, burst: 10_000 },
            user: Rate { per_second: 200.0, burst: 2_000 },
            route: Rate { per_second: 100.0, burst: 1_000 },
            device: Rate { per_second: 200.0, burst: 4_000 },
        }
    }
}

impl LimitsConfig {
    pub fn check(&self, mistakes: &mut Mistakes) {
        for (name, rate) in [
            ("limits.org", self.org),
            ("limits.user", self.user),
            ("limits.route", self.route),
            ("limits.device", self.device),
        ] {
            mistakes.require(
                (0.001..=1e6).contains(&rate.per_second) && (1..=1_000_000).contains(&rate.burst),
                name,
                "per_second not between 0.001 and 1000000, or burst not between 1 and 1000000",
            );
        }
    }
}

/// The counts shown by `/_rate-limit/metrics`, an upstream Sim-Corp route.
#[derive(Default)]
struct Counts {
    allowed: u64,
    blocked: u64,
    /// Refusals by bucket key; at most [`KEYS_MAX`] keys. Refusals of further keys are counted only
    /// in `blocked`.
    refused: BTreeMap<String, u64>,
}

/// The body of `/_rate-limit/metrics`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RateLimitMetrics {
    pub total_requests: u64,
    pub allowed_requests: u64,
    pub blocked_requests: u64,
    /// The number of buckets in this process.
    pub active_keys: usize,
    /// The bucket keys with the most refusals, at most ten.
    pub top_keys: Vec<RefusedKey>,
}

/// A bucket key and the number of its refusals.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RefusedKey {
    pub key: String,
    pub count: u64,
}

const KEYS_MAX: usize = 1_000;
const TOP: usize = 10;

/// The rate limiter; clones share its state.
#[derive(Clone)]
pub struct Limits(Arc<LimiterState>);

struct LimiterState {
    config: LimitsConfig,
    redis: Option<Redis>,
    script: Script,
    began: Instant,
    /// The wall clock, for the times that callers are told.
    clock: Clock,
    own: Mutex<Buckets>,
    counts: Mutex<Counts>,
}

impl Limits {
    #[must_use]
    pub fn new(config: &LimitsConfig, redis: Option<&Redis>, clock: Clock) -> Self {
        Self(Arc::new(LimiterState {
            config: config.clone(),
            redis: redis.cloned(),
            script: bucket::script(),
            began: Instant::now(),
            clock,
            own: Mutex::default(),
            counts: Mutex::default(),
        }))
    }

    /// Returns the time of the wall clock.
    pub(crate) fn now(&self) -> EpochMs {
        (self.0.clock)()
    }

    /// Returns the buckets of a request; none for a caller without an organisation, which is one of
    /// our services that works for all organisations.
    #[must_use]
    pub fn of_request(&self, caller: &Caller, method: &Method, route: &str) -> Vec<Bucket> {
        let Some(org) = &caller.org else { return Vec::new() };
        let config = &self.0.config;
        let user = format!("{org}/{}", caller.actor.id);
        // A method of the caller's own invention does not get a bucket of its own.
        let method = service::http::known_method(method);
        let place = format!("{user} {method} {route}");
        vec![
            Bucket { kind: "organisation", key: org.to_string(), rate: config.org, tokens: 1 },
            Bucket { kind: "user", key: user, rate: config.user, tokens: 1 },
            Bucket { kind: "route", key: place, rate: config.route, tokens: 1 },
        ]
    }

    /// Returns the bucket for `frames` frames of a machine; `machine` is `org/site/machine`.
    #[must_use]
    pub fn of_device(&self, machine: &str, frames: u32) -> Bucket {
        let rate = self.0.config.device;
        Bucket { kind: "device", key: machine.to_owned(), rate, tokens: frames }
    }

    /// Takes the tokens from every bucket, or from none.
    pub async fn take(&self, buckets: &[Bucket]) -> RateLimitDecision {
        let taken = match self.take_redis(buckets).await {
            Some(taken) => taken,
            None => self.take_local(buckets),
        };
        let mut counts = self.0.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.allowed {
            counts.allowed = counts.allowed.saturating_add(1);
        } else {
            counts.blocked = counts.blocked.saturating_add(1);
            let refused = buckets.iter().find(|bucket| bucket.kind == taken.kind);
            let key = refused.map(|bucket| bucket.key.clone()).unwrap_or_default();
            let room = counts.refused.len() < KEYS_MAX;
            if let Some(n) = counts.refused.get_mut(&key) {
                *n = n.saturating_add(1);
            } else if room {
                counts.refused.insert(key, 1);
            }
        }
        taken
    }

    async fn take_redis(&self, buckets: &[Bucket]) -> Option<RateLimitDecision> {
        let redis = self.0.redis.as_ref()?;
        let (keys, arguments) = bucket::arguments(buckets);
        let answer: Vec<u64> = redis.run(&self.0.script, &keys, &arguments).await.ok()?;
        let (allowed, full) = answer.split_first()?;
        Some(bucket::read(buckets, *allowed == 1, full))
    }

    fn take_local(&self, buckets: &[Bucket]) -> RateLimitDecision {
        let now = u64::try_from(self.0.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.0.own.lock().unwrap_or_else(PoisonError::into_inner).take(buckets, now)
    }

    /// Counts a refusal in the metrics.
    pub fn count_refusal(&self, taken: &RateLimitDecision) {
        metrics::counter!("simcorp_rate_limited_total", "kind" => taken.kind).increment(1);
    }

    /// Returns the body of upstream Sim-Corp's `/_rate-limit/metrics`, with the refused keys of the
    /// caller's own organisation only; a caller without an organisation sees all.
    #[must_use]
    pub fn metrics(&self, caller: &Caller) -> RateLimitMetrics {
        let counts = self.0.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let own = |key: &str| match &caller.org {
            None => true,
            Some(org) => key.split('/').next() == Some(org.as_str()),
        };
        let mut top: Vec<_> = counts.refused.iter().filter(|(key, _)| own(key)).collect();
        top.sort_by_key(|(_, n)| Reverse(**n));
        let refused =
            |(key, count): (&String, &u64)| RefusedKey { key: key.clone(), count: *count };
        RateLimitMetrics {
            total_requests: counts.allowed.saturating_add(counts.blocked),
            allowed_requests: counts.allowed,
            blocked_requests: counts.blocked,
            active_keys: self.0.own.lock().unwrap_or_else(PoisonError::into_inner).len(),
            top_keys: top.into_iter().take(TOP).map(refused).collect(),
        }
    }
}
