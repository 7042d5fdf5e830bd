#![no_main]
//! Any file that is opened as a recording.

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(recording) = roast::formats::read(text) {
        assert!(recording.marks.iter().all(|(_, at)| *at < recording.samples.len()));
    }
});
