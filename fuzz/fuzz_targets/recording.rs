#![no_main]
//! Any file that somebody calls a recording.

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(recording) = roast::recording::Recording::read(text) {
        assert!(recording.marks.iter().all(|(_, at)| *at < recording.samples.len()));
    }
});
