//! The agent's configuration file, and settings of the command line in the lines after a line `---`.
#![no_main]
use std::fs;

use simcorp_edge::fuzzing::read_config;
use tempfile::tempdir;

/// What is printed in place of a secret.
const MASK: &str = "***";

libfuzzer_sys::fuzz_target!(|text: &str| {
    // A path of the input must not name a device, which may have no end.
    if text.contains("/dev") || text.contains("/proc") {
        return;
    }
    let folder = tempdir().unwrap();
    let (file, settings) = text.split_once("\n---\n").unwrap_or((text, ""));
    let path = folder.path().join("edge.toml");
    fs::write(&path, file).unwrap();
    match read_config(&path, settings.lines().map(str::to_owned).collect()) {
        Ok(printed) => {
            assert!(printed.contains("[identity]"), "{printed}");
            if printed.contains(MASK) {
                return;
            }
            fs::write(&path, &printed).unwrap();
            assert_eq!(read_config(&path, Vec::new()).unwrap(), printed);
        }
        Err(error) => {
            assert!(error.0.iter().all(|mistake| !mistake.problem.is_empty()), "{error}");
        }
    }
});
