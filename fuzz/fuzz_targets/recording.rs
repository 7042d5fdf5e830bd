#![no_main]
//! Any file that is opened as a recording, in any encoding, and what is written of it again.

use roast::formats::{export, read, read_bytes};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(recording) = read_bytes(bytes) {
        assert!(recording.samples.windows(2).all(|pair| pair[0].t_ms < pair[1].t_ms));
        assert!(recording.marks.iter().all(|(_, at)| *at < recording.samples.len()));
        let written = read(&export::alog(&recording));
        assert!(written.is_ok_and(|again| again.samples.len() <= recording.samples.len()));
    }
});
