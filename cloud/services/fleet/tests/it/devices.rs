//! Gateways, their keys and their certificates.

use contract::OrgId;
use fleet::authority::{CaPaths, CertificateAuthority};
use fleet::device::{NewDevice, OLD_KEY_ACCEPTED_MS, RegisterOutcome, certificate_name};
use fleet::store::NewCertificate;
use fleet::{FleetConfig, FleetStore};
use service_testbed::NOW;

use crate::{Gateway, by, machine, new_key};

pub async fn a_key_is_registered_once_and_its_machines_are_replaced(store: &FleetStore) {
    let (gateway, key) = (Gateway::new("once", "gw-1"), new_key());
    let first = store.register(&gateway.with(&key), by(NOW)).await.unwrap();
    assert_eq!(first, RegisterOutcome::Accepted(1));
    let more = [machine("r-1"), machine("r-2")];
    let again = NewDevice { machines: &more, ..gateway.with(&key) };
    let again = store.register(&again, by(NOW.plus_ms(5))).await.unwrap();
    assert_eq!(again, RegisterOutcome::Accepted(1));

    let device = gateway.stored(store).await.unwrap();
    assert_eq!(device.machines, more);
    assert_eq!((device.key_number, device.created_at, device.revoked_at), (1, NOW, None));
    assert_eq!(device.certificate_name, None, "it was registered by hand");
    let keys = store.keys(&gateway.org, &gateway.key_id).await.unwrap();
    assert_eq!(keys.len(), 1);
    assert_eq!((keys[0].number, keys[0].algorithm, keys[0].added_at), (1, "EdDSA", NOW));
    assert_eq!((&keys[0].public_key, keys[0].retired_at), (&key.to_pem(), None));
    let actions = ["key.add", "device.register", "device.register"];
    assert_eq!(gateway.audited(store).await, actions);
}

pub async fn another_key_is_refused_unless_it_replaces_the_first(store: &FleetStore) {
    let (gateway, first, second) = (Gateway::new("replaces", "gw-1"), new_key(), new_key());
    store.register(&gateway.with(&first), by(NOW)).await.unwrap();
    let refused = store.register(&gateway.with(&second), by(NOW)).await.unwrap();
    assert_eq!(refused, RegisterOutcome::OtherKey);
    let current = async || store.current_key(&gateway.org, &gateway.key_id).await.unwrap();
    assert_eq!(current().await, Some((1, first.clone())));

    let later = NOW.plus_ms(1_000);
    let replacing = NewDevice { replaces: true, ..gateway.enrolling(&second) };
    let replaced = store.register(&replacing, by(later)).await.unwrap();
    assert_eq!(replaced, RegisterOutcome::Accepted(2));
    assert_eq!(current().await, Some((2, second.clone())));
    let keys = store.keys(&gateway.org, &gateway.key_id).await.unwrap();
    assert_eq!(keys[0].retired_at, Some(later));
    assert_eq!(keys[0].believed_until, Some(later.plus_ms(OLD_KEY_ACCEPTED_MS)));
    let name = certificate_name(&gateway.org, &gateway.key_id, 2);
    let found = store.device_by_certificate_name(&name).await.unwrap().unwrap();
    assert_eq!((found.org_id, found.key_id), (gateway.org.clone(), gateway.key_id.clone()));

    // A key that was replaced never comes back.
    let back = NewDevice { replaces: true, ..gateway.with(&first) };
    assert_eq!(store.register(&back, by(later)).await.unwrap(), RegisterOutcome::OtherKey);
    assert_eq!(current().await, Some((2, second)));
}

pub async fn a_compromised_key_verifies_nothing(store: &FleetStore) {
    let (gateway, first, second) = (Gateway::new("compromised", "gw-1"), new_key(), new_key());
    store.register(&gateway.with(&first), by(NOW)).await.unwrap();
    let later = NOW.plus_ms(1_000);
    let replacing = NewDevice { replaces: true, compromised: true, ..gateway.with(&second) };
    store.register(&replacing, by(later)).await.unwrap();
    let keys = store.keys(&gateway.org, &gateway.key_id).await.unwrap();
    assert_eq!((keys[0].retired_at, keys[0].believed_until), (Some(later), Some(later)));
    assert_eq!((keys[1].number, keys[1].retired_at, keys[1].believed_until), (2, None, None));
}

pub async fn a_revoked_gateway_stays_revoked(store: &FleetStore) {
    let (gateway, key) = (Gateway::new("revoked", "gw-1"), new_key());
    let (org, id) = (&gateway.org, gateway.key_id.as_str());
    assert!(!store.revoke(org, id, by(NOW)).await.unwrap(), "there is no such gateway");
    store.register(&gateway.with(&key), by(NOW)).await.unwrap();
    let later = NOW.plus_ms(1_000);
    assert!(store.revoke(org, id, by(later)).await.unwrap());
    assert!(!store.revoke(org, id, by(later.plus_ms(1))).await.unwrap());

    let replacing = NewDevice { replaces: true, ..gateway.with(&key) };
    for new in [gateway.with(&key), replacing] {
        assert_eq!(store.register(&new, by(later)).await.unwrap(), RegisterOutcome::Revoked);
    }
    assert!(!store.set_machines(org, id, &[machine("r-9")], by(later)).await.unwrap());
    let device = gateway.stored(store).await.unwrap();
    assert_eq!((device.revoked_at, device.machines), (Some(later), gateway.machines.clone()));
    assert_eq!(gateway.audited(store).await, ["key.add", "device.register", "device.revoke"]);
}

