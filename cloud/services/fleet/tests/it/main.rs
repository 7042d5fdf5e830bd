//! The registry of gateways on both databases, and the certificate authority.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may break

mod authority;
mod devices;
mod enrollments;
mod gateway_port;
mod recoveries;

use std::sync::LazyLock;

use contract::{Actor, ActorKind, DeviceId, EpochMs, KeyId, MachineId, OrgId, SiteId};
use fleet::FleetStore;
use fleet::device::{Device, NewDevice};
use fleet::store::ChangedBy;
use service_testbed::on_both_databases;
use trust::{Algorithm, FileKey, PublicKey};

static ADA: LazyLock<Actor> = LazyLock::new(|| Actor {
    kind: ActorKind::User,
    id: "ada".to_owned(),
    display: None,
    org: None,
});

fn by(now: EpochMs) -> ChangedBy<'static> {
    ChangedBy { actor: &ADA, now }
}

fn machine(name: &str) -> MachineId {
    MachineId::new(name).unwrap()
}

/// Returns the public key of a new key pair.
fn new_key() -> PublicKey {
    let key_id: KeyId = "device:gw-1@leipzig".parse().unwrap();
    FileKey::generate(key_id, Algorithm::EdDsa).unwrap().public_key().clone()
}

/// A gateway that no store knows yet.
struct Gateway {
    org: OrgId,
    site: SiteId,
    key_id: KeyId,
    machines: Vec<MachineId>,
}

impl Gateway {
    /// Creates the gateway `name` of the machine `r-1`. Each check has its own organisation.
    fn new(org: &str, name: &str) -> Self {
        let site = SiteId::new("leipzig").unwrap();
        let key_id = KeyId::new(&DeviceId::new(name).unwrap(), &site);
        Self { org: OrgId::new(org).unwrap(), site, key_id, machines: vec![machine("r-1")] }
    }

    /// Returns its registration by hand with a key.
    fn with<'n>(&'n self, public: &'n PublicKey) -> NewDevice<'n> {
        NewDevice {
            org: &self.org,
            key_id: &self.key_id,
            site: &self.site,
            machines: &self.machines,
            public,
            enrols: false,
            replaces: false,
            compromised: false,
        }
    }

    /// Returns its registration when it enrols with a key.
    fn enrolling<'n>(&'n self, public: &'n PublicKey) -> NewDevice<'n> {
        NewDevice { enrols: true, ..self.with(public) }
    }

    async fn stored(&self, store: &FleetStore) -> Option<Device> {
        store.device(&self.org, self.key_id.as_str()).await.unwrap()
    }

    /// Returns the actions in the audit log of its organisation, oldest first.
    async fn audited(&self, store: &FleetStore) -> Vec<String> {
        let log = store.database().audit_log(&self.org, 0, 100).await.unwrap();
        log.into_iter().map(|entry| entry.action).collect()
    }
}

on_both_databases!(
    fleet::FleetStore::new;
    devices::a_key_is_registered_once_and_its_machines_are_replaced,
    devices::another_key_is_refused_unless_it_replaces_the_first,
    devices::a_compromised_key_verifies_nothing,
    devices::a_revoked_gateway_stays_revoked,
    devices::another_organisation_finds_nothing,
    devices::a_change_is_later_than_every_change_before_it,
    devices::certificates_are_listed_newest_first_and_counted_since_a_time,
    enrollments::a_token_enrols_one_key,
    enrollments::a_token_is_spent_when_its_transaction_is_committed,
    enrollments::an_expired_a_withdrawn_and_an_unknown_token_are_refused,
    enrollments::enrolments_are_listed_newest_first_in_pages,
    recoveries::a_gateway_waits_for_a_person_and_may_use_the_approval_for_a_day,
    recoveries::a_refusal_holds_for_a_week_and_may_be_changed,
    recoveries::an_approval_is_for_one_key,
);
