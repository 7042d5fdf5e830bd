//! `simcorp-bench`: starts what it measures, counts every row, and prints one JSON object. It is
//! the source of every figure we claim.

mod edge;
mod ingest;
mod limit;
mod lists;
mod load;
mod queue;
mod roasting;
mod stats;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "simcorp-bench",
    version,
    about = "Measures ingestion, the agent and the analysis"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print one JSON object and nothing else
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Signed frames of many machines, through a broker, into a database, acknowledged
    Ingest(ingest::Options),
    /// The agent: size, memory, start, jitter, drain, flash
    Edge(edge::Options),
    /// The mission queue: claims and completions, and lists with many behind them
    Queue(queue::Options),
    /// Every list of the API, with a million rows behind it
    Lists(lists::Options),
    /// Understanding a roast: whole, and one sample at a time
    Roast(roasting::Options),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| {
            runtime.block_on(async {
                match &cli.command {
                    Command::Ingest(options) => ingest::run(options, cli.json).await,
                    Command::Edge(options) => edge::run(options).await,
                    Command::Queue(options) => queue::run(options).await,
                    Command::Lists(options) => lists::run(options).await,
                    Command::Roast(options) => roasting::run(options),
                }
            })
        });
    match result {
        Ok(report) => {
            println!("{}", if cli.json { report.to_string() } else { format!("{report:#}") });
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("simcorp-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