pub async fn another_organisation_finds_nothing(store: &FleetStore) {
    let (gateway, key) = (Gateway::new("owner", "gw-1"), new_key());
    store.register(&gateway.with(&key), by(NOW)).await.unwrap();
    let (rival, id) = (OrgId::new("rival").unwrap(), gateway.key_id.as_str());
    assert_eq!(store.device(&rival, id).await.unwrap(), None);
    assert_eq!(store.devices(&rival, "", 10).await.unwrap(), []);
    assert_eq!(store.keys(&rival, &gateway.key_id).await.unwrap(), []);
    assert_eq!(store.current_key(&rival, &gateway.key_id).await.unwrap(), None);
    assert!(!store.set_machines(&rival, id, &[machine("r-9")], by(NOW)).await.unwrap());
    assert!(!store.revoke(&rival, id, by(NOW)).await.unwrap());
    assert!(store.is_real(&gateway.org, "leipzig", "r-1").await.unwrap());
    assert!(!store.is_real(&rival, "leipzig", "r-1").await.unwrap());
    let device = gateway.stored(store).await.unwrap();
    assert_eq!((device.revoked_at, device.machines), (None, gateway.machines.clone()));

    // The same name is another gateway there, with a key of its own.
    let other = Gateway { org: rival, ..Gateway::new("owner", "gw-1") };
    let registered = store.register(&other.with(&new_key()), by(NOW)).await.unwrap();
    assert_eq!(registered, RegisterOutcome::Accepted(1));
    let current = store.current_key(&gateway.org, &gateway.key_id).await.unwrap();
    assert_eq!(current, Some((1, key)));
}

pub async fn a_change_is_later_than_every_change_before_it(store: &FleetStore) {
    let (first, second) = (Gateway::new("changes", "gw-1"), Gateway::new("changes", "gw-2"));
    let (one, two) = (new_key(), new_key());
    store.register(&first.enrolling(&one), by(NOW)).await.unwrap();
    // The clock of the other instance is behind.
    store.register(&second.enrolling(&two), by(NOW.plus_ms(-60_000))).await.unwrap();
    let changes = async || {
        let all = store.changed_since(0).await.unwrap();
        let own = all.into_iter().filter(|(device, _)| device.org_id == first.org);
        own.map(|(device, changed)| (device.key_id, changed)).collect::<Vec<_>>()
    };
    let before = changes().await;
    let at = before[0].1;
    assert_eq!(before, [(first.key_id.clone(), at), (second.key_id.clone(), at + 1)]);
    assert!(store.revoke(&second.org, second.key_id.as_str(), by(NOW)).await.unwrap());
    let revoked_first = [(second.key_id.clone(), at + 2), (first.key_id.clone(), at)];
    assert_eq!(changes().await, revoked_first);
    assert_eq!(store.changed_since(at + 3).await.unwrap(), []);
}

pub async fn certificates_are_listed_newest_first_and_counted_since_a_time(store: &FleetStore) {
    let (gateway, key, folder) =
        (Gateway::new("certified", "gw-1"), new_key(), tempfile::tempdir().unwrap());
    let paths = CaPaths::of(&FleetConfig::default(), folder.path());
    let authority = CertificateAuthority::create(&paths, NOW).unwrap();
    let name = certificate_name(&gateway.org, &gateway.key_id, 1);
    let mut serials = Vec::new();
    for (minutes, why) in [(0, "enrolled"), (10, "renewed")] {
        let now = NOW.plus_ms(minutes * 60_000);
        let subject = (&gateway.org, &gateway.key_id, name.as_str());
        let certificate = authority.issue_gateway_certificate(subject, &key, 86_400, now).unwrap();
        let new = NewCertificate {
            org: &gateway.org,
            key_id: &gateway.key_id,
            key_number: 1,
            why,
            certificate: &certificate,
        };
        let mut tx = store.begin().await.unwrap();
        FleetStore::add_certificate(&mut tx, new, by(now)).await.unwrap();
        tx.commit().await.unwrap();
        serials.push(certificate.serial);
    }
    let stored = store.certificates(&gateway.org, &gateway.key_id).await.unwrap();
    let listed: Vec<_> = stored.iter().map(|c| (c.serial.as_str(), c.why.as_str())).collect();
    assert_eq!(listed, [(serials[1].as_str(), "renewed"), (serials[0].as_str(), "enrolled")]);
    assert_eq!(stored[1].not_after, NOW.plus_ms(86_400_000));
    let since = async |ms: i64| {
        store.issued_since(&gateway.org, &gateway.key_id, NOW.plus_ms(ms)).await.unwrap()
    };
    assert_eq!((since(-1).await, since(0).await, since(600_000).await), (2, 1, 0));
    assert_eq!(gateway.audited(store).await, ["certificate.issue", "certificate.issue"]);
}
