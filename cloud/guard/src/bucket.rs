//! Token buckets as one number each: the time at which the bucket would be full again (GCRA, the
//! "theoretical arrival time" of ITU-T I.371). The same arithmetic here and in Redis.

use std::collections::HashMap;

use cache::Script;
use serde::{Deserialize, Serialize};

/// How fast tokens come back, and how many there are at most.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Tokens a second.
    pub per_second: f64,
    pub burst: u32,
}

impl Rate {
    /// µs for one token, and for all.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // checked: above 0, below 2^53
    fn micros(self) -> (u64, u64) {
        let one = (1e6 / self.per_second).ceil() as u64;
        (one, one.saturating_mul(self.burst.into()))
    }
}

/// One bucket that a request takes a token of.
#[derive(Debug, Clone, PartialEq)]
pub struct Bucket {
    pub kind: &'static str,
    pub key: String,
    pub rate: Rate,
}

/// How it went, told of the bucket that is nearest to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    pub allowed: bool,
    pub kind: &'static str,
    pub limit: u32,
    pub left: u64,
    /// s until the bucket is full again, and until it has a token.
    pub full_s: u64,
    pub wait_s: u64,
    /// s in which an empty bucket fills.
    pub window_s: u64,
}

/// Takes a token of every bucket, or of none. KEYS: buckets; ARGV: µs for one token and for all, for
/// each; answers whether, and each bucket's time of being full, µs from now.
const TAKE: &str = r"
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local full, allowed = {}, 1
for i, key in ipairs(KEYS) do
  local one, all = tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i])
  -- A clock that was set back must not keep anybody out.
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

/// What the script is given.
pub fn arguments(buckets: &[Bucket]) -> (Vec<String>, Vec<u64>) {
    // Braces: a cluster of Redis keeps them together.
    let keys = buckets.iter().map(|b| format!("{{limit}}:{}:{}", b.kind, b.key)).collect();
    let pair = |b: &Bucket| {
        let (one, all) = b.rate.micros();
        [one, all]
    };
    (keys, buckets.iter().flat_map(pair).collect())
}

/// What `full` (each bucket's µs until it would be full with this token taken) says.
pub fn read(buckets: &[Bucket], allowed: bool, full: &[u64]) -> Taken {
    let each = buckets.iter().zip(full).map(|(bucket, full)| {
        let (one, all) = bucket.rate.micros();
        let after = if allowed { *full } else { full.saturating_sub(one) };
        Taken {
            allowed,
            kind: bucket.kind,
            limit: bucket.rate.burst,
            left: all.saturating_sub(after) / one.max(1),
            full_s: after.div_ceil(1_000_000),
            wait_s: full.saturating_sub(all).div_ceil(1_000_000),
            window_s: all.div_ceil(1_000_000),
        }
    });
    // The one that refuses before the one that is nearest to it.
    let nearest = each.min_by_key(|taken| (u64::MAX - taken.wait_s, taken.left));
    nearest.unwrap_or(Taken {
        allowed,
        kind: "none",
        limit: u32::MAX,
        left: u64::MAX,
        full_s: 0,
        wait_s: 0,
        window_s: 0,
    })
}

/// Buckets of this process. At the bound those that are full are forgotten, then all.
#[derive(Debug, Default)]
pub struct Buckets {
    full_at: HashMap<(&'static str, String), u64>,
}

pub const BUCKETS_MAX: usize = 100_000;

impl Buckets {
    pub fn len(&self) -> usize {
        self.full_at.len()
    }

    /// Takes a token of every bucket, or of none; `now` in µs of any monotonic clock.
    pub fn take(&mut self, buckets: &[Bucket], now: u64) -> Taken {
        let key = |bucket: &Bucket| (bucket.kind, bucket.key.clone());
        let full_at: Vec<u64> = buckets
            .iter()
            .map(|bucket| {
                let known = self.full_at.get(&key(bucket)).copied().unwrap_or(0);
                known.max(now) + bucket.rate.micros().0
            })
            .collect();
        let full: Vec<u64> = full_at.iter().map(|at| at - now).collect();
        let allowed = buckets.iter().zip(&full).all(|(b, full)| *full <= b.rate.micros().1);
        if allowed {
            if self.full_at.len() + buckets.len() > BUCKETS_MAX {
                self.full_at.retain(|_, at| *at > now);
                if self.full_at.len() + buckets.len() > BUCKETS_MAX {
                    self.full_at.clear();
                }
            }
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
        Bucket { kind, key: "k".to_owned(), rate: Rate { per_second, burst } }
    }

    #[test]
    fn a_bucket_empties_and_fills() {
        let mut buckets = Buckets::default();
        let one = [bucket("user", 2.0, 4)];
        let left: Vec<_> = (0..4).map(|_| buckets.take(&one, S).left).collect();
        assert_eq!(left, [3, 2, 1, 0]);
        let refused = buckets.take(&one, S);
        assert!(!refused.allowed);
        assert_eq!((refused.left, refused.wait_s, refused.window_s), (0, 1, 2));
        // A refusal takes nothing: half a second later there is one.
        assert!(buckets.take(&one, S + S / 2).allowed);
        assert!(!buckets.take(&one, S + S / 2).allowed);
        assert_eq!(buckets.take(&one, 100 * S).left, 3);
    }

    #[test]
    fn all_or_none() {
        let mut buckets = Buckets::default();
        let both = [bucket("org", 1.0, 100), bucket("route", 1.0, 1)];
        assert!(buckets.take(&both, S).allowed);
        let refused = buckets.take(&both, S);
        assert_eq!((refused.allowed, refused.kind), (false, "route"));
        // The other bucket has lost nothing by it.
        assert_eq!(buckets.take(&both[..1], S).left, 98);
    }

    #[test]
    fn there_are_never_more_than_the_bound() {
        let mut buckets = Buckets::default();
        for i in 0..BUCKETS_MAX + 10 {
            let key = i.to_string();
            buckets.take(&[Bucket { key, ..bucket("user", 0.001, 1) }], S);
        }
        assert!(buckets.len() <= BUCKETS_MAX);
    }
}
