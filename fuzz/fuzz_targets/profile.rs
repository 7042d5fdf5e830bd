#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(profile) = firmware_profiles::parse(text) {
        for finding in firmware_profiles::lint(&profile) {
            assert!(!finding.message.is_empty());
        }
        for channel in &profile.channels {
            let _ = channel.value(channel.raw(200.0));
        }
    }
});
