//! The certificate authority, with its certificate and key in files.

use std::path::Path;

use contract::OrgId;
use fleet::FleetConfig;
use fleet::authority::{CaError, CaPaths, CertificateAuthority};
use service_testbed::NOW;
use trust::x509::Certificate;

use crate::{Gateway, new_key};

fn paths(folder: &Path) -> CaPaths {
    CaPaths::of(&FleetConfig::default(), folder)
}

#[test]
fn an_authority_is_created_once_and_opened_again() {
    let folder = tempfile::tempdir().unwrap();
    let paths = paths(folder.path());
    let created = CertificateAuthority::create(&paths, NOW).unwrap();
    let opened = CertificateAuthority::open(&paths).unwrap();
    assert_eq!(opened.certificate().fingerprint(), created.certificate().fingerprint());
    assert_eq!(opened.pem(), created.pem());
    assert_eq!(opened.certificate().not_after, NOW.plus_ms(3_650 * 86_400_000));
    let again = CertificateAuthority::create(&paths, NOW);
    assert!(matches!(again, Err(CaError::Exists { .. })));
    assert_eq!(std::fs::read_to_string(&paths.certificate).unwrap(), created.pem());
}

#[test]
fn a_certificate_with_another_key_is_refused() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for folder in [&one, &two] {
        CertificateAuthority::create(&paths(folder.path()), NOW).unwrap();
    }
    let mut config = FleetConfig::default();
    config.authority.cert_file = Some(one.path().join("authority.pem"));
    config.authority.key_file = Some(two.path().join("authority.key"));
    let opened = CertificateAuthority::open(&CaPaths::of(&config, one.path()));
    assert!(matches!(opened, Err(CaError::OtherKey)));
}

#[test]
fn a_gateway_s_certificate_has_its_key_its_name_and_its_lifetime() {
    let folder = tempfile::tempdir().unwrap();
    let authority = CertificateAuthority::create(&paths(folder.path()), NOW).unwrap();
    let (gateway, key) = (Gateway::new("acme", "gw-1"), new_key());
    let issue = |life_s: u32| -> Certificate {
        let subject = (&gateway.org, &gateway.key_id, "gw-0123");
        authority.issue_gateway_certificate(subject, &key, life_s, NOW).unwrap()
    };
    let (first, second) = (issue(86_400), issue(20));
    assert_eq!((first.common_name.as_str(), &first.public_key), ("gw-0123", &key));
    // A gateway's clock may be behind by an hour, or by a tenth of a short lifetime.
    let hour_before = NOW.plus_ms(-3_600_000);
    assert_eq!((first.not_before, first.not_after), (hour_before, NOW.plus_ms(86_400_000)));
    let short = (NOW.plus_ms(-2_000), NOW.plus_ms(20_000));
    assert_eq!((second.not_before, second.not_after), short);
    assert_ne!(first.serial, second.serial);
}

#[test]
fn each_key_of_each_gateway_has_its_own_name() {
    let gateway = Gateway::new("acme", "gw-1");
    let rival = OrgId::new("rival").unwrap();
    let name = fleet::device::certificate_name;
    let first = name(&gateway.org, &gateway.key_id, 1);
    assert_eq!((first.len(), first.starts_with("gw-")), (33, true));
    assert_eq!(first, name(&gateway.org, &gateway.key_id, 1));
    assert_ne!(first, name(&gateway.org, &gateway.key_id, 2));
    assert_ne!(first, name(&rival, &gateway.key_id, 1));
}
