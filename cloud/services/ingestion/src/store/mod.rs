//! Ingestion's SQL. Statements are written once; where the two databases must differ, both forms
//! are next to each other in `batch_tx` and `sweeps`.

mod annotations;
mod arrivals;
mod batch_tx;
mod clock_correction;
mod commit;
mod curve;
mod curve_assembly;
mod devices;
mod dry_rows;
mod extras;
mod machine_names;
mod newest;
mod outbox;
mod profiles;
mod queries;
mod row;
mod sample_budget;
mod sessions;
mod sweeps;
mod totals;

use std::sync::Arc;

use ::database::sqlx::{query, query_scalar};
use ::database::{Database, StoreError, on};
use contract::{ChainId, EpochMs, Origin};
use quick_cache::sync::Cache;

pub use annotations::{ChangedBy, Versioned};
pub use arrivals::{Arrival, ArrivalRange, ArrivedEvent, ArrivedFrame, MachineNames};
pub use clock_correction::{ClockOffset, ESTIMATE_TOLERANCE_MS};
pub use commit::{Committed, Outcome};
pub(crate) use dry_rows::DryRows;
pub use extras::Extras;
pub use machine_names::{MachineChange, MachineNaming, NameRefusal};
pub use newest::MachineRow;
pub use outbox::{PendingSession, PublishAfter};
pub use profiles::ProfileFilter;
pub use queries::{EventRow, SessionFilter};
pub use row::{FrameRow, end_of};
pub use sessions::{OpenReceipt, SessionChange, SessionRow, Totals};
pub use sweeps::OrgCursor;

/// The maximum number of cached chains. At this bound each new chain evicts one that is rarely
/// used. The numbers of machines and chains never change once assigned, so they are cached without
/// a time limit.
const NUMBERS_MAX: usize = 200_000;
/// The maximum number of cached clock offsets. An evicted one is cached again when it is noted.
const OFFSETS_MAX: usize = 100_000;

type ChainName = (Origin, ChainId);

/// The database as ingestion uses it.
#[derive(Clone)]
pub struct IngestStore {
    database: Database,
    numbers: Arc<Cache<ChainName, ChainNo>>,
    /// The clock offsets of boots, by chain number and boot id.
    offsets: Arc<Cache<(i64, i64), ClockOffset>>,
    /// What has been counted of running sessions.
    counts: Arc<totals::RunningCounts>,
}

/// The database's numbers of a chain and its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChainNo {
    pub chain: i64,
    pub machine: i64,
}

impl ChainNo {
    /// The numbers of a frame that was not stored.
    pub(crate) const NONE: Self = Self { chain: 0, machine: 0 };
}

impl IngestStore {
    #[must_use]
    pub fn new(database: Database) -> Self {
        Self::with_number_cache(database, NUMBERS_MAX)
    }

    fn with_number_cache(database: Database, numbers_max: usize) -> Self {
        Self {
            database,
            numbers: Arc::new(Cache::new(numbers_max)),
            offsets: Arc::new(Cache::new(OFFSETS_MAX)),
            counts: Arc::new(Cache::new(totals::COUNTS_MAX)),
        }
    }

    /// Returns the same store, for reads that may be slightly stale.
    #[must_use]
    pub fn for_reading(&self) -> Self {
        Self {
            database: self.database.for_reading(),
            numbers: self.numbers.clone(),
            offsets: self.offsets.clone(),
            counts: self.counts.clone(),
        }
    }

    /// Returns the same store with connections of its own, for the pipeline: it never waits for those
    /// that requests hold.
    #[must_use]
    pub fn with_own_pool(&self, connections: u32) -> Self {
        Self {
            database: self.database.with_own_pool(connections),
            numbers: self.numbers.clone(),
            offsets: self.offsets.clone(),
            counts: self.counts.clone(),
        }
    }

    #[must_use]
    pub const fn database(&self) -> &Database {
        &self.database
    }

    /// Returns the numbers of a chain and its machine, which are assigned at its first frame.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn chain_no(
        &self,
        origin: &Origin,
        chain: ChainId,
        kid: &str,
        now: EpochMs,
    ) -> Result<ChainNo, StoreError> {
        const DOING: &str = "numbering a chain";
        let name = (origin.clone(), chain);
        if let Some(found) = self.numbers.get(&name) {
            return Ok(found);
        }
        let machine = self.machine_no(origin, now).await?;
        let org = origin.org.as_str();
        on!(self.database, pool => query(
            "INSERT INTO chains (org_id, machine_no, chain, kid, seen_ms) VALUES ($1, $2, $3, $4, $5) \
             ON CONFLICT (org_id, machine_no, chain) DO NOTHING")
            .bind(org).bind(machine).bind(chain.0.as_slice()).bind(kid).bind(now.0)
            .execute(pool).await.map(drop))
        .map_err(StoreError::query(DOING))?;
        let chain_no: i64 = on!(self.database, pool => query_scalar(
            "SELECT chain_no FROM chains WHERE org_id = $1 AND machine_no = $2 AND chain = $3")
            .bind(org).bind(machine).bind(chain.0.as_slice()).fetch_one(pool).await)
        .map_err(StoreError::query(DOING))?;
        let numbers = ChainNo { chain: chain_no, machine };
        self.numbers.insert(name, numbers);
        Ok(numbers)
    }

    async fn machine_no(&self, origin: &Origin, now: EpochMs) -> Result<i64, StoreError> {
        const DOING: &str = "numbering a machine";
        let (org, site, machine) =
            (origin.org.as_str(), origin.site.as_str(), origin.machine.as_str());
        on!(self.database, pool => query(
            "INSERT INTO machines (org_id, site_id, machine_id, created_ms) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (org_id, site_id, machine_id) DO NOTHING")
            .bind(org).bind(site).bind(machine).bind(now.0).execute(pool).await.map(drop))
        .map_err(StoreError::query(DOING))?;
        on!(self.database, pool => query_scalar(
            "SELECT machine_no FROM machines WHERE org_id = $1 AND site_id = $2 AND machine_id = $3")
            .bind(org).bind(site).bind(machine).fetch_one(pool).await)
        .map_err(StoreError::query(DOING))
    }

    /// Clears the cached numbers, offsets and counts: the database may have been restored to a time before
    /// they were assigned.
    pub(crate) fn clear_number_cache(&self) {
        self.numbers.clear();
        self.offsets.clear();
        self.counts.clear();
    }
}

/// Returns which frames of a receipt's chain have arrived.
pub(crate) fn chain_state(open: &OpenReceipt) -> crate::chain::ChainState {
    commit::state_of(open.next_number, &open.gaps, open.last_digest.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clearing everything at the bound would send the queries of all running chains at once.
    #[tokio::test]
    async fn a_chain_in_use_stays_cached_when_the_bound_is_passed() {
        const NOW: EpochMs = EpochMs(1_760_000_000_000);
        let (_folder, database) = service_testbed::open_sqlite().await;
        let store = IngestStore::with_number_cache(database, 32);
        let origin: Origin = "acme/leipzig/r-1".parse().unwrap();
        let running = store.chain_no(&origin, ChainId([0; 16]), "kid", NOW).await.unwrap();
        for n in 1..100 {
            let other = store.chain_no(&origin, ChainId([n; 16]), "kid", NOW).await.unwrap();
            assert_ne!(other, running);
            assert!(store.numbers.len() <= 32);
            assert_eq!(store.numbers.get(&(origin.clone(), ChainId([0; 16]))), Some(running));
        }
    }
}
