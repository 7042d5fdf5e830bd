//! The kernel's database queries.

mod awaiting_eval;
mod cards;
mod governance;
mod governor;
mod keys;
mod lane;
mod mission_row;
mod missions;
mod queue;
mod roles;
mod select;
mod tokens;
mod traces;
mod turns;

use std::sync::Arc;

use ::database::Database;

pub use cards::CardKind;
pub use governance::{GovernanceRecord, RecordFilter, RecordKind};
pub use governor::VersionedConfig;
pub use missions::{CreateMission, MissionFilter};
pub use queue::{AttemptFailure, Transition};
pub use roles::RoleOverride;
pub use traces::{TraceFilter, TracePage};

/// The kernel's access to the database.
#[derive(Clone)]
pub struct KernelStore {
    database: Database,
    turns: Arc<turns::Turns>,
}

impl KernelStore {
    #[must_use]
    pub fn new(database: Database) -> Self {
        Self { database, turns: Arc::default() }
    }

    #[must_use]
    pub const fn database(&self) -> &Database {
        &self.database
    }
}
