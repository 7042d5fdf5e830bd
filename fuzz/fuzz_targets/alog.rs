#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(recording) = roast::formats::alog::read(text) {
        assert!(recording.samples.windows(2).all(|pair| pair[0].t_ms < pair[1].t_ms));
        assert!(recording.marks.iter().all(|(_, at)| *at < recording.samples.len()));
    }
});
