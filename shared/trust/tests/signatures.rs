//! Tests that a key's signatures verify, and that changed messages do not.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_wrap,
    clippy::float_cmp
)] // a test may break

use std::os::unix::fs::PermissionsExt as _;

use trust::*;

fn key(algorithm: Algorithm) -> FileKey {
    FileKey::generate("device:gw-1@leipzig".parse().unwrap(), algorithm).unwrap()
}

#[test]
fn both_algorithms_sign_and_verify() {
    for algorithm in [Algorithm::EdDsa, Algorithm::Es256] {
        let key = key(algorithm);
        let bytes = sign_message(&key, CONTENT_FRAME, b"payload".to_vec()).unwrap();
        let signed = SignedMessage::parse(&bytes).unwrap();
        assert_eq!(signed.payload(), b"payload");
        assert_eq!(signed.key_id().as_str(), "device:gw-1@leipzig");
        assert_eq!(signed.content(), CONTENT_FRAME);
        signed.verify(key.public_key()).unwrap();
    }
}

#[test]
fn any_flipped_bit_fails_verification() {
    let key = key(Algorithm::EdDsa);
    let bytes = sign_message(&key, CONTENT_FRAME, b"BT 187.4".to_vec()).unwrap();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << bit;
            let verdict =
                SignedMessage::parse(&changed).and_then(|signed| signed.verify(key.public_key()));
            assert!(verdict.is_err(), "byte {at} bit {bit}");
        }
    }
}

#[test]
fn another_key_or_algorithm_does_not_verify() {
    let bytes = sign_message(&key(Algorithm::EdDsa), CONTENT_FRAME, vec![1]).unwrap();
    let signed = SignedMessage::parse(&bytes).unwrap();
    assert_eq!(signed.verify(key(Algorithm::EdDsa).public_key()), Err(CoseError::Signature));
    assert!(matches!(
        signed.verify(key(Algorithm::Es256).public_key()),
        Err(CoseError::Algorithm { .. })
    ));
}

#[test]
fn verify_many_reports_the_forged_message_by_its_position() {
    let (ours, other) = (key(Algorithm::EdDsa), key(Algorithm::EdDsa));
    let parsed: Vec<SignedMessage> = (0..100_u8)
        .map(|i| {
            let signer = if i == 61 { &other } else { &ours };
            SignedMessage::parse(&sign_message(signer, CONTENT_FRAME, vec![i]).unwrap()).unwrap()
        })
        .collect();
    let questions: Vec<_> = parsed.iter().map(|signed| (signed, ours.public_key())).collect();
    for threads in [1, 2, 7] {
        let answers = verify_many(&questions, threads);
        let wrong: Vec<_> = (0..100).filter(|i| answers[*i].is_err()).collect();
        assert_eq!((answers.len(), wrong), (100, vec![61]));
    }
}

#[test]
fn a_key_file_readable_by_others_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key.pem");
    let id: contract::KeyId = "device:gw-1@leipzig".parse().unwrap();
    for algorithm in [Algorithm::EdDsa, Algorithm::Es256] {
        let made = FileKey::create(&path, id.clone(), algorithm).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let read = FileKey::open(&path, id.clone()).unwrap();
        assert_eq!(read.public_key(), made.public_key());
        assert!(
            FileKey::create(&path, id.clone(), algorithm).is_err(),
            "an existing key must not be overwritten"
        );
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = FileKey::open(&path, id.clone()).err().unwrap().to_string();
        assert!(error.contains("chmod 600"), "{error}");
        std::fs::remove_file(&path).unwrap();
    }
    std::fs::write(&path, "not a key").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert!(matches!(FileKey::open(&path, id), Err(FileKeyError::Format { .. })));
}

#[test]
fn public_keys_round_trip_as_pem() {
    for algorithm in [Algorithm::EdDsa, Algorithm::Es256] {
        let public = key(algorithm).public_key().clone();
        assert_eq!(PublicKey::from_pem(&public.to_pem()), Ok(public));
    }
    assert_eq!(PublicKey::from_pem("x"), Err(KeyError::NotPem));
}

#[test]
fn an_upstream_jws_verifies_only_its_own_payload() {
    use base64::Engine as _;
    let b64 = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
    let (key, kid) = (key(Algorithm::EdDsa), "device:r-1@leipzig");
    let payload = serde_json::json!({"machineId": "r-1", "btC": 187.4});
    let mut claims = payload.clone();
    claims["iat"] = 1000.into();
    claims["exp"] = 1300.into();
    let head = b64(format!(r#"{{"alg":"EdDSA","kid":"{kid}"}}"#).as_bytes());
    let signed = format!("{head}.{}", b64(claims.to_string().as_bytes()));
    let jws = format!("{signed}.{}", b64(&key.sign(signed.as_bytes()).unwrap()));
    let at = contract::EpochMs(1_100_000);
    let check = |kid: &str, payload: &serde_json::Value, at| {
        jws::verify(&jws, kid, key.public_key(), payload, at)
    };
    assert_eq!(check(kid, &payload, at), Ok(()));
    assert_eq!(check("device:r-2@leipzig", &payload, at), Err(jws::JwsError::OtherKey));
    let other = serde_json::json!({"machineId": "r-1", "btC": 200.0});
    assert_eq!(check(kid, &other, at), Err(jws::JwsError::OtherPayload));
    assert_eq!(check(kid, &payload, at.plus_ms(300_000)), Err(jws::JwsError::Expired));
}
