//! `simcorp-bench`: starts the programs that it measures, counts every row, and prints one JSON
//! object. Every performance figure that we publish comes from it.

mod attack;
mod copy_baseline;
mod edge;
mod ingest;
mod lists;
mod load;
mod queue;
mod roasting;
mod stats;
mod system;

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
    /// Print the result as one line of JSON and nothing else
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Measure ingestion: signed frames of many machines, through a broker into a database,
    /// until they are acknowledged
    Ingest(ingest::Options),
    /// Measure what an honest tenant and a gateway notice while hostile clients send frames,
    /// connections, requests and files; exit code 1 if a bound does not hold
    Attack(attack::Options),
    /// Measure the agent: size, memory, start time, jitter, backlog drain, flash writes
    Edge(edge::Options),
    /// Measure the mission queue: claims and completions, and lists of a large table
    Queue(queue::Options),
    /// Measure every list of the API, with a million rows per table
    Lists(lists::Options),
    /// Measure the analysis of a roast: as a whole, and sample by sample
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
                    Command::Attack(options) => attack::run(options, cli.json).await,
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
