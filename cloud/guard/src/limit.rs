//! How much everybody may ask: buckets of the organisation, the caller, and the caller at a route;
//! shared by instances where Redis is configured. While Redis is away each process counts alone.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::http::Method;
use cache::{Redis, Script};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use service::auth::Caller;
use service::config::Mistakes;
use tokio::time::Instant;

use crate::bucket::{self, Bucket, Buckets, Rate, Taken};

/// `[limits]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// All requests of an organisation.
    pub org: Rate,
    /// Those of one person or key.
    pub user: Rate,
    /// Those of one person or key at one route.
    pub route: Rate,
    /// Frames of one machine by HTTP.
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

/// Counts of the reference's `/_rate-limit/metrics`.
#[derive(Default)]
struct Counts {
    allowed: u64,
    blocked: u64,
    /// Refusals by bucket; at most [`KEYS_MAX`], then only counted.
    refused: BTreeMap<String, u64>,
}

const KEYS_MAX: usize = 1_000;
const TOP: usize = 10;

/// Everybody's limits; clones share them.
#[derive(Clone)]
pub struct Limits(Arc<Shared>);

struct Shared {
    config: LimitsConfig,
    redis: Option<Redis>,
    script: Script,
    began: Instant,
    own: Mutex<Buckets>,
    counts: Mutex<Counts>,
}

impl Limits {
    #[must_use]
    pub fn new(config: &LimitsConfig, redis: Option<&Redis>) -> Self {
        Self(Arc::new(Shared {
            config: config.clone(),
            redis: redis.cloned(),
            script: bucket::script(),
            began: Instant::now(),
            own: Mutex::default(),
            counts: Mutex::default(),
        }))
    }

    /// The buckets of a request; none of a service of ours that works for all.
    #[must_use]
    pub fn of_request(&self, caller: &Caller, method: &Method, route: &str) -> Vec<Bucket> {
        let Some(org) = &caller.org else { return Vec::new() };
        let config = &self.0.config;
        let user = format!("{org}/{}", caller.actor.id);
        let place = format!("{user} {method} {route}");
        vec![
            Bucket { kind: "organisation", key: org.to_string(), rate: config.org },
            Bucket { kind: "user", key: user, rate: config.user },
            Bucket { kind: "route", key: place, rate: config.route },
        ]
    }

    /// The bucket of a machine's frames, as `org/site/machine`.
    #[must_use]
    pub fn of_device(&self, machine: &str) -> Bucket {
        Bucket { kind: "device", key: machine.to_owned(), rate: self.0.config.device }
    }

    /// Takes a token of every bucket, or of none.
    pub async fn take(&self, buckets: &[Bucket]) -> Taken {
        let taken = match self.shared(buckets).await {
            Some(taken) => taken,
            None => self.alone(buckets),
        };
        let mut counts = self.0.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.allowed {
            counts.allowed += 1;
        } else {
            counts.blocked += 1;
            let refused = buckets.iter().find(|bucket| bucket.kind == taken.kind);
            let key = refused.map(|bucket| bucket.key.clone()).unwrap_or_default();
            let room = counts.refused.len() < KEYS_MAX;
            if let Some(n) = counts.refused.get_mut(&key) {
                *n += 1;
            } else if room {
                counts.refused.insert(key, 1);
            }
        }
        taken
    }

    async fn shared(&self, buckets: &[Bucket]) -> Option<Taken> {
        let redis = self.0.redis.as_ref()?;
        let (keys, arguments) = bucket::arguments(buckets);
        let answer: Vec<u64> = redis.run(&self.0.script, &keys, &arguments).await.ok()?;
        let (allowed, full) = answer.split_first()?;
        Some(bucket::read(buckets, *allowed == 1, full))
    }

    fn alone(&self, buckets: &[Bucket]) -> Taken {
        let now = u64::try_from(self.0.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.0.own.lock().unwrap_or_else(PoisonError::into_inner).take(buckets, now)
    }

    /// Counts a refusal.
    pub fn note(&self, taken: &Taken) {
        metrics::counter!("simcorp_rate_limited_total", "kind" => taken.kind).increment(1);
    }

    /// The reference's `/_rate-limit/metrics`; refused keys of the caller's own organisation.
    #[must_use]
    pub fn shown(&self, caller: &Caller) -> Value {
        let counts = self.0.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let own = |key: &str| match &caller.org {
            None => true,
            Some(org) => key.split('/').next() == Some(org.as_str()),
        };
        let mut top: Vec<_> = counts.refused.iter().filter(|(key, _)| own(key)).collect();
        top.sort_by_key(|(_, n)| u64::MAX - **n);
        let top: Vec<_> =
            top.into_iter().take(TOP).map(|(key, n)| json!({"key": key, "count": n})).collect();
        let active = self.0.own.lock().unwrap_or_else(PoisonError::into_inner).len();
        json!({
            "totalRequests": counts.allowed + counts.blocked,
            "allowedRequests": counts.allowed,
            "blockedRequests": counts.blocked,
            "activeKeys": active,
            "topKeys": top,
        })
    }
}
