//! `simcorp-bench roast`: measures how long the analysis of a roast takes.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use roast::analysis::{Marks, analyze};
use roast::event::Tracker;
use roast::forecast::Forecaster;
use roast::machine_model::MachineModel;
use roast::recording::Recording;
use roast::replay;
use roast::sample::Sample;
use roast::twin::{PRESETS, Twin};
use serde_json::{Value, json};

use crate::stats;

#[derive(clap::Args)]
pub struct Options {
    /// Roasts to analyse
    #[arg(long, default_value_t = 500)]
    roasts: u32,
}

/// A quarter of an hour at 1 Hz.
const SECONDS: i64 = 900;

fn recording(seed: u64) -> Recording {
    let mut twin = Twin::new(PRESETS[0], seed, 60_000);
    let sample = |s: i64| {
        twin.advance(1_000);
        twin.reading().sample(s * 1000)
    };
    Recording { samples: (0..SECONDS).map(sample).collect(), ..Recording::default() }
}

#[allow(clippy::disallowed_methods)] // a measurement reads the clock
pub fn run(options: &Options) -> anyhow::Result<Value> {
    ensure!((10..=100_000).contains(&options.roasts), "--roasts: not between 10 and 100000");
    let learned = MachineModel::default();
    let recordings: Vec<Recording> = (0..8).map(recording).collect();
    let mut whole = Vec::new();
    let mut copies = Vec::new();
    for recording in recordings.iter().cycle().take(options.roasts as usize) {
        let start = Instant::now();
        let walk = replay::replay(recording, &learned);
        let found = walk.roast().context("the simulated roast was not found")?;
        let analysis = analyze(recording, &Marks::detected(&found.marks));
        whole.push(start.elapsed().as_secs_f64() * 1000.0);
        ensure!(analysis.is_some_and(|a| a.drop_seconds.is_some()), "the analysis found no DROP");
        // The baseline: the same samples written as JSON and read back, which every service does
        // with them at least once.
        let start = Instant::now();
        let text = serde_json::to_string(&recording.samples)?;
        let back: Vec<Sample> = serde_json::from_str(&text)?;
        copies.push(start.elapsed().as_secs_f64() * 1000.0);
        ensure!(back.len() == recording.samples.len(), "JSON lost samples");
    }
    let mut steps = Vec::new();
    for recording in &recordings {
        let mut tracker = Tracker::new(learned.clone());
        let mut forecaster = Forecaster::new(learned.ahead.clone());
        for sample in &recording.samples {
            let start = Instant::now();
            let changes = tracker.push(sample);
            forecaster.push(sample, &tracker);
            let outlook = forecaster.forecast(&tracker, &learned);
            steps.push(start.elapsed().as_secs_f64() * 1e6);
            std::hint::black_box((changes, outlook));
        }
    }
    let median =
        |values: &[f64]| stats::percentiles(values.to_vec())["p50"].as_f64().unwrap_or(0.0);
    let (analysis, copy) = (median(&whole), median(&copies));
    Ok(json!({
        "samples_a_roast": SECONDS,
        "analysis_ms": stats::percentiles(whole),
        "live_step_us": stats::percentiles(steps),
        "json_round_trip_ms": copy,
        "ratio_to_json": (analysis / copy * 100.0).round() / 100.0,
    }))
}
