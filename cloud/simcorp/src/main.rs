//! `simcorp`: the control plane. `simcorp serve [SERVICE…]` runs its services, all or the named
//! ones; the other commands are the operator's.

mod broker;
mod config;
mod device;
mod image;
mod roasts;
mod serve;
mod token;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser, Subcommand};
use service::config::{ConfigError, Sources};
use store::Store;

use crate::config::CloudConfig;
use crate::device::DeviceCommand;
use crate::roasts::RoastCommand;
use crate::token::TokenCommand;

#[derive(Parser)]
#[command(name = "simcorp", version, about = "The control plane of a fleet of coffee roasters")]
struct Cli {
    #[command(flatten)]
    sources: Sources,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the services, all or the named ones
    Serve { services: Vec<serve::ServiceName> },
    /// The database's schema
    #[command(subcommand)]
    Migrate(MigrateCommand),
    /// The gateways whose signatures are believed
    #[command(subcommand)]
    Device(DeviceCommand),
    /// API keys of services and scripts
    #[command(subcommand)]
    Token(TokenCommand),
    /// Write a shell's completions to standard output
    Completions { shell: clap_complete::Shell },
    /// Write the manual pages, one a command, into a folder
    Man { folder: PathBuf },
    /// Recordings of roasts: analyze, compare, score, plot
    #[command(subcommand)]
    Roast(RoastCommand),
}

#[derive(Subcommand)]
enum MigrateCommand {
    /// Bring the schema up to date
    Up,
    /// Say what ran and what would
    Status,
}

/// `EX_USAGE`: the configuration is wrong, and starting again will not help.
const EXIT_CONFIG: u8 = 64;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One sentence and its causes; never a backtrace.
            eprintln!("simcorp: {error:#}");
            let config = error.downcast_ref::<ConfigError>().is_some();
            if config { ExitCode::from(EXIT_CONFIG) } else { ExitCode::FAILURE }
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let config: CloudConfig = service::config::load(&cli.sources, std::env::vars())?;
    if cli.sources.print_config {
        print!("{}", service::config::print(&config)?);
        return Ok(());
    }
    let command = cli
        .command
        .context("say what to do: serve, migrate, device, token or roast; --help tells more")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match command {
            Command::Serve { services } => serve::serve(config, &services).await,
            Command::Migrate(command) => migrate(&config, &command).await,
            Command::Device(command) => device::act(&config, command).await,
            Command::Token(command) => token::act(&config, command).await,
            Command::Completions { shell } => {
                let mut command = Cli::command();
                clap_complete::generate(shell, &mut command, "simcorp", &mut std::io::stdout());
                Ok(())
            }
            Command::Man { folder } => std::fs::create_dir_all(&folder)
                .and_then(|()| clap_mangen::generate_to(Cli::command(), &folder))
                .with_context(|| format!("cannot write to {}", folder.display())),
            Command::Roast(command) => roasts::act(command),
        }
    })
}

async fn migrate(config: &CloudConfig, command: &MigrateCommand) -> anyhow::Result<()> {
    serve::make_data_folder(config)?;
    let store = Store::open(&config.database).await?;
    if let MigrateCommand::Up = command {
        store.migrate_up().await?;
    }
    for step in store.migration_status().await? {
        let state = if step.applied { "applied" } else { "pending" };
        println!("{:04}  {state}  {}", step.version, step.name);
    }
    Ok(())
}
