//! The SQL statements of eval.

mod cases;
mod judge_budget;
mod runs;

use std::sync::{Arc, Mutex};

use ::database::{Database, StoreError, Tx, audit::AuditChange};
use contract::{Actor, EpochMs, OrgId};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

pub use cases::CaseFilter;
pub use runs::{PendingJudgement, RunFilter};

/// Eval's access to the database.
#[derive(Clone)]
pub struct EvalStore {
    database: Database,
    /// The organisation whose run was judged last.
    judged_org: Arc<Mutex<String>>,
}

/// Who changes something, and when.
#[derive(Debug, Clone, Copy)]
pub struct ChangedBy<'b> {
    pub actor: &'b Actor,
    pub now: EpochMs,
}

impl EvalStore {
    #[must_use]
    pub fn new(database: Database) -> Self {
        Self { database, judged_org: Arc::default() }
    }

    #[must_use]
    pub const fn database(&self) -> &Database {
        &self.database
    }

    async fn audit(
        tx: &mut Tx,
        org: &OrgId,
        ChangedBy { actor, now: at }: ChangedBy<'_>,
        (action, subject, details): (&str, &str, Value),
    ) -> Result<(), StoreError> {
        tx.audit(&AuditChange { org, actor, at, action, subject, details }).await
    }
}

fn read<T: DeserializeOwned>(doing: &'static str, body: &str) -> Result<T, StoreError> {
    serde_json::from_str(body).map_err(|error| StoreError::row(doing, error))
}

fn text(value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::row("writing JSON", error))
}
