//! Scores the detection of events on the recordings of a folder.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use roast::cut_score::{CutSheet, CutTable};
use roast::formats::KNOWN_FORMATS;
use roast::recording::Recording;
use roast::score::{self, Score, ScoreSheet};
use serde_json::json;

use super::read;

/// Returns the paths in a folder, sorted.
fn paths_in(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let context = || format!("cannot read {}", folder.display());
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(context)? {
        paths.push(entry.with_context(context)?.path());
    }
    paths.sort();
    Ok(paths)
}

/// Reads the recordings in a folder, in every format that `roast analyze` reads. What is no recording
/// is left out, and named on standard error with the reason.
fn recordings_in(folder: &Path) -> anyhow::Result<Vec<(String, Recording)>> {
    let mut recordings = Vec::new();
    for path in paths_in(folder)? {
        if path.is_dir() {
            continue;
        }
        let shown = path.display().to_string();
        if !path.is_file() {
            eprintln!("simcorp: skipped: {shown}: not a file");
            continue;
        }
        match read(&path) {
            Ok(recording) => recordings.push((shown, recording)),
            Err(error) => eprintln!("simcorp: skipped: {error:#}"),
        }
    }
    Ok(recordings)
}

/// Prints the accuracy over the recordings in a folder, and over their cuts if `cuts` is a sheet.
pub(super) fn score_folder(
    dir: &Path,
    mut cuts: Option<CutSheet>,
    as_json: bool,
) -> anyhow::Result<()> {
    let mut folders = vec![dir.to_owned()];
    folders.extend(paths_in(dir)?.into_iter().filter(|path| path.is_dir()));
    let mut all = ScoreSheet::default();
    let mut scores: Vec<(String, Score)> = Vec::new();
    for folder in folders {
        let recordings = recordings_in(&folder)?;
        if recordings.is_empty() {
            continue;
        }
        // A folder is one machine, unless its files name several.
        let machines: BTreeSet<&str> = recordings.iter().map(|(_, r)| r.machine.as_str()).collect();
        let mut sheet = ScoreSheet::default();
        for machine in machines {
            let of = recordings
                .iter()
                .filter(|(_, recording)| recording.machine == machine)
                .map(|(name, recording)| (name.as_str(), recording));
            sheet.add_machine(of.clone());
            if let Some(cuts) = &mut cuts {
                cuts.add_machine(of);
            }
        }
        all.add(&sheet);
        let name = folder.file_name().map_or_else(|| ".".into(), std::ffi::OsStr::to_string_lossy);
        scores.push((name.into_owned(), sheet.score()));
    }
    ensure!(
        !scores.is_empty(),
        "no recordings in {}; the known formats are {KNOWN_FORMATS}",
        dir.display()
    );
    if as_json {
        let machines: serde_json::Map<_, _> =
            scores.into_iter().map(|(name, score)| (name, json!(score))).collect();
        let mut scored = json!({"machines": machines, "all": all.score()});
        if let Some(cuts) = cuts {
            scored["cuts"] = json!(cuts.tables());
        }
        println!("{scored}");
        return Ok(());
    }
    scores.push(("all".to_owned(), all.score()));
    print_scores(&scores);
    if let Some(cuts) = cuts {
        print_cuts(&cuts.tables());
    }
    Ok(())
}

fn print_cuts(tables: &[CutTable]) {
    println!("\ncut at          found again       ≤10 s      ≤30 s  missed");
    for t in tables {
        println!(
            "{:<15} {:<12} {:>5}/{:<5} {:>5}/{:<5} {:>5}",
            t.cut, t.kind, t.within_10_s, t.marks, t.within_30_s, t.marks, t.missed
        );
    }
}

/// Prints how many marks lie in the 90 % intervals of each method.
fn print_methods(all: &Score) {
    println!("\nin interval, by method");
    for kind in score::KINDS {
        let Some(table) = all.marks.get(kind.as_str()) else { continue };
        for (method, t) in &table.methods {
            println!("{:<9} {:<14} {:>4}/{:<4}", kind.as_str(), method, t.covered, t.marks);
        }
    }
}

fn print_scores(scores: &[(String, Score)]) {
    println!(
        "detected vs. marked, s        ≤10 s      ≤30 s  missed  median     p10     p90  in interval"
    );
    for kind in score::KINDS {
        for (name, score) in scores {
            let Some(t) = score.marks.get(kind.as_str()).filter(|t| t.marks > 0) else { continue };
            println!(
                "{:<9} {:<14} {:>4}/{:<4} {:>4}/{:<4} {:>6} {:>7.1} {:>7.1} {:>7.1}  {:>4}/{:<4}",
                kind.as_str(),
                name,
                t.within_10_s,
                t.marks,
                t.within_30_s,
                t.marks,
                t.missed,
                t.median_s,
                t.p10_s,
                t.p90_s,
                t.covered,
                t.marks,
            );
        }
    }
    if let Some((_, all)) = scores.last() {
        print_methods(all);
    }
    println!(
        "\nBT 60 s ahead            points   mean error °C    p90 error °C   in interval   ± °C"
    );
    for (name, score) in scores {
        let f = &score.forecast;
        if f.points > 0 {
            println!(
                "          {name:<14} {:>6}   {:>13.2}   {:>13.2}   {:>9.1} %   {:>4.1}",
                f.points,
                f.mae_c,
                f.p90_c,
                100.0 * f.covered as f64 / f.points as f64,
                f.half_c,
            );
        }
    }
    for (name, score) in scores {
        println!(
            "{name}: {} recordings, {} false charges, {} phantom drops",
            score.recordings, score.false_charges, score.phantom_drops
        );
    }
}
