//! Real roasts: what is found in them against their marks.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may break

use std::path::{Path, PathBuf};

use roast::recording::Recording;
use roast::score::Sheet;

/// The recorded roasts of one folder, by name; `None` (and a word about it) where there are none.
fn recordings(folder: &str) -> Option<Vec<(String, Recording)>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/roasts").join(folder);
    let Ok(entries) = std::fs::read_dir(&root) else {
        assert!(std::env::var_os("CI").is_none(), "no recordings in {}", root.display());
        println!("skipped: no recordings");
        return None;
    };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "alog" || e == "csv"));
    paths.sort();
    let read = |path: PathBuf| {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let recording = Recording::read(&std::fs::read_to_string(path).unwrap()).unwrap();
        (name, recording)
    };
    Some(paths.into_iter().map(read).collect())
}

#[test]
fn tables() {
    for folder in ["skywalker", "hottop"] {
        let Some(all) = recordings(folder) else { return };
        let mut sheet = Sheet::default();
        sheet.machine(all.iter().map(|(name, recording)| (name.as_str(), recording)));
        for miss in &sheet.misses {
            if miss.error_s.is_none_or(|e| e.abs() > 10.0) {
                println!("{} {} {:?} {}", miss.recording, miss.kind, miss.error_s, miss.covered);
            }
        }
        println!("{folder} {:#?}", sheet.score());
    }
}
