#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(signed) = trust::Signed::parse(bytes) {
        // Nobody knows this key's private half, so nothing verifies.
        assert!(signed.verify(&trust::PublicKey::Ed25519([7; 32])).is_err());
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = trust::PublicKey::from_pem(text);
    }
});
