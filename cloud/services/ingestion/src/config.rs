//! `[ingestion]`

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use service::config::Mistakes;

/// `[ingestion]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IngestionConfig {
    pub listen: SocketAddr,
    /// The name of this instance at the broker; each instance needs a name of its own.
    pub instance: String,
    /// Accept unsigned messages of upstream Sim-Corp.
    pub accept_unsigned: bool,
    /// Chains are spread over this many writers, each with its own transaction. More than one pays
    /// where the database has cores to spare: on two cores shared by all, one makes larger batches.
    pub writers: usize,
    /// The maximum number of queued messages; at the limit no further messages are read from the
    /// broker.
    pub queue: usize,
    /// How many cells of samples (samples by columns) the clients of each organisation may read a
    /// second, after ten seconds' worth at once. A stream that reads more goes on more slowly, and a
    /// request is refused with 503 if it would wait for over ten seconds.
    pub read_cells_per_second: u32,
}

impl Default for IngestionConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 4001)),
            instance: "1".to_owned(),
            accept_unsigned: false,
            writers: 1,
            queue: 8192,
            read_cells_per_second: 300_000,
        }
    }
}

impl IngestionConfig {
    /// Returns the number of database connections of the pipeline: one for each writer, and one for
    /// what verification asks.
    #[must_use]
    pub fn connections(&self) -> u32 {
        u32::try_from(self.writers).unwrap_or(u32::MAX).saturating_add(1)
    }

    pub fn check(&self, mistakes: &mut Mistakes) {
        mistakes.require(
            (1..=16).contains(&self.writers),
            "ingestion.writers",
            "not between 1 and 16",
        );
        mistakes.require(
            (64..=1_000_000).contains(&self.queue),
            "ingestion.queue",
            "not between 64 and 1000000",
        );
        mistakes.require(
            (10_000..=100_000_000).contains(&self.read_cells_per_second),
            "ingestion.read_cells_per_second",
            "not between 10000 and 100000000",
        );
        mistakes.require(
            contract::DeviceId::new(self.instance.clone()).is_ok(),
            "ingestion.instance",
            "not a name of letters, digits and . _ -",
        );
    }
}
