//! The fleet's SQL. Every change of a key, or of what a gateway may do, is written to the audit log
//! in the same transaction as the change.

mod certificates;
mod devices;
mod enrollments;
mod recoveries;

use ::database::audit::AuditChange;
use ::database::{Database, StoreError, Tx};
use contract::{Actor, ActorKind, EpochMs, KeyId, OrgId};
use serde_json::Value;

pub use certificates::NewCertificate;
pub use enrollments::{Enrollment, EnrollmentError, NewEnrollment, SpendResult};
pub use recoveries::{Recovery, RecoveryDecision};

/// The fleet's access to the database.
#[derive(Clone)]
pub struct FleetStore {
    database: Database,
}

/// The actor of a change, and the time of the change.
#[derive(Debug, Clone, Copy)]
pub struct ChangedBy<'b> {
    pub actor: &'b Actor,
    pub now: EpochMs,
}

impl ChangedBy<'_> {
    /// Writes to the audit log that an enrolment token was spent, in the transaction of the
    /// enrolment.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn audit_token_spent(
        &self,
        tx: &mut Tx,
        enrollment: &Enrollment,
    ) -> Result<(), StoreError> {
        let details = serde_json::json!({"keyId": enrollment.key_id});
        self.audit(tx, &enrollment.org_id, ("enrollment.spend", &enrollment.id, details)).await
    }

    /// Writes an entry to the audit log.
    async fn audit(
        &self,
        tx: &mut Tx,
        org: &OrgId,
        (action, subject, details): (&str, &str, Value),
    ) -> Result<(), StoreError> {
        let change = AuditChange { org, actor: self.actor, at: self.now, action, subject, details };
        tx.audit(&change).await
    }
}

/// Returns the actor for a change that a gateway makes by proof of its own key.
#[must_use]
pub fn gateway(org: &OrgId, key_id: &KeyId) -> Actor {
    let org = Some(org.clone());
    Actor { kind: ActorKind::Device, id: key_id.to_string(), display: None, org }
}

impl FleetStore {
    #[must_use]
    pub const fn new(database: Database) -> Self {
        Self { database }
    }

    #[must_use]
    pub const fn database(&self) -> &Database {
        &self.database
    }

    /// Begins a transaction that writes.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn begin(&self) -> Result<Tx, StoreError> {
        self.database.begin().await
    }
}

/// Parses a value that is stored as text.
fn read<T: std::str::FromStr<Err: std::fmt::Display>>(
    doing: &'static str,
    text: &str,
) -> Result<T, StoreError> {
    text.parse().map_err(|error: T::Err| StoreError::row(doing, error))
}

fn read_json<T: serde::de::DeserializeOwned>(
    doing: &'static str,
    text: &str,
) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| StoreError::row(doing, error))
}

fn json(value: &impl serde::Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::row("writing JSON", error))
}
