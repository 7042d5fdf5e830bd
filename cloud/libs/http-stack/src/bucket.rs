//! Token buckets as one number each: the time at which the bucket would be full again (GCRA, the
//! "theoretical arrival time" of ITU-T I.371). The same arithmetic here and in Redis.

use std::cmp::Reverse;

use quick_cache::unsync::Cache;

use cache::Script;
use serde::{Deserialize, Serialize};

/// The refill rate and the capacity of a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Tokens per second.
    pub per_second: f64,
    pub burst: u32,
}

impl Rate {
    /// Returns the refill time of one token and of the whole bucket, µs.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // checked: above 0, below 2^53
    fn micros(self) -> (u64, u64) {
        let one = (1e6 / self.per_second).ceil() as u64;
        (one, one.saturating_mul(self.burst.into()))
    }
}

/// One bucket from which a request takes tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Bucket {
    pub kind: &'static str,
    pub key: String,
    pub rate: Rate,
    /// How many tokens the request takes; more than the bucket holds count as a full bucket.
    pub tokens: u32,
}

impl Bucket {
    /// Returns the refill time of the tokens that are taken and of the whole bucket, µs.
    fn micros(&self) -> (u64, u64) {
        let (one, all) = self.rate.micros();
        (one.saturating_mul(self.tokens.into()).min(all), all)
    }
}

/// The rate-limit decision, described by the bucket that is nearest to its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimitDecision {
    pub allowed: bool,
    pub kind: &'static str,
    pub limit: u32,
    pub remaining: u64,
    /// Seconds until the bucket is full again (`full_s`), and until it has a token (`wait_s`).
    pub reset_after_s: u64,
    pub retry_after_s: u64,
    /// Seconds in which an empty bucket fills.
    pub window_s: u64,
}

/// The Redis script that takes tokens from every bucket, or from none. KEYS: buckets; ARGV: for each
/// bucket the refill time of the taken tokens and of the whole bucket, µs. Returns 1 if allowed, else
/// 0, then the time until each bucket is full, µs from now.
const TAKE: &str = r"
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local full, allowed = {}, 1
for i, key in ipairs(KEYS) do
  local one, all = tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i])
  -- A clock that was set back must not lock a caller out.
  local known = math.min(tonumber(redis.call('GET', key) or '0'), now + all)
  local tat = math.max(known, now) + one
  if tat - now > all then allowed = 0 end
  full[i] = tat
end
local answer = {allowed}
for i, key in ipairs(KEYS) do
  if allowed == 1 then
    local px = math.ceil((full[i] - now) / 1000) + 1
    redis.call('SET', key, string.format('%.0f', full[i]), 'PX', string.format('%.0f', px))
  end
  answer[i + 1] = string.format('%.0f', full[i] - now)
end
return answer
";

pub fn script() -> Script {
    Script::new(TAKE)
}

/// Returns the keys and the arguments of the script.
pub fn arguments(buckets: &[Bucket]) -> (Vec<String>, Vec<u64>) {
    // The braces are a hash tag: Redis Cluster keeps all these keys on one node.
    let keys = buckets.iter().map(|b| format!("{{limit}}:{}:{}", b.kind, b.key)).collect();
    let pair = |b: &Bucket| {
        let (taken, all) = b.micros();
        [taken, all]
    };
    (keys, buckets.iter().flat_map(pair).collect())
}

/// Makes the decision from `full`: for each bucket the time until it would be full with these tokens
/// taken, µs.
pub fn read(buckets: &[Bucket], allowed: bool, full: &[u64]) -> RateLimitDecision {
    let each = buckets.iter().zip(full).map(|(bucket, full)| {
        let ((one, _), (taken, all)) = (bucket.rate.micros(), bucket.micros());
        let after = if allowed { *full } else { full.saturating_sub(taken) };
        RateLimitDecision {
            allowed,
            kind: bucket.kind,
            limit: bucket.rate.burst,
            remaining: all.saturating_sub(after).checked_div(one).unwrap_or(0),
            reset_after_s: after.div_ceil(1_000_000),
            retry_after_s: full.saturating_sub(all).div_ceil(1_000_000),
            window_s: all.div_ceil(1_000_000),
        }
    });
    // The bucket that refuses for longest comes first, then the one with the fewest tokens left.
    let nearest = each.min_by_key(|taken| (Reverse(taken.retry_after_s), taken.remaining));
    nearest.unwrap_or(RateLimitDecision {
        allowed,
        kind: "none",
        limit: u32::MAX,
        remaining: u64::MAX,
        reset_after_s: 0,
        retry_after_s: 0,
        window_s: 0,
    })
}

