//! The permissions of gateways: those that the registry grants, and those that the broker has.

use std::collections::{BTreeMap, BTreeSet};

use contract::Origin;
use contract::topic::TopicKind;
use serde_json::{Value, json};

use super::OLD_KEYS_REMOVED;
use crate::device::{Device, certificate_name};

/// The roles and clients that the broker has.
#[derive(Default)]
pub(super) struct BrokerSnapshot {
    pub(super) roles: BTreeMap<String, BTreeSet<AclEntry>>,
    /// By user name: the client's roles, and whether the client is disabled.
    pub(super) clients: BTreeMap<String, (Vec<String>, bool)>,
}

impl BrokerSnapshot {
    /// Returns whether the broker's list differs from the registry for this gateway.
    pub(super) fn differs(&self, device: &Device) -> bool {
        let Some(name) = device.certificate_name.as_deref() else { return false };
        let before = (1..device.key_number).rev().take(OLD_KEYS_REMOVED);
        let mut before = before.map(|n| certificate_name(&device.org_id, &device.key_id, n));
        if before.any(|name| self.clients.contains_key(&name)) {
            return true;
        }
        if device.revoked_at.is_some() {
            return self.clients.contains_key(name) || self.roles.contains_key(name);
        }
        self.roles.get(name) != Some(&acl_entries(device))
            || self.clients.get(name) != Some(&(vec![name.to_owned()], false))
    }
}

/// One permission of a gateway: an ACL type and a topic.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct AclEntry {
    acl: String,
    topic: String,
}

impl AclEntry {
    pub(super) fn json(&self) -> Value {
        json!({"acltype": self.acl, "topic": self.topic, "allow": true})
    }

    /// Reads an ACL entry. Returns `None` for an entry that denies; this service never writes one.
    pub(super) fn read(acl: &Value) -> Option<Self> {
        let text = |name: &str| Some(acl[name].as_str()?.to_owned());
        let right = Self { acl: text("acltype")?, topic: text("topic")? };
        (acl["allow"] == true).then_some(right)
    }
}

/// Returns a gateway's permissions: to publish for its machines, and to receive the
/// acknowledgements for them.
pub(super) fn acl_entries(device: &Device) -> BTreeSet<AclEntry> {
    /// The topics on which a gateway may publish for each of its machines.
    const PUBLISHED_TOPICS: [TopicKind; 5] = [
        TopicKind::LiveFrame,
        TopicKind::BacklogFrame,
        TopicKind::Receipt,
        TopicKind::Telemetry,
        TopicKind::Events,
    ];
    let mut rights = BTreeSet::new();
    for machine in &device.machines {
        let origin = Origin {
            org: device.org_id.clone(),
            site: device.site_id.clone(),
            machine: machine.clone(),
        };
        let mut may = |acl: &str, kind: TopicKind| {
            rights.insert(AclEntry { acl: acl.to_owned(), topic: kind.topic(&origin) });
        };
        for kind in PUBLISHED_TOPICS {
            may("publishClientSend", kind);
        }
        may("subscribeLiteral", TopicKind::Ack);
        may("publishClientReceive", TopicKind::Ack);
    }
    rights
}
