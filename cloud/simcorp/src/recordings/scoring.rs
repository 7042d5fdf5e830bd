//! Scores the detection of events on the recordings of a folder.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use roast::cut_score::{CutSheet, CutTable};
use roast::score::{self, Score, ScoreSheet};
use serde_json::json;

use super::read;

fn recordings_in(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder);
    let entries = entries.with_context(|| format!("cannot read {}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries.filter_map(|e| e.ok().map(|e| e.path())).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "alog" || e == "csv"));
    files.sort();
    Ok(files)
}

/// Prints the accuracy over the recordings in a folder, and over their cuts if `cuts` is a sheet.
pub(super) fn score_folder(
    dir: &Path,
    mut cuts: Option<CutSheet>,
    as_json: bool,
) -> anyhow::Result<()> {
    let mut folders = vec![dir.to_owned()];
    let entries =
        std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut within: Vec<PathBuf> = entries.filter_map(|e| e.ok().map(|e| e.path())).collect();
    within.retain(|path| path.is_dir());
    within.sort();
    folders.extend(within);
    let mut all = ScoreSheet::default();
    let mut scores: Vec<(String, Score)> = Vec::new();
    for folder in folders {
        let mut recordings = Vec::new();
        for path in recordings_in(&folder)? {
            match read(&path) {
                Ok(recording) => recordings.push((path.display().to_string(), recording)),
                Err(error) => eprintln!("simcorp: skipped: {error:#}"),
            }
        }
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
    ensure!(!scores.is_empty(), "no .alog or .csv recordings in {}", dir.display());
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
