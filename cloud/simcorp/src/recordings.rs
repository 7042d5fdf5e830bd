//! `simcorp roast`: analyzes recordings of roasts on a roaster's own computer, without a server or
//! a database.

mod scoring;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use clap::{Args, Subcommand, ValueEnum};
use contract::EventKind;
use roast::analysis::compare::{Comparison, Spread, compare, consistency};
use roast::analysis::{Analysis, Curve, Marks, analyze};
use roast::cut_score::CutSheet;
use roast::event::{DetectedMark, MarkChange};
use roast::formats::export;
use roast::machine_model::MachineModel;
use roast::plot;
use roast::recording::{FILE_BYTES_MAX, Recording};
use roast::replay::{self, RecordingReplay};
use serde_json::json;

use scoring::score_folder;

use crate::output::Output;
use crate::png;
use crate::workbook;

#[derive(Subcommand)]
pub enum RoastCommand {
    /// Analyze recordings as if live: each event with the time at which it was detected. Several
    /// files are the history of one machine: each is analyzed with what was learned from the events
    /// of the earlier ones
    Analyze {
        /// The recordings, oldest first
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Measure the difference between a roast and a reference roast
    Compare(CompareArgs),
    /// Compare the detected events with the marks in recordings of any supported format. Each folder
    /// in DIR is one machine, unless its files name several. Files that are no recordings are left
    /// out, and named with the reason
    Score {
        /// The folder with the recordings
        dir: PathBuf,
        /// Also cut each recording from 5 s before to 300 s after CHARGE, and in development, and
        /// compare what the rest shows with what the whole recording shows
        #[arg(long)]
        cuts: bool,
    },
    /// Measure how similar several roasts are, such as all of one profile
    Consistency {
        /// The recordings, at least two
        #[arg(required = true, num_args = 2..)]
        files: Vec<PathBuf>,
    },
    /// Convert a recording of any supported format to Artisan's .alog or to .csv, in °C
    Export {
        /// The recording
        file: PathBuf,
        /// Output file, .alog or .csv; an existing file is never overwritten
        #[arg(short, long)]
        to: PathBuf,
    },
    /// Import recordings into the cloud, as past sessions of a machine. A later save of a roast that
    /// was imported before corrects its metadata and events
    Import(ImportArgs),
    /// Draw the curve with its events, phases and forecast
    Plot {
        /// The recording
        file: PathBuf,
        /// Output file, .svg or .png; default: an SVG beside the recording
        #[arg(short, long)]
        to: Option<PathBuf>,
    },
}

#[derive(Args)]
pub struct ImportArgs {
    /// The recordings to import
    #[arg(required = true)]
    pub files: Vec<PathBuf>,
    /// The site of the machine
    #[arg(long)]
    pub site: String,
    /// The machine that made the recordings
    #[arg(long)]
    pub machine: String,
    /// Start time of the one file, as 2026-05-18T19:32:48Z; default: the start in the file, or else
    /// the file's modification time minus the length of its recording
    #[arg(long)]
    pub at: Option<String>,
}

#[derive(Args)]
pub struct CompareArgs {
    /// The recording to compare
    file: PathBuf,
    /// The recording of the reference roast
    reference: PathBuf,
    /// Align both roasts at this event
    #[arg(long, value_enum, default_value = "charge")]
    align: Align,
}

#[derive(Clone, Copy, ValueEnum)]
enum Align {
    Charge,
    Tp,
    Dry,
    Fc,
}

impl Align {
    const fn kind(self) -> EventKind {
        match self {
            Self::Charge => EventKind::Charge,
            Self::Tp => EventKind::Tp,
            Self::Dry => EventKind::DryEnd,
            Self::Fc => EventKind::Fc,
        }
    }
}

pub fn run(command: RoastCommand, output: Output) -> anyhow::Result<()> {
    let as_json = output.is_json();
    match command {
        RoastCommand::Analyze { files } => analyze_files(&files, as_json),
        RoastCommand::Compare(args) => compare_files(&args, as_json),
        RoastCommand::Score { dir, cuts } => {
            score_folder(&dir, cuts.then(CutSheet::default), as_json)
        }
        RoastCommand::Consistency { files } => consistency_of(&files, as_json),
        RoastCommand::Export { file, to } => export_file(&file, &to),
        RoastCommand::Plot { file, to } => draw(&file, to),
        // Needs the services: handled in `main`.
        RoastCommand::Import(_) => Ok(()),
    }
}

/// Reads a recording in any supported format.
///
/// # Errors
/// When the file cannot be read, or is no recording: every command reports the same error.
pub fn read(path: &Path) -> anyhow::Result<Recording> {
    let shown = path.display();
    let size = std::fs::metadata(path).with_context(|| format!("cannot read {shown}"))?.len();
    ensure!(size <= FILE_BYTES_MAX as u64, "{shown} is larger than {FILE_BYTES_MAX} bytes");
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {shown}"))?;
    if workbook::is_workbook(&bytes) {
        return workbook::read(&bytes).with_context(|| format!("{shown}"));
    }
    let recording = roast::formats::read_bytes(&bytes).with_context(|| format!("{shown}"))?;
    // Artisan saves settings and plans in the same format: they have no readings.
    ensure!(recording.has_bean_temperature(), "{shown}: no sample has a bean temperature");
    Ok(recording)
}

/// The analysis of one file, using what was learned from the files before it.
pub struct AnalyzedRecording {
    pub recording: Recording,
    walk: RecordingReplay,
    pub marks: Vec<DetectedMark>,
    analysis: Option<Analysis>,
}

pub fn analyze_next(path: &Path, learned: &mut MachineModel) -> anyhow::Result<AnalyzedRecording> {
    let recording = read(path)?;
    let walk = replay::replay(&recording, learned);
    learned.ahead.clone_from(&walk.ahead);
    learned.learn_from_recording(&recording, &walk);
    let marks = walk.marks_of(&recording);
    // The marks in the file take precedence over detected ones.
    let analysis = analyze(&recording, &Marks::of(&recording, &marks));
    Ok(AnalyzedRecording { recording, walk, marks, analysis })
}

const fn seconds(ms: i64) -> f64 {
    ms as f64 / 1000.0
}

fn analyze_files(files: &[PathBuf], as_json: bool) -> anyhow::Result<()> {
    let mut learned = MachineModel::default();
    for path in files {
        let analyzed = analyze_next(path, &mut learned)?;
        if as_json {
            println!("{}", analysis_json(path, &analyzed));
        } else {
            print(path, &analyzed);
        }
    }
    Ok(())
}

fn analysis_json(path: &Path, analyzed: &AnalyzedRecording) -> serde_json::Value {
    let events = analyzed.marks.iter().map(|mark| {
        json!({
            "type": mark.kind.as_str(),
            "t": seconds(mark.at_ms),
            "known_at": seconds(mark.known_ms),
            "confidence": (mark.confidence * 1000.0).round() / 1000.0,
            "interval": [seconds(mark.from_ms), seconds(mark.to_ms)],
            "method": mark.method.as_str(),
            "btC": mark.bt_c.map(|bt| (bt * 10.0).round() / 10.0),
            "revision": mark.revision,
        })
    });
    json!({
        "file": path.display().to_string(),
        "samples": analyzed.recording.samples.len(),
        "unit": if analyzed.recording.fahrenheit { "F" } else { "C" },
        "events": events.collect::<Vec<_>>(),
        "analysis": analyzed.analysis,
    })
}

#[allow(clippy::cast_possible_truncation)] // seconds of a roast
fn ms(seconds: f64) -> i64 {
    (seconds * 1000.0) as i64
}

fn clock(ms: i64) -> String {
    let sign = if ms < 0 { "-" } else { "" };
    let s = ms.abs() / 1000;
    format!("{sign}{}:{:02}", s / 60, s % 60)
}

fn print(path: &Path, analyzed: &AnalyzedRecording) {
    let unit = if analyzed.recording.fahrenheit { "°F" } else { "°C" };
    println!("{} — {} samples in {unit}", path.display(), analyzed.recording.samples.len());
    println!("  known at  event           at      BT °C  conf  interval          method");
    for change in &analyzed.walk.changes {
        match change {
            MarkChange::Detected(mark) => {
                let again = if mark.revision > 0 { " (again)" } else { "" };
                println!(
                    "  {:>8}  {:<14} {:>6}  {:>6}  {:>3.0}%  {:>6} … {:<6}  {}",
                    clock(mark.known_ms),
                    format!("{}{again}", mark.kind),
                    clock(mark.at_ms),
                    mark.bt_c.map_or_else(|| "—".to_owned(), |bt| format!("{bt:.1}")),
                    mark.confidence * 100.0,
                    clock(mark.from_ms),
                    clock(mark.to_ms),
                    mark.method.as_str(),
                );
            }
            MarkChange::Withdrawn(kind) => {
                println!("            {kind} withdrawn: false detection");
            }
        }
    }
    let Some(a) = &analyzed.analysis else {
        println!("  no roast was found\n");
        return;
    };
    for p in &a.phase_stats {
        println!(
            "  {:<12} {:>6}  {:>5.1} %  {:>6} °C  {:>5} °C/min",
            format!("{:?}", p.phase),
            clock(ms(p.duration_seconds)),
            p.share * 100.0,
            p.bt_delta_c.map_or_else(|| "—".to_owned(), |d| format!("{d:+.1}")),
            p.avg_ror_c_per_min.map_or_else(|| "—".to_owned(), |r| format!("{r:.1}")),
        );
    }
    for warning in &a.warnings {
        println!("  ! {}", warning.message);
    }
    for advice in &a.recommendations {
        println!("  → {}", advice.message);
    }
    println!();
}

fn compare_files(args: &CompareArgs, as_json: bool) -> anyhow::Result<()> {
    let mut sides = Vec::with_capacity(2);
    for path in [&args.file, &args.reference] {
        let analyzed = analyze_next(path, &mut MachineModel::default())?;
        let marks = Marks::of(&analyzed.recording, &analyzed.marks);
        sides.push((Curve::of(&analyzed.recording), marks));
    }
    let kind = args.align.kind();
    let [this, reference] = sides.as_slice() else {
        anyhow::bail!("exactly two roasts can be compared")
    };
    let comparison = compare((&this.0, &this.1), (&reference.0, &reference.1), kind);
    let comparison: Comparison = comparison.with_context(|| {
        format!("the roasts cannot be compared: one has no CHARGE, DROP or {kind}, or they share no time")
    })?;
    if as_json {
        println!("{}", json!(comparison));
        return Ok(());
    }
    let compared_ms = comparison.seconds_compared.saturating_mul(1000);
    println!("aligned on {kind}, {} compared", clock(compared_ms));
    println!(
        "  BT   ±{:.2} °C (root mean square), {:+.2} °C on average",
        comparison.bt_rmse_c, comparison.bt_mean_c
    );
    println!(
        "       at most {:+.1} °C, {} from {kind}",
        comparison.bt_largest_c,
        clock(ms(comparison.bt_largest_at_seconds))
    );
    if let Some(ror) = comparison.ror_rmse_c_per_min {
        println!("  RoR  ±{ror:.2} °C/min");
    }
    println!("  similarity {:.0} of 100", comparison.similarity);
    Ok(())
}

fn consistency_of(files: &[PathBuf], as_json: bool) -> anyhow::Result<()> {
    let mut learned = MachineModel::default();
    let mut roasts = Vec::with_capacity(files.len());
    for path in files {
        let analyzed = analyze_next(path, &mut learned)?;
        match analyze(&analyzed.recording, &Marks::of(&analyzed.recording, &analyzed.marks)) {
            Some(analysis) => roasts.push(analysis),
            None => eprintln!("simcorp: skipped: {}: no roast was found", path.display()),
        }
    }
    let statistics = consistency(&roasts);
    if as_json {
        println!("{}", json!(statistics));
        return Ok(());
    }
    println!("                roasts      mean        ±       min       max");
    let row = |name: &str, spread: Option<Spread>, scale: f64| {
        let Some(s) = spread else { return };
        let [mean, deviation, least, most] =
            [s.mean, s.deviation, s.least, s.most].map(|value| value * scale);
        println!(
            "{name:<14} {:>7} {mean:>9.1} {deviation:>8.1} {least:>9.1} {most:>9.1}",
            s.roasts
        );
    };
    row("TP s", statistics.tp_seconds, 1.0);
    row("first crack s", statistics.fc_seconds, 1.0);
    row("DROP s", statistics.drop_seconds, 1.0);
    row("DROP °C", statistics.drop_bt_c, 1.0);
    row("development %", statistics.development_ratio, 100.0);
    row("weight loss %", statistics.weight_loss_pct, 1.0);
    Ok(())
}

fn export_file(file: &Path, to: &Path) -> anyhow::Result<()> {
    use std::io::Write as _;
    let recording = read(file)?;
    let text = match to.extension().and_then(std::ffi::OsStr::to_str) {
        Some("alog") => export::alog(&recording),
        Some("csv") => export::csv(&recording),
        _ => anyhow::bail!("{}: not .alog or .csv; name a file of either", to.display()),
    };
    let new = std::fs::OpenOptions::new().write(true).create_new(true).open(to);
    let mut new = new.with_context(|| format!("cannot write {}", to.display()))?;
    new.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", to.display()))?;
    println!("{}", to.display());
    Ok(())
}

fn draw(file: &Path, output: Option<PathBuf>) -> anyhow::Result<()> {
    let analyzed = analyze_next(file, &mut MachineModel::default())?;
    let marks = Marks::of(&analyzed.recording, &analyzed.marks);
    // The forecast at first crack, or the last one if the recording has no drop.
    let outlooks = &analyzed.walk.forecasts;
    let outlook = match marks.ms(EventKind::Fc).filter(|_| marks.ms(EventKind::Drop).is_some()) {
        Some(cracked) => outlooks.iter().find(|outlook| outlook.t_ms >= cracked),
        None => outlooks.last(),
    };
    let svg = plot::svg(&analyzed.recording, &marks, outlook);
    let output = output.unwrap_or_else(|| file.with_extension("svg"));
    let drawn = match output.extension().and_then(std::ffi::OsStr::to_str) {
        Some("svg") => svg.into_bytes(),
        Some("png") => png::render(&svg)?,
        _ => anyhow::bail!("{}: not .svg or .png; name a file of either", output.display()),
    };
    std::fs::write(&output, drawn).with_context(|| format!("cannot write {}", output.display()))?;
    println!("{}", output.display());
    Ok(())
}