/// The buckets of this process. At [`BUCKETS_MAX`] the ones that are used least are evicted; an
/// evicted bucket counts as full.
#[derive(Debug)]
pub struct Buckets {
    full_at: Cache<(&'static str, String), u64>,
}

impl Default for Buckets {
    fn default() -> Self {
        Self { full_at: Cache::new(BUCKETS_MAX) }
    }
}

pub const BUCKETS_MAX: usize = 100_000;

impl Buckets {
    pub fn len(&self) -> usize {
        self.full_at.len()
    }

    /// Takes the tokens from every bucket, or from none; `now` in µs of any monotonic clock.
    pub fn take(&mut self, buckets: &[Bucket], now: u64) -> RateLimitDecision {
        let key = |bucket: &Bucket| (bucket.kind, bucket.key.clone());
        let full_at: Vec<u64> = buckets
            .iter()
            .map(|bucket| {
                let known = self.full_at.get(&key(bucket)).copied().unwrap_or(0);
                known.max(now).saturating_add(bucket.micros().0)
            })
            .collect();
        let full: Vec<u64> = full_at.iter().map(|at| at.saturating_sub(now)).collect();
        let allowed = buckets.iter().zip(&full).all(|(b, full)| *full <= b.micros().1);
        if allowed {
            for (bucket, at) in buckets.iter().zip(full_at) {
                self.full_at.insert(key(bucket), at);
            }
        }
        read(buckets, allowed, &full)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000;

    fn bucket(kind: &'static str, per_second: f64, burst: u32) -> Bucket {
        Bucket { kind, key: "k".to_owned(), rate: Rate { per_second, burst }, tokens: 1 }
    }

    #[test]
    fn a_bucket_empties_and_fills() {
        let mut buckets = Buckets::default();
        let one = [bucket("user", 2.0, 4)];
        let left: Vec<_> = (0..4).map(|_| buckets.take(&one, S).remaining).collect();
        assert_eq!(left, [3, 2, 1, 0]);
        let refused = buckets.take(&one, S);
        assert!(!refused.allowed);
        assert_eq!((refused.remaining, refused.retry_after_s, refused.window_s), (0, 1, 2));
        // A refusal takes no token: half a second later there is one.
        assert!(buckets.take(&one, S + S / 2).allowed);
        assert!(!buckets.take(&one, S + S / 2).allowed);
        assert_eq!(buckets.take(&one, 100 * S).remaining, 3);
    }

    #[test]
    fn a_request_takes_all_of_its_tokens_or_none() {
        let mut buckets = Buckets::default();
        let of = |tokens| [Bucket { tokens, ..bucket("device", 1.0, 10) }];
        assert_eq!(buckets.take(&of(6), S).remaining, 4);
        let refused = buckets.take(&of(6), S);
        assert_eq!((refused.allowed, refused.remaining, refused.retry_after_s), (false, 4, 2));
        assert_eq!(buckets.take(&of(4), S).remaining, 0);
        assert!(!buckets.take(&of(64), 10 * S).allowed);
        assert!(buckets.take(&of(64), 11 * S).allowed, "as many as the bucket holds");
    }

    #[test]
    fn all_or_none() {
        let mut buckets = Buckets::default();
        let both = [bucket("org", 1.0, 100), bucket("route", 1.0, 1)];
        assert!(buckets.take(&both, S).allowed);
        let refused = buckets.take(&both, S);
        assert_eq!((refused.allowed, refused.kind), (false, "route"));
        // The refusal took no token from the other bucket.
        assert_eq!(buckets.take(&both[..1], S).remaining, 98);
    }

    #[test]
    fn the_number_of_buckets_is_bounded_and_one_in_use_is_not_evicted() {
        let mut buckets = Buckets::default();
        let limited = [Bucket { key: "limited".to_owned(), ..bucket("user", 0.001, 1) }];
        assert!(buckets.take(&limited, S).allowed);
        for i in 0..2 * BUCKETS_MAX {
            let key = i.to_string();
            buckets.take(&[Bucket { key, ..bucket("user", 0.001, 1) }], S);
            assert!(i % 100 != 0 || !buckets.take(&limited, S).allowed, "after {i} others");
        }
        assert!(buckets.len() <= BUCKETS_MAX);
    }
}
