#![no_main]
//! What a signer is asked to sign, and how it is asked.

use trust::{PublicKey, Purpose};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let kid = "device:gw@leipzig".parse().unwrap();
    let _ = Purpose::of(bytes, &kid, &PublicKey::Ed25519([7; 32]));
    let _ = trust::socket::read_request(&mut &bytes[..]);
});
