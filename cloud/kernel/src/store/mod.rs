//! The kernel's SQL.

mod cards;
mod gated;
mod governance;
mod governor;
mod keys;
mod missions;
mod queue;
mod roles;
mod select;
mod traces;

use ::store::Store;

pub use cards::CardKind;
pub use governance::{Kind, Record, RecordFilter};
pub use governor::Versioned;
pub use missions::{Created, MissionFilter};
pub use queue::{Failure, Moved};
pub use roles::Granted;
pub use traces::TraceFilter;

/// The database as the kernel uses it.
#[derive(Clone)]
pub struct KernelStore {
    database: Store,
}

impl KernelStore {
    #[must_use]
    pub const fn new(database: Store) -> Self {
        Self { database }
    }

    #[must_use]
    pub const fn database(&self) -> &Store {
        &self.database
    }
}
