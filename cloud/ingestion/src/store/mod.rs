//! Ingestion's SQL. Statements are written once; where the two databases must differ, both forms
//! stand side by side in [`commit`].

mod commit;
mod curve;
mod dating;
mod devices;
mod outbox;
mod profiles;
mod read;
mod row;
mod sessions;
mod written;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use ::store::sqlx::{query, query_scalar};
use ::store::{Store, StoreError, on};
use contract::{ChainId, EpochMs, Origin};

pub use commit::{Committed, Outcome};
pub use curve::Curveless;
pub use outbox::{Untold, Wait};
pub use profiles::ProfileFilter;
pub use read::{ArrivedFrame, EventRow, MachineRow, SessionFilter};
pub use row::FrameRow;
pub use sessions::{OpenReceipt, SessionChange, SessionRow, Totals};
pub use written::{By, Versioned};

/// Numbers of machines and chains never change once given, so they are remembered.
const NUMBERS_MAX: usize = 200_000;

type ChainName = (Origin, ChainId);

/// The database as ingestion uses it.
#[derive(Clone)]
pub struct IngestStore {
    database: Store,
    numbers: Arc<Mutex<HashMap<ChainName, ChainNo>>>,
}

/// The short names of a chain and its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChainNo {
    pub chain: i64,
    pub machine: i64,
}

impl ChainNo {
    /// Of a frame that was not stored.
    pub(crate) const NONE: Self = Self { chain: 0, machine: 0 };
}

impl IngestStore {
    #[must_use]
    pub fn new(database: Store) -> Self {
        Self { database, numbers: Arc::default() }
    }

    /// The same, for reads that may be a moment old.
    #[must_use]
    pub fn for_reading(&self) -> Self {
        Self { database: self.database.for_reading(), numbers: self.numbers.clone() }
    }

    #[must_use]
    pub const fn database(&self) -> &Store {
        &self.database
    }

    /// The numbers of a chain, given at its first frame.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn name_chain(
        &self,
        origin: &Origin,
        chain: ChainId,
        kid: &str,
        now: EpochMs,
    ) -> Result<ChainNo, StoreError> {
        const DOING: &str = "naming a chain";
        let name = (origin.clone(), chain);
        if let Some(found) = self.numbers.lock().unwrap_or_else(PoisonError::into_inner).get(&name)
        {
            return Ok(*found);
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
        let mut known = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= NUMBERS_MAX {
            known.clear();
        }
        known.insert(name, numbers);
        Ok(numbers)
    }

    async fn machine_no(&self, origin: &Origin, now: EpochMs) -> Result<i64, StoreError> {
        const DOING: &str = "naming a machine";
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

    /// Forgets remembered numbers: the database may have been restored from before they were given.
    pub(crate) fn forget_numbers(&self) {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// How far the chain of a receipt has arrived.
pub(crate) fn chain_state(open: &OpenReceipt) -> crate::chain::ChainState {
    commit::state_of(open.next_number, &open.gaps, open.last_digest.clone())
}
