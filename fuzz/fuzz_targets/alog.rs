#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(recording) = roast::alog::read(text) {
        assert!(recording.samples.windows(2).all(|pair| pair[0].t_s < pair[1].t_s));
        assert!(recording.marks.iter().all(|(_, at)| *at < recording.samples.len()));
    }
});
