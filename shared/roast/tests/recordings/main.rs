//! Tests on real roasts: compares detected marks with the marks of people, and checks what must
//! never be detected. Cases whose recordings are not available here are constructed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may break

mod accuracy;
mod charge;
mod curves;
mod drop;
mod first_crack;
mod readings;
mod recorded;

use std::path::{Path, PathBuf};

use roast::machine_model::MachineModel;
use roast::recording::Recording;
use roast::replay::{DetectedRoast, replay};

type Named = (String, Recording);

/// Returns the recorded roasts of one folder, by name. Without recordings it prints a message and
/// returns `None`; in CI it fails.
fn recordings(folder: &str) -> Option<Vec<Named>> {
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
        (name, roast::formats::read(&std::fs::read_to_string(path).unwrap()).unwrap())
    };
    Some(paths.into_iter().map(read).collect())
}

fn named<'r>(all: &'r [Named], part: &str) -> &'r Recording {
    &all.iter().find(|(name, _)| name.contains(part)).unwrap().1
}

fn found(recording: &Recording) -> Option<DetectedRoast> {
    replay(recording, &MachineModel::default()).roast().cloned()
}
