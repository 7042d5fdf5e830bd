#![no_main]
//! Any file that is opened as a recording, in any encoding, and what is written of it again.

use roast::formats::{export, read, read_bytes};

/// Checks that a text is the same recording, or the same error, in each encoding.
fn read_encoded(text: &str) {
    let expected = format!("{:?}", read(text));
    let little = "\u{feff}".encode_utf16().chain(text.encode_utf16()).flat_map(u16::to_le_bytes);
    let big = "\u{feff}".encode_utf16().chain(text.encode_utf16()).flat_map(u16::to_be_bytes);
    let marked = ["\u{feff}", text].concat().into_bytes();
    for bytes in [marked, little.collect(), big.collect()] {
        assert_eq!(format!("{:?}", read_bytes(&bytes)), expected, "{text:?}");
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(recording) = read_bytes(bytes) {
        assert!(recording.samples.windows(2).all(|pair| pair[0].t_ms < pair[1].t_ms));
        assert!(recording.marks.iter().all(|(_, at)| *at < recording.samples.len()));
        let written = read(&export::alog(&recording));
        assert!(written.is_ok_and(|again| again.samples.len() <= recording.samples.len()));
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        read_encoded(text);
    }
});
