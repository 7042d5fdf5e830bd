//! Seeded noise that depends on its seed, stream and counter alone: the same on every CPU.

use serde::{Deserialize, Serialize};

/// A counter-based generator (`SplitMix64`).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Noise {
    seed: u64,
    counter: u64,
}

impl Noise {
    /// Creates a generator. The streams of one seed do not repeat each other.
    #[must_use]
    pub const fn new(seed: u64, stream: u64) -> Self {
        Self { seed: seed ^ stream.wrapping_mul(0xd1b5_4a32_d192_ed03), counter: 0 }
    }

    /// Returns an about normal number of mean 0 and deviation 1: the sum of twelve uniform numbers
    /// minus six.
    pub fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0
    }

    /// Returns a uniform number from 0 to below 1.
    pub fn uniform(&mut self) -> f64 {
        self.counter = self.counter.wrapping_add(1);
        let mut z = self.seed.wrapping_add(self.counter.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}
