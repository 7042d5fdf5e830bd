//! A cache of the last registers read from a Modbus machine, for other programs. Two programs on
//! one line receive each other's answers, so other programs read this cache instead of the machine.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use firmware_profiles::address::Table;

/// Why the cache cannot answer a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheMiss {
    /// The profile does not read that register.
    NotInProfile,
    /// The cached value is too old: the machine has not answered recently.
    Stale,
}

/// The word of each register and when it was read, ms, by unit, table and register.
type Words = BTreeMap<(u8, Table, u16), (u16, u64)>;

/// The cache, shared by the driver, which stores, and servers, which read. Its size is bounded by
/// the profile's registers.
#[derive(Debug, Clone, Default)]
pub struct RegisterCache(Arc<Mutex<Words>>);

impl RegisterCache {
    /// Stores the registers of one answer.
    pub fn store(&self, station: u8, table: Table, start: u16, words: &[u16], mono_ms: u64) {
        let mut cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (register, word) in (start..=u16::MAX).zip(words) {
            cache.insert((station, table, register), (*word, mono_ms));
        }
    }

    /// Returns consecutive registers, none older than `age_max_ms`.
    ///
    /// # Errors
    /// When the profile does not read one of them, or one is old.
    pub fn read(
        &self,
        station: u8,
        table: Table,
        start: u16,
        count: u16,
        mono_ms: u64,
        age_max_ms: u64,
    ) -> Result<Vec<u16>, CacheMiss> {
        let cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let registers = (start..=u16::MAX).take(usize::from(count));
        let words: Vec<u16> = registers
            .map(|register| {
                let (word, at_ms) =
                    cache.get(&(station, table, register)).ok_or(CacheMiss::NotInProfile)?;
                let fresh = mono_ms.saturating_sub(*at_ms) <= age_max_ms;
                if fresh { Ok(*word) } else { Err(CacheMiss::Stale) }
            })
            .collect::<Result<_, _>>()?;
        if words.is_empty() || words.len() < usize::from(count) {
            return Err(CacheMiss::NotInProfile);
        }
        Ok(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_recently_read_registers_are_returned() {
        let image = RegisterCache::default();
        image.store(1, Table::Holding, 10, &[7, 8], 1_000);
        let read = |station, start, count, at| {
            image.read(station, Table::Holding, start, count, at, 3_000)
        };
        assert_eq!(read(1, 10, 2, 2_000), Ok(vec![7, 8]));
        assert_eq!(read(1, 11, 2, 2_000), Err(CacheMiss::NotInProfile));
        assert_eq!(read(2, 10, 1, 2_000), Err(CacheMiss::NotInProfile), "another unit");
        assert_eq!(read(1, 10, 2, 9_000), Err(CacheMiss::Stale), "an old value is never returned");
        assert_eq!(read(1, 10, 0, 2_000), Err(CacheMiss::NotInProfile));
        image.store(1, Table::Holding, 65_535, &[1, 2], 1_000);
        assert_eq!(
            read(1, 65_535, 2, 1_000),
            Err(CacheMiss::NotInProfile),
            "past the last register"
        );
    }
}
